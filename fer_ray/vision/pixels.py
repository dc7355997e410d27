"""From a Pillow image of any mode to BGR pixels, strip by strip: memory for the image and the result, and little more."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from fer_ray.errors import ImageError
from fer_ray.schema import Status
from fer_ray.typing import AnyArray, UInt8Array

# With 100 megabytes for the bytes of files and 350 for the libraries and models, a worker stays under 1.5 gigabytes.
MAX_DECODE_BYTES = 1_000_000_000
RESULT_BYTES = 3  # of a pixel
STRIP_PIXELS = 1 << 18  # worked on at a time, in up to 48 bytes for each
_BYTES_OF_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}  # all others take four
# The highest level that a picture's camera or scanner can have written, whatever wider numbers they are stored in.
_FULL_RANGES = tuple(float(2**bits - 1) for bits in (8, 10, 12, 14, 16))


def check_pixels(size: tuple[int, int], max_megapixels: float) -> None:
    """Raise an ImageError, `too_large`, where there are more."""
    if size[0] * size[1] > max_megapixels * 1e6:
        raise ImageError(Status.TOO_LARGE, f"The image has {size[0]} x {size[1]} pixels, the limit is {max_megapixels:g} megapixels.")


def check_bytes(needed: int, size: tuple[int, int]) -> None:
    """Raise an ImageError, `too_large`, where decoding takes more memory than a worker has for it."""
    if needed > MAX_DECODE_BYTES:
        raise ImageError(
            Status.TOO_LARGE,
            f"To decode the image, {size[0]} x {size[1]} pixels in its format, takes {needed / 1e9:.1f} GB of memory, "
            f"the limit is {MAX_DECODE_BYTES / 1e9:g} GB.",
        )


def stored_bytes(mode: str) -> int:
    """The memory that Pillow takes for a pixel."""
    return _BYTES_OF_MODE.get(mode, 4)


def to_bgr(image: Image.Image) -> UInt8Array:
    """(h, w, 3) uint8 as stored, not turned: alpha lies over white, deep levels are scaled to what the picture uses."""
    result = np.empty((image.height, image.width, 3), np.uint8)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        full_range = _full_range(max(float(_levels(strip).max()) for _, strip in _strips(image)), image.mode)
        for rows, strip in _strips(image):
            result[rows] = np.clip(np.rint(_levels(strip) * (255 / full_range)), 0, 255)[..., None]
        return result
    transparent = image.has_transparency_data
    for rows, strip in _strips(image):
        result[rows] = np.asarray(_over_white(strip) if transparent else strip.convert("RGB"))[..., ::-1]
    return result


def is_dark(image: Image.Image) -> bool:
    """Whether a colour picture has nothing in the two highest of its bits, as one of 14 bits or fewer that was stored in 16."""
    return image.mode in ("RGB", "RGBA") and all(high < 1 << 6 for _, high in image.getextrema()[:3])  # type: ignore[misc]


def join_bytes(upper: Image.Image, lower: Image.Image) -> UInt8Array:
    """BGR pixels of a dark picture of 16 bits, whose upper and lower bytes were decoded apart, scaled to the levels that it uses."""

    def strips() -> Iterator[tuple[slice, Image.Image, AnyArray]]:
        for (rows, high), (_, low) in zip(_strips(upper), _strips(lower), strict=True):
            yield rows, high, np.asarray(high, np.uint16)[..., 2::-1] << 8 | np.asarray(low.convert("RGB"))[..., ::-1]

    full_range = _full_range(max(float(levels.max()) for _, _, levels in strips()), upper.mode)
    result = np.empty((upper.height, upper.width, 3), np.uint8)
    for rows, high, levels in strips():
        pixels = levels * (255 / full_range)
        if high.mode == "RGBA" and not is_dark(high.getchannel("A").convert("RGB")):
            pixels = 255 - (255 - pixels) * (np.asarray(high.getchannel("A"))[..., None] / 255)
        result[rows] = np.rint(pixels)
    return result


def _strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    height = max(1, STRIP_PIXELS // max(image.width, 1))
    for top in range(0, image.height, height):
        bottom = min(top + height, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _levels(strip: Image.Image) -> AnyArray:
    return np.nan_to_num(np.asarray(strip, np.float64), posinf=0.0, neginf=0.0)


def _full_range(highest: float, mode: str) -> float:
    if mode in ("I", "F") and highest <= 1:
        return 1.0
    return next((full for full in _FULL_RANGES if highest <= full), highest)


def _over_white(strip: Image.Image) -> Image.Image:
    canvas = Image.new("RGBA", strip.size, "white")
    canvas.alpha_composite(strip.convert("RGBA"))
    return canvas.convert("RGB")
