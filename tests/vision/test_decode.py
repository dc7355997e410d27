"""Whatever a file holds: the right pixels, or a status; never a crash and never memory without bounds."""

import csv
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from pictures import SHARED_DATA
from PIL import Image

from fer_ray.errors import ImageError
from fer_ray.schema import Status
from fer_ray.vision.decode import decode


def drawn(width: int = 64, height: int = 48) -> Image.Image:
    """White above, a red left and a blue right half below."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    pixels[height // 2 :, : width // 2] = (200, 0, 0)
    pixels[height // 2 :, width // 2 :] = (0, 0, 200)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def assert_drawn(content: bytes, tolerance: int = 40) -> None:
    image = decode(content, 10, 1000)
    assert (image.width, image.height, image.scale) == (64, 48, 1.0)
    rgb = image.pixels[..., ::-1].astype(int)
    for (y, x), colour in {(10, 30): (255, 255, 255), (40, 10): (200, 0, 0), (40, 54): (0, 0, 200)}.items():
        assert np.abs(rgb[y, x] - colour).max() <= tolerance


def formats() -> dict[str, bytes]:
    image, transparent = drawn(), drawn().convert("RGBA")
    transparent.putpixel((0, 0), (0, 0, 0, 0))
    pillow_heif.register_heif_opener()
    return {
        **{kind: encoded(image, kind) for kind in ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "AVIF", "GIF", "PPM", "JPEG2000")},
        "progressive": encoded(image, "JPEG", progressive=True),
        "CMYK JPEG": encoded(image.convert("CMYK"), "JPEG", quality=95),
        "CMYK TIFF": encoded(image.convert("CMYK"), "TIFF"),
        "HEIC": encoded(image, "HEIF", quality=90),
        "RGBA": encoded(transparent, "PNG"),
        "palette": encoded(image.quantize(), "PNG"),
        "animated": encoded(image, "WEBP", save_all=True, append_images=[Image.new("RGB", (64, 48))], lossless=True),
    }


@pytest.mark.parametrize("kind", sorted(formats()))
def test_every_format_gives_its_colours(kind: str) -> None:
    assert_drawn(formats()[kind])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_in_full_and_reduced(kind: str, orientation: int) -> None:
    turn = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # the transposition that undoes the orientation
    stored = drawn() if turn is None else drawn().transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_drawn(encoded(stored, kind, exif=exif))
    reduced = decode(encoded(stored, kind, exif=exif), 10, 32)
    assert (reduced.width, reduced.height) == (64, 48)
    assert reduced.pixels.shape[:2] == ((24, 32) if kind == "JPEG" else (48, 64))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(kind: str) -> None:
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    image = decode(encoded(Image.fromarray(ramp), kind), 10, 1000)
    assert np.abs(image.pixels[..., 0].astype(float) - ramp / 257).max() <= 1


def test_transparency_lies_over_white() -> None:
    image = decode(encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 0)), "PNG"), 10, 1000)
    assert image.pixels.min() == 255


def test_a_bomb_is_refused_by_its_header() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000_000)))
    for content in (bomb, encoded(Image.new("L", (4000, 3000)), "JPEG")):
        with pytest.raises(ImageError) as caught:
            decode(content, 10, 1000)
        assert caught.value.status == Status.TOO_LARGE


def test_broken_files_are_undecodable_and_nothing_else() -> None:
    generator = np.random.default_rng(0)
    contents = [b"", b"\x00", b"not an image", b"\xff\xd8\xff", b"GIF89a", b"%PDF-1.7"]
    for content in formats().values():
        for _ in range(6):
            damaged = bytearray(content[: generator.integers(1, len(content))])
            for place in generator.integers(0, len(damaged), 4):
                damaged[place] = generator.integers(256)
            contents.append(bytes(damaged))
    for content in contents:
        try:
            decode(content, 10, 1000)
        except ImageError as error:
            assert error.status in (Status.UNDECODABLE, Status.TOO_LARGE)
            assert str(error).endswith(".")
            assert "0x" not in str(error)


def test_the_awkward_images_that_others_decode_are_decoded(shared_data: dict[str, Path]) -> None:
    if "awkward_images" not in shared_data:
        return
    with (SHARED_DATA / "awkward_images.csv").open() as table:
        for row in csv.DictReader(table):
            if row["pillow_format"] == "ICO":  # no photograph
                continue
            others = [answer for answer in (row["cv2"], row["pillow"]) if answer.replace("x", "").isdigit()]
            content = (shared_data["awkward_images"] / row["image"]).read_bytes()
            try:
                image = decode(content, 100, 700)
            except ImageError:
                assert not others, row["image"]
            else:
                # Neither applies what AVIF files say about turning; for these the sizes may be swapped.
                sizes = [f"{image.width}x{image.height}", f"{image.height}x{image.width}"][: 2 if row["image"].endswith("avif") else 1]
                assert not others or set(sizes) & set(others), row["image"]
