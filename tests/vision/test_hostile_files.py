"""Files made to end, fill or mislead who decodes them, and files that say less than they hold: a row each, and memory within bounds."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from tiffs import LONG, SHORT, page, tiff

from fer_ray.errors import ImageError
from fer_ray.schema import Status
from fer_ray.vision import decode as decoding
from fer_ray.vision import pillow_formats, pixels
from fer_ray.vision.codestreams import item_pixels
from fer_ray.vision.decode import decode


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photograph(width: int, height: int) -> Image.Image:
    """Smooth, so that every format keeps its brightness; bright on the right."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 128, height))
    return Image.fromarray(np.stack([x, y, x], axis=2).astype(np.uint8))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *extras: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extras) + chunk(b"IDAT", zlib.compress(bytes(10_000)))


REFUSED = {
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n{} loop\n",
    "PDF": b"%PDF-1.7\n",
    "Radiance HDR": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 16384 +X 16000\n",
    "PAM": b"P7\nWIDTH 16384\nHEIGHT 16000\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n",
    "OpenEXR": b"v/1\x01\x02\0\0\0",
    "Photoshop": b"8BPS\0\x01",
    "an HTML page": b"\n<!DOCTYPE html><html><body>Sign in</body></html>",
    "a film": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41",
    "none of the image formats": b"not an image",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_photograph_has_is_not_opened_and_the_row_says_what_it_is(name: str) -> None:
    with pytest.raises(ImageError, match=name) as caught:
        decode(REFUSED[name], 100, 720)
    assert caught.value.status == Status.UNDECODABLE


def test_frames_that_end_a_decoder_are_not_read() -> None:
    image = decode((Path(__file__).parent / "ends_opencv.png").read_bytes(), 100, 720)
    assert (image.width, image.height) == (128, 64)


def jpeg_header(width: int, height: int, marker: int) -> bytes:
    components = b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3, 4))
    frame = struct.pack(">BBHBHHB", 0xFF, marker, 8 + len(components), 8, height, width, 4) + components
    return b"\xff\xd8" + frame + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"


def wide_webp(side: int) -> bytes:
    content = encoded(photograph(64, 64), "WEBP", lossless=True)
    bits = int.from_bytes(content[21:25], "little") >> 28 << 28 | (side - 1) << 14 | side - 1
    return content[:21] + bits.to_bytes(4, "little") + content[25:]


TOO_LARGE = {
    "PNG behind text": png(16_000, 16_000, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2_000_000)))),
    "TIFF in one strip that is turned": tiff(page(9950, 9950, {274: (SHORT, (6,))}, compression=8)),
    "TIFF with a tile larger than itself": tiff(
        page(64, 64, {322: (LONG, (40_000,)), 323: (LONG, (40_000,)), 324: (LONG, (8,))}, compression=8)
    ),
    "JPEG whose scans are kept": jpeg_header(12_000, 12_000, 0xC2),
    "JPEG in scans of one colour": jpeg_header(12_000, 12_000, 0xC0),
    "WebP": wide_webp(9950),
    "JPEG 2000": b"\xff\x4f\xff\x51\0\x2f\0\0" + struct.pack(">8IH", 9950, 9950, 0, 0, 9950, 9950, 0, 0, 3) + b"\7\1\1" * 3,
}
BEYOND_MAX_MEGAPIXELS = ("PNG behind text", "JPEG whose scans are kept", "JPEG in scans of one colour")


@pytest.mark.parametrize("name", TOO_LARGE)
def test_an_image_that_would_fill_the_memory_is_refused_by_its_header(name: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(TOO_LARGE[name], 178 if name in BEYOND_MAX_MEGAPIXELS else 100, 720)
    assert caught.value.status == Status.TOO_LARGE, str(caught.value)


def test_what_is_coded_counts_and_not_what_the_boxes_around_it_say(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = photograph(400, 300)
    avif = encoded(photo, "AVIF", speed=10)
    size = avif.index(b"ispe") + 8
    lying = avif[:size] + struct.pack(">II", 64, 64) + avif[size + 8 :]
    frames = encoded(photo, "AVIF", speed=10, save_all=True, append_images=[photo.transpose(Image.Transpose.ROTATE_180)])
    grid = encoded(photo, "HEIF", tile_size=128)
    size = grid.index(struct.pack(">II", 400, 300))
    narrow = grid[:size] + struct.pack(">II", 64, 64) + grid[size + 8 :]
    assert [item_pixels(content) for content in (avif, lying, frames, grid, narrow)] == [400 * 300] * 5
    monkeypatch.setattr(pixels, "MAX_DECODE_BYTES", 1_900_000)  # sixteen bytes for each of 400 x 300 pixels are more
    for content in (lying, narrow, encoded(photo, "JPEG2000", codeblock_size=(4, 4))):
        with pytest.raises(ImageError) as caught:
            decode(content, 100, 720)
        assert caught.value.status == Status.TOO_LARGE
    assert decode(encoded(photo, "JPEG2000", tile_size=(128, 128)), 100, 720).width == 400


def peaks() -> Iterator[tuple[str, bytes]]:
    side = 1000
    photo = photograph(side, side)
    alpha = photo.copy()
    alpha.putalpha(photo.getchannel("R"))
    deep = np.asarray(photo, np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 7
    yield "JPEG", encoded(photo, "JPEG", progressive=True, subsampling=0, exif=exif)
    yield "PNG", encoded(alpha, "PNG", exif=exif, compress_level=1)
    yield "dark PNG", bytes(cv2.imencode(".png", deep)[1])
    yield "WEBP", encoded(alpha, "WEBP", method=0)
    yield "AVIF", encoded(alpha, "AVIF", speed=10, subsampling="4:4:4")
    yield "HEIF", encoded(alpha, "HEIF", chroma=444)
    yield "JPEG2000", encoded(alpha, "JPEG2000")
    yield "TIFF", encoded(alpha, "TIFF", compression="tiff_adobe_deflate", tiffinfo={274: 6, 278: side})
    yield "TIFF of floats", encoded(photo.convert("F"), "TIFF", compression="tiff_adobe_deflate", tiffinfo={278: side})
    two = page(side, side, {258: (SHORT, (16, 16)), 277: (SHORT, (2,)), 317: (SHORT, (2,)), 274: (SHORT, (6,))}, photometric=1)
    yield "TIFF of gray and alpha", tiff(two | {279: (LONG, (4 * side**2,))}, data=deep[..., :2].tobytes())
    yield "GIF", encoded(photo.quantize(16), "GIF", transparency=1)
    yield "PPM", encoded(Image.fromarray(deep[..., 0] * 257), "PPM")
    yield "BMP", encoded(alpha, "BMP")


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_decoding_takes_no_more_memory_than_was_counted_before(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    check = pixels.check_bytes

    def count(needed: int, size: tuple[int, int]) -> None:
        counted.append(needed)
        check(needed, size)

    for module in (decoding, pillow_formats):
        monkeypatch.setattr(module, "check_bytes", count)
    files = list(peaks())
    for _, content in files:  # what libraries keep once they are used
        decode(content, 100, 10_000)
    for name, content in files:
        counted.clear()
        Path("/proc/self/clear_refs").write_text("5")  # starts the kernel's count of the peak anew
        before = peak_bytes()
        image = decode(content, 100, 10_000)
        taken = peak_bytes() - before
        assert taken <= max(counted) + 8_000_000, (name, taken, counted)
        assert max(counted) <= 25 * image.width * image.height
        del image


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_takes_minutes() -> None:
    whole = encoded(photograph(640, 480), "JPEG", progressive=True)
    assert decode(whole, 100, 640).width == 640
    first, mark, last = whole[:-2].rpartition(b"\xff\xda")
    with pytest.raises(ImageError, match=r"has 5,\d+ scans, the limit is 100"):
        decode(first + (mark + last) * 5000 + whole[-2:], 100, 640)
