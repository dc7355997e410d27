"""Photographs as cameras and scanners write them: RAW files, thumbnails first, few bits in sixteen, held in every way."""

import io
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from tiffs import LONG, SHORT, Tags, page, tiff

from fer_ray.errors import ImageError
from fer_ray.schema import Status
from fer_ray.typing import UInt8Array
from fer_ray.vision.decode import decode

SENSOR = 32803


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(width: int = 64, height: int = 48) -> UInt8Array:
    """(h, w, 3) BGR: blue grows to the right, green downwards, red is half."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, np.full_like(x, 128)], axis=2).round().astype(np.uint8)


def test_the_largest_page_is_judged_and_not_the_thumbnail_before_it() -> None:
    data = bytes([200]) * (600 * 400 * 3)
    for inside in (False, True):
        image = decode(tiff(page(60, 40), page(600, 400), page(30, 20), data=data, inside=inside), 100, 720)
        assert (image.width, image.height) == image.pixels.shape[1::-1] == (600, 400)
        assert image.pixels.mean() == 200


def test_the_picture_inside_a_raw_file_lies_as_the_file_says() -> None:
    turned: Tags = {274: (SHORT, (6,))}
    thumbnail = page(60, 40, turned)
    image = decode(tiff(thumbnail, page(600, 400), data=bytes(600 * 400 * 3), inside=True), 100, 720)
    assert (image.width, image.height) == (400, 600)


@pytest.mark.parametrize("container", ["DNG", "RAF", "RW2", "CR3"])
def test_a_raw_file_is_judged_by_its_largest_preview(container: str) -> None:
    small, large = (encoded(Image.fromarray(ramp(*size)), "JPEG") for size in ((160, 120), (1600, 1200)))
    turned: Tags = {274: (SHORT, (6,))}
    dng = tiff(page(60, 40, turned), page(3000, 2000, photometric=SENSOR), data=bytes(60 * 40 * 3) + small + large, inside=True)
    content = {
        "DNG": dng,
        "RAF": b"FUJIFILMCCD-RAW 0201" + bytes(80) + small + large,
        "RW2": b"IIU\0" + dng[4:],
        "CR3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + small + large,
    }[container]
    image = decode(content, 100, 720)
    assert (image.width, image.height) == ((1200, 1600) if container in ("DNG", "RW2") else (1600, 1200))
    assert max(image.pixels.shape) == 800  # a preview is reduced like any JPEG


def test_a_raw_file_with_no_more_than_a_thumbnail_says_so() -> None:
    small = encoded(Image.fromarray(ramp(160, 120)), "JPEG")
    sensor = page(3000, 2000, photometric=SENSOR)
    for content in (tiff(page(160, 120), sensor, data=bytes(160 * 120 * 3), inside=True), tiff(sensor, data=small), tiff(sensor)):
        with pytest.raises(ImageError, match=r"RAW.*(160 x 120|no preview)") as caught:
            decode(content, 100, 720)
        assert caught.value.status == Status.UNDECODABLE


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", [".png", ".tiff", "deflated .tiff", "gray .png", "gray .tiff", "transparent .png"])
def test_sixteen_bits_of_which_few_are_used_are_as_bright_as_others(kind: str, bits: int) -> None:
    wanted = ramp()
    if kind.startswith("gray"):
        wanted = np.repeat(wanted[..., :1], 3, axis=2)
    deep = np.rint(wanted.astype(float) * ((1 << bits) - 1) / 255).astype(np.uint16)
    if kind.startswith("transparent"):
        deep = np.dstack([deep, np.full(deep.shape[:2], 65535)]).astype(np.uint16)
    compression = 8 if kind.startswith("deflated") else 1
    options = [cv2.IMWRITE_TIFF_COMPRESSION, compression] if "tiff" in kind else []
    content = bytes(cv2.imencode(kind.split()[-1], deep[..., 0] if kind.startswith("gray") else deep, options)[1])
    assert np.abs(decode(content, 100, 720).pixels.astype(int) - wanted).max() <= 1


def test_a_negative_of_sixteen_bits_is_seen_as_a_positive() -> None:
    levels = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    negative = page(64, 64, {258: (SHORT, (16,)), 279: (LONG, (64 * 64 * 2,))}, photometric=0)
    image = decode(tiff(negative, data=levels.tobytes()), 100, 720)
    assert np.abs(image.pixels[..., 0] - (255 - levels / 257)).max() <= 1


def test_planes_of_sixteen_bits_are_right_or_refused() -> None:
    planes: Tags = {258: (SHORT, (16,) * 3), 279: (LONG, (64 * 64 * 2,) * 3), 284: (SHORT, (2,)), 278: (LONG, (64,))}
    data = np.repeat(np.array([60000, 30000, 10000], np.uint16), 64 * 64)
    loose = {**page(64, 64), **planes, 273: (LONG, (8, 8 + 8192, 8 + 16384))}
    with pytest.raises(ImageError, match="plane"):
        decode(tiff(loose, data=data.tobytes()), 100, 720)
    packed = [zlib.compress(data[start : start + 4096].tobytes()) for start in (0, 4096, 8192)]
    places = [8, 8 + len(packed[0]), 8 + len(packed[0]) + len(packed[1])]
    dense = {**loose, 259: (SHORT, (8,)), 273: (LONG, tuple(places)), 279: (LONG, tuple(map(len, packed)))}
    image = decode(tiff(dense, data=b"".join(packed)), 100, 720)
    assert np.abs(image.pixels[0, 0].astype(int) - np.array([10000, 30000, 60000]) / 257).max() <= 1


@pytest.mark.parametrize("side", [64, 32])
@pytest.mark.parametrize("compression", [1, 8])
def test_gray_of_sixteen_bits_with_alpha_lies_over_white(compression: int, side: int) -> None:
    """As scanners write it: bare, or packed as differences, in one strip or in tiles."""
    gray = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    samples = np.dstack([gray, np.where(np.arange(64) < 16, 0, 65535).astype(np.uint16) + np.zeros_like(gray)])
    blocks = [samples[top : top + side, left : left + side] for top in range(0, 64, side) for left in range(0, 64, side)]
    if compression == 8:
        blocks = [np.diff(block, axis=1, prepend=np.zeros_like(block[:, :1])) for block in blocks]
    packed = [zlib.compress(block.tobytes()) if compression == 8 else block.tobytes() for block in blocks]
    places, lengths = tuple(8 + sum(map(len, packed[:n])) for n in range(len(packed))), tuple(map(len, packed))
    tags = page(64, 64, {258: (SHORT, (16, 16)), 277: (SHORT, (2,)), 338: (SHORT, (2,))}, photometric=1, compression=compression)
    tags |= {273: (LONG, places), 279: (LONG, lengths), 274: (SHORT, (3,)), 317: (SHORT, (2 if compression == 8 else 1,))}
    if side < 64:
        tags |= {322: (LONG, (side,)), 323: (LONG, (side,)), 324: tags.pop(273), 325: tags.pop(279)}
        tags.pop(278)
    image = decode(tiff(tags, data=b"".join(packed)), 100, 720)
    wanted = gray / 257
    wanted[:, :16] = 255
    assert np.abs(image.pixels[..., 0] - wanted[::-1, ::-1]).max() <= 1, "turned by half"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_nearly_square_photograph_keeps_its_width_and_height(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for width, height in ((801, 800), (800, 801), (800, 807)):
        image = decode(encoded(Image.fromarray(ramp(width, height)), "JPEG", exif=exif), 100, 100)
        assert (image.width, image.height) == ((width, height) if orientation < 5 else (height, width))
        assert image.pixels.shape[:2] == (-(-image.height // 8), -(-image.width // 8))


def test_a_jpeg_whose_size_is_said_twice_is_refused() -> None:
    content = encoded(Image.fromarray(ramp(640, 480)), "JPEG")
    frame = content.index(b"\xff\xc0")
    smaller = content[frame : frame + 5] + b"\0\x10\0\x10" + content[frame + 9 : frame + 19]
    for damaged in (content[:frame] + smaller + content[frame:], content[: frame + 19] + smaller + content[frame + 19 :]):
        with pytest.raises(ImageError) as caught:
            decode(damaged, 100, 720)
        assert caught.value.status == Status.UNDECODABLE


def test_a_progressive_photograph_with_a_film_behind_it_is_read() -> None:
    content = encoded(Image.fromarray(ramp(640, 480)), "JPEG", progressive=True)
    assert decode(content + b"film\xff\xda" * 1000, 100, 720).width == 640
