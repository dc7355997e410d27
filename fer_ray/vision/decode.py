"""From the bytes of an image file, whoever made it, to upright pixels within known limits."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass

# The last resort for formats whose header Pillow cannot read: OpenCV then refuses more pixels than this by itself.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))

import cv2
import numpy as np
import pillow_heif
from PIL import Image, ImageOps, UnidentifiedImageError

from fer_ray.errors import ImageError
from fer_ray.schema import Status
from fer_ray.typing import FloatArray, UInt8Array

pillow_heif.register_heif_opener()

_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


@dataclass(frozen=True)
class DecodedImage:
    """Upright pixels (h, w, 3) uint8 BGR, perhaps reduced; `width` and `height` are those of the whole upright image."""

    pixels: UInt8Array
    width: int
    height: int

    @property
    def scale(self) -> float:
        """Original pixels per pixel here: 1 where nothing was reduced."""
        return float(self.width / self.pixels.shape[1])


def decode(content: bytes, max_megapixels: float, enough_pixels: int) -> DecodedImage:
    """Decode any format that OpenCV or Pillow reads: upright after EXIF, first frame, alpha over white, 16 bits to 8.

    A JPEG is decoded at 1/2, 1/4 or 1/8 as long as its longer side keeps `enough_pixels`; that costs a fraction of the time.

    Args:
        content: the bytes of the file.
        max_megapixels: images with more pixels are not decoded.
        enough_pixels: how long the longer side must at least be for whoever looks at the image.

    Raises:
        ImageError: `undecodable`, or `too_large` when the header announces more than `max_megapixels`.
    """
    if not content:
        raise ImageError(Status.UNDECODABLE, "The file is empty.")
    size, is_jpeg = _read_header(content)
    if size:
        _check_pixels(size, max_megapixels)
    reduction = _reduction(max(size), enough_pixels) if size and is_jpeg else 1
    with_opencv, with_pillow = (lambda: _decode_with_opencv(content, reduction)), (lambda: _decode_with_pillow(content))
    pixels = _first_that_works([with_opencv, with_pillow] if is_jpeg or not size else [with_pillow, with_opencv])
    height, width = pixels.shape[:2]
    if size and is_jpeg:  # EXIF may have turned it by a quarter
        upright = size if (width >= height) == (size[0] >= size[1]) else size[::-1]
        width, height = upright
    return DecodedImage(pixels, width, height)


def decode_pillow(image: Image.Image, max_megapixels: float) -> DecodedImage:
    """The pixels of a Pillow image, by the same rules as `decode`.

    Raises:
        ImageError: `undecodable` where its file breaks off, `too_large` as in `decode`.
    """
    _check_pixels(image.size, max_megapixels)
    pixels = _first_that_works([lambda: _upright_bgr(image)])
    return DecodedImage(pixels, pixels.shape[1], pixels.shape[0])


def decode_array(image: UInt8Array) -> DecodedImage:
    """The pixels of an array (h, w) gray, (h, w, 3) RGB or (h, w, 4) RGBA uint8."""
    if image.ndim == 3 and image.shape[2] == 4:
        image = _to_rgb(Image.fromarray(image))
    pixels = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR)
    return DecodedImage(np.asarray(pixels, np.uint8), image.shape[1], image.shape[0])


def _check_pixels(size: tuple[int, int], max_megapixels: float) -> None:
    if size[0] * size[1] > max_megapixels * 1e6:
        raise ImageError(Status.TOO_LARGE, f"The image has {size[0]} x {size[1]} pixels, the limit is {max_megapixels:g} megapixels.")


def _read_header(content: bytes) -> tuple[tuple[int, int] | None, bool]:
    """Width and height as stored (None where Pillow does not know the format), and whether it is a JPEG."""
    is_jpeg = content.startswith(b"\xff\xd8\xff")
    try:
        if is_jpeg:  # by far the most, so the others' openers are not even asked
            with Image.open(io.BytesIO(content), formats=("JPEG",)) as header:
                return header.size, True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as header:
                return header.size, False
    except Image.DecompressionBombError as error:
        raise ImageError(Status.TOO_LARGE, f"The image is too large to decode safely ({error}).") from error
    except Exception:  # noqa: BLE001 - whatever a stranger's header makes a plugin raise: the decoders below get their chance and say why
        return None, is_jpeg


def _reduction(longer_side: int, enough_pixels: int) -> int:
    return max((n for n in _REDUCED if longer_side / n >= enough_pixels), default=1)


def _first_that_works(decoders: list[Callable[[], UInt8Array]]) -> UInt8Array:
    reasons = []
    for decoder in decoders:
        try:
            return decoder()
        except ImageError:
            raise
        except Exception as error:  # noqa: BLE001 - a codec may raise anything for a broken file; the reason goes into the row
            reasons.append(" ".join(str(error).split())[:200] or type(error).__name__)
    raise ImageError(Status.UNDECODABLE, f"The file is not an image that can be decoded ({'; '.join(reasons)}).")


def _decode_with_opencv(content: bytes, reduction: int) -> UInt8Array:
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), _REDUCED.get(reduction, cv2.IMREAD_COLOR))
    if pixels is None:
        raise ValueError("OpenCV cannot decode it")
    return np.asarray(pixels, np.uint8)


def _decode_with_pillow(content: bytes) -> UInt8Array:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                return _upright_bgr(image)
    except UnidentifiedImageError as error:
        raise ValueError("Pillow does not know the format") from error
    except Image.DecompressionBombError as error:
        raise ImageError(Status.TOO_LARGE, f"The image is too large to decode safely ({error}).") from error


def _upright_bgr(image: Image.Image) -> UInt8Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image.load()
        except OSError:
            image.load()  # where only what follows the pixels is cut off, the second call gives them
        return np.ascontiguousarray(_to_rgb(ImageOps.exif_transpose(image))[..., ::-1])


def _to_rgb(image: Image.Image) -> UInt8Array:
    """(h, w, 3) uint8; Pillow's own conversion would clip deep gray levels at 255 instead of scaling them."""
    if image.mode.startswith("I;16"):
        return _gray_to_rgb(np.asarray(image).astype(np.uint16) / 257)
    if image.mode in ("I", "F"):
        levels = np.nan_to_num(np.asarray(image, np.float64))
        highest = max(levels.max(), 1e-9)
        full_range = next((full for full in (1.0, 255.0, 65535.0) if highest <= full), highest)
        return _gray_to_rgb(levels * (255 / full_range))
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    return np.asarray(image.convert("RGB"))


def _gray_to_rgb(levels: FloatArray) -> UInt8Array:
    return np.repeat(np.clip(np.rint(levels), 0, 255).astype(np.uint8)[..., None], 3, axis=2)
