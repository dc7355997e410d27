"""From the bytes of an image file, whoever made it, to upright pixels within known limits.

Each format has one decoder: OpenCV for JPEG, Pillow for the others of `formats.py`; nothing else is opened. What a file
announces is checked before its decoder takes memory for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from fer_ray.errors import ImageError
from fer_ray.schema import Status
from fer_ray.typing import UInt8Array
from fer_ray.vision import tiff
from fer_ray.vision.capture import NOTHING_RECORDED, Capture, read_capture, read_capture_of_raw
from fer_ray.vision.formats import Format, format_of
from fer_ray.vision.jpeg import MAX_SCANS, JpegHeader, count_scans, decode_jpeg, largest_jpeg, read_header, turn_upright
from fer_ray.vision.pillow_formats import decode_gray_with_alpha, decode_with_pillow, load, orientation_of_image
from fer_ray.vision.pixels import RESULT_BYTES, check_bytes, check_pixels, stored_bytes, to_bgr

_REDUCTIONS = (2, 4, 8)
MIN_PREVIEW_SIDE = 480  # pixels of the longer side: a smaller preview is not what its photographer sees
_NOT_FINISHED = "The file is RAW, which is not developed here, and "
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class DecodedImage:
    """Upright pixels (h, w, 3) uint8 BGR, perhaps reduced; `width` and `height` are those of the whole upright image.

    `format` is None, and nothing recorded, for what came as pixels.
    """

    pixels: UInt8Array
    width: int
    height: int
    format: Format | None = None
    capture: Capture = NOTHING_RECORDED

    @property
    def scale(self) -> float:
        """Original pixels per pixel here: 1 where nothing was reduced."""
        return float(self.width / self.pixels.shape[1])


def decode(content: bytes, max_megapixels: float, enough_pixels: int) -> DecodedImage:
    """Decode a file of the formats that photographs have: upright after EXIF, first frame, alpha over white, deep levels to 8 bits.

    A JPEG is decoded at 1/2, 1/4 or 1/8 as long as its longer side keeps `enough_pixels`; that costs a fraction of the time.
    Of a TIFF the largest page is decoded, of a RAW file the largest finished picture inside.

    Args:
        content: the bytes of the file.
        max_megapixels: images with more pixels are not decoded.
        enough_pixels: how long the longer side must at least be for whoever looks at the image.

    Raises:
        ImageError: `undecodable`, or `too_large` when the header announces more than `max_megapixels` or than memory holds.
    """
    if content.startswith(b"\xff\xd8\xff"):  # by far the most
        header = _attempt(lambda: read_header(content))
        decoded = _decode_jpeg(content, header, max_megapixels, enough_pixels)
        return replace(decoded, format=Format.JPEG, capture=_recorded(content[slice(*header.exif)], content[slice(*header.xmp)]))
    if not content:
        raise ImageError(Status.UNDECODABLE, "The file is empty.")
    kind = format_of(content)
    if kind == Format.TIFF:
        return _decode_tiff(content, max_megapixels, enough_pixels)
    if kind == Format.RAW:
        return _decode_preview(content, largest_jpeg(content), max_megapixels, enough_pixels)
    pixels, exif, xmp = _attempt(lambda: decode_with_pillow(content, kind, max_megapixels))
    return replace(_whole(pixels), format=kind, capture=_recorded(exif, xmp))


def decode_pillow(image: Image.Image, max_megapixels: float) -> DecodedImage:
    """The pixels of a Pillow image, by the same rules as `decode`.

    Raises:
        ImageError: `undecodable` where its file breaks off, `too_large` as in `decode`.
    """
    check_pixels(image.size, max_megapixels)
    check_bytes((stored_bytes(image.mode) + RESULT_BYTES) * image.width * image.height, image.size)

    def upright() -> UInt8Array:
        load(image)
        return turn_upright(to_bgr(image), orientation_of_image(image))

    return _whole(_attempt(upright))


def decode_array(image: UInt8Array) -> DecodedImage:
    """The pixels of an array (h, w) gray, (h, w, 3) RGB or (h, w, 4) RGBA uint8."""
    if image.ndim == 3 and image.shape[2] == 4:
        return _whole(to_bgr(Image.fromarray(image)))
    return _whole(np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR), np.uint8))


def _whole(pixels: UInt8Array) -> DecodedImage:
    return DecodedImage(pixels, pixels.shape[1], pixels.shape[0])


def _decode_jpeg(content: bytes, header: JpegHeader, max_megapixels: float, enough_pixels: int, start: int = 0) -> DecodedImage:
    size = header.width, header.height
    check_pixels(size, max_megapixels)
    reduction = max((n for n in _REDUCTIONS if max(size) / n >= enough_pixels), default=1)
    check_bytes(header.working_bytes(reduction), size)
    if header.kept_samples and (scans := count_scans(content, header)) > MAX_SCANS:
        raise ImageError(Status.UNDECODABLE, f"The JPEG has {scans:,} scans, the limit is {MAX_SCANS}.")
    pixels = _attempt(lambda: decode_jpeg(content, header, reduction, start))
    return DecodedImage(pixels, *(size[::-1] if header.orientation >= 5 else size))


def _decode_tiff(content: bytes, max_megapixels: float, enough_pixels: int) -> DecodedImage:
    """The largest page; what a sensor measured and JPEG of the old kind are no pages, but may have a preview beside them."""
    found = [directory for directory in _attempt(lambda: tiff.directories_of(content)) if not directory.is_mask]
    pages = [directory for directory in found if directory.is_readable]
    page = max(pages, key=lambda directory: directory.pixels, default=None)
    if len(pages) < len(found):
        preview = largest_jpeg(content)
        if page is None and preview is None:
            page = max((directory for directory in found if directory.is_old_jpeg), key=lambda directory: directory.pixels, default=None)
        if page is None or (preview and preview[1].width * preview[1].height > page.pixels):
            return _decode_preview(content, preview, max_megapixels, enough_pixels)
        if max(page.size) < MIN_PREVIEW_SIDE and page.pixels < max(directory.pixels for directory in found):
            raise _only_a_thumbnail(page.size)
    if page is None:
        raise ImageError(Status.UNDECODABLE, "The file is a TIFF without a picture.")
    pixels = _attempt(lambda: _decode_page(content, page, max_megapixels))
    if page is not found[0] and not page.orientation and found[0].has_sub_directories:
        pixels = turn_upright(pixels, found[0].orientation)
    return replace(_whole(pixels), format=Format.TIFF, capture=_recorded(content))


def _decode_page(content: bytes, page: tiff.Directory, max_megapixels: float) -> UInt8Array:
    content = tiff.with_first(content, page)
    if page.is_deep_with_alpha:
        return decode_gray_with_alpha(content, page, max_megapixels)
    if page.is_deep_negative:
        return 255 - decode_with_pillow(tiff.as_positive(content, page), Format.TIFF, max_megapixels, page)[0]
    return decode_with_pillow(content, Format.TIFF, max_megapixels, page)[0]


def _decode_preview(content: bytes, preview: tuple[int, JpegHeader] | None, max_megapixels: float, enough_pixels: int) -> DecodedImage:
    if preview is None:
        raise ImageError(Status.UNDECODABLE, f"{_NOT_FINISHED}there is no preview inside: export it as JPEG.")
    start, header = preview
    if max(header.width, header.height) < MIN_PREVIEW_SIDE:
        raise _only_a_thumbnail((header.width, header.height))
    if not header.orientation:
        header = replace(header, orientation=tiff.orientation_of_raw(content))
    recorded = read_capture_of_raw(content)
    if recorded == NOTHING_RECORDED:
        recorded = _recorded(content[slice(*header.exif)], content[slice(*header.xmp)])
    return replace(_decode_jpeg(content, header, max_megapixels, enough_pixels, start), format=Format.RAW, capture=recorded)


def _only_a_thumbnail(size: tuple[int, int]) -> ImageError:
    what = f"the largest picture inside has only {size[0]} x {size[1]} pixels"
    return ImageError(Status.UNDECODABLE, f"{_NOT_FINISHED}{what}: export it as JPEG.")


def _recorded(exif: bytes, xmp: bytes = b"") -> Capture:
    """What is recorded of the moment; most images have nothing."""
    return read_capture(exif, xmp) if exif or xmp else NOTHING_RECORDED


def _attempt(decoder: Callable[[], _Result]) -> _Result:
    """What the decoder gives; whatever a broken file makes it raise becomes the reason in the row."""
    try:
        return decoder()
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(Status.TOO_LARGE, "The image has more than 178 megapixels, which is more than is ever decoded.") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            Status.UNDECODABLE, "The file is not an image that can be decoded (its header is broken, or of a kind that is not read)."
        ) from error
    except Exception as error:  # a codec may raise anything for a broken file; the reason goes into the row
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageError(Status.UNDECODABLE, f"The file is not an image that can be decoded ({reason}).") from error
