"""The formats that Pillow decodes, one plugin each: what a file may make a plugin take is known before it decodes."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import pillow_heif
from PIL import Image, ImageFile

from fer_ray.typing import UInt8Array
from fer_ray.vision.codestreams import item_pixels, jpeg2000_bytes
from fer_ray.vision.formats import Format
from fer_ray.vision.jpeg import turn_upright
from fer_ray.vision.pixels import RESULT_BYTES, check_bytes, check_pixels, is_dark, join_bytes, stored_bytes, to_bgr
from fer_ray.vision.tiff import Directory, as_four_bytes, samples_of

pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)

_ORIENTATION = 0x0112
# What decoding takes for a pixel at its peak, measured with 4:4:4 and 10 bits; JPEG 2000 and TIFF are counted from their headers.
_LOADING_BYTES = {Format.WEBP: 17, Format.AVIF: 16, Format.HEIF: 16, Format.GIF: 2}
_ALPHA_BYTES = 5  # more, in AVIF and HEIF
_GRAY_ALPHA_BYTES = 24  # for a pixel of TIFF with two samples of 16 bits
_PNG_CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"))
_PNG_PROFILE = "Raw profile type exif"
_PNG_TEXTS = (b"XML:com.adobe.xmp\0", f"{_PNG_PROFILE}\0".encode())  # these name the orientation
MAX_PNG_TEXT_BYTES = 1 << 16
_LOWER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


def decode_with_pillow(
    content: bytes, kind: Format, max_megapixels: float, page: Directory | None = None
) -> tuple[UInt8Array, bytes, bytes]:
    """Upright BGR pixels of a file of this kind, its EXIF block and its XMP; of a TIFF the first page, whose directory is given.

    Raises:
        ImageError: `too_large`.
        Exception: whatever Pillow raises for a broken file.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels, orientation, exif, xmp = _decode_stored(_first_picture(content, kind), kind, max_megapixels, page)
    check_bytes(2 * RESULT_BYTES * pixels.shape[0] * pixels.shape[1], (pixels.shape[1], pixels.shape[0]))
    return turn_upright(pixels, orientation), exif, xmp


def decode_gray_with_alpha(content: bytes, page: Directory, max_megapixels: float) -> UInt8Array:
    """Upright BGR pixels of a TIFF with two samples of 16 bits for each pixel, over white where the second is alpha.

    Raises:
        ImageError: `too_large`.
        Exception: whatever Pillow raises for a broken file.
    """
    with Image.open(io.BytesIO(as_four_bytes(content, page)), formats=(Format.TIFF.value,)) as image:
        check_pixels(image.size, max_megapixels)
        check_bytes(_GRAY_ALPHA_BYTES * image.width * image.height, image.size)
        load(image)
        samples = samples_of(np.array(image), content, page)
    gray, alpha = (to_bgr(Image.fromarray(np.ascontiguousarray(samples[..., place]))) for place in (0, 1))
    if page.is_negative:
        gray = 255 - gray
    if page.has_alpha:
        gray = to_bgr(Image.fromarray(np.dstack([gray, alpha[..., 0]])))
    return turn_upright(gray, page.orientation)


def load(image: Image.Image) -> None:
    """Load the pixels; where only what follows them is cut off, a second call gets them."""
    try:
        image.load()
    except OSError:
        image.load()


def orientation_of_image(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 0 where there is none."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 0)
    except Exception:  # noqa: BLE001 - a stranger's EXIF makes Pillow raise anything; the picture can be seen without
        return 0
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 0


def _decode_stored(content: bytes, kind: Format, max_megapixels: float, page: Directory | None) -> tuple[UInt8Array, int, bytes, bytes]:
    """The pixels before they are turned, the orientation, EXIF and XMP; TIFF is turned by Pillow, and has both for itself."""
    with Image.open(io.BytesIO(content), formats=(kind.value,)) as image:
        check_pixels(image.size, max_megapixels)
        check_bytes(_loading_bytes(image, content, kind, page), image.size)
        raw_mode = _raw_mode(image)
        load(image)
        check_pixels(image.size, max_megapixels)
        orientation = 0 if kind == Format.TIFF else orientation_of_image(image)
        exif, xmp = (b"", b"") if kind == Format.TIFF else _recorded_in(image)
        if page and page.has_deep_planes and (not page.is_packed or is_dark(image)):
            raise ValueError("samples of 16 bits in a plane for each colour are not read")
        if ";16" in raw_mode and not raw_mode.startswith("RGBa") and is_dark(image):
            check_bytes((2 * 4 + RESULT_BYTES) * image.width * image.height, image.size)
            return join_bytes(image, _lower_bytes(content, kind, raw_mode)), orientation, exif, xmp
        return to_bgr(image), orientation, exif, xmp


def _recorded_in(image: Image.Image) -> tuple[bytes, bytes]:
    """The EXIF block and the XMP packet of an open image, as its plugin found them; ImageMagick writes EXIF into a PNG's text."""
    exif, xmp = image.info.get("exif", b""), image.info.get("xmp", b"")
    if not exif and isinstance(profile := image.info.get(_PNG_PROFILE), str):
        try:
            exif = bytes.fromhex("".join(profile.split("\n")[3:]))
        except ValueError:
            exif = b""
    return exif if isinstance(exif, bytes) else b"", xmp if isinstance(xmp, bytes) else b""


def _loading_bytes(image: Image.Image, content: bytes, kind: Format, page: Directory | None) -> int:
    """The most memory that decoding takes: first for what the decoder works with, then for Pillow's pixels and ours."""
    pixels, stored = image.width * image.height, stored_bytes(image.mode)
    loading = _LOADING_BYTES.get(kind, stored) * pixels
    if kind == Format.PPM:
        loading = 3 * stored * pixels
    elif kind == Format.JPEG2000:
        loading = stored * pixels + jpeg2000_bytes(content)
    elif kind in (Format.AVIF, Format.HEIF):
        loading = (_LOADING_BYTES[kind] + (_ALPHA_BYTES if image.mode == "RGBA" else 0)) * max(pixels, item_pixels(content))
    elif page is not None:
        loading = (2 if page.orientation > 1 else 1) * stored * pixels + page.buffer_bytes
    return max(loading, (stored + RESULT_BYTES) * pixels)


def _raw_mode(image: ImageFile.ImageFile | Image.Image) -> str:
    """How the samples are stored, in Pillow's words."""
    tiles = getattr(image, "tile", ())
    arguments = tiles[0].args if tiles else ""
    return str(arguments if isinstance(arguments, str) else (arguments or ("",))[0])


def _lower_bytes(content: bytes, kind: Format, raw_mode: str) -> Image.Image:
    """The lower bytes of samples with 16 bits: Pillow keeps the upper ones, and those of the other byte order are the lower."""
    is_gray = raw_mode == "LA;16B"  # four bytes, of which the second is wanted
    lower_mode = "RGBA" if is_gray else raw_mode[:-1] + _LOWER[raw_mode[-1]]
    with Image.open(io.BytesIO(content), formats=(kind.value,)) as image:
        for place, tile in enumerate(image.tile):
            image.tile[place] = tile._replace(args=lower_mode if isinstance(tile.args, str) else (lower_mode, *(tile.args or ())[1:]))
        load(image)
        return image.getchannel(1) if is_gray else image.copy()


def _first_picture(content: bytes, kind: Format) -> bytes:
    """The file without its further frames, as far as these would be read with the first."""
    if kind == Format.PNG:
        return _without_extras(content)
    return content[:8] + b"avif" + content[12:] if kind == Format.AVIF and content[8:12] == b"avis" else content


def _without_extras(content: bytes) -> bytes:
    """A PNG without the texts, profiles and further frames that a decoder would unpack or trip over."""
    kept = list(_png_chunks(content))
    return content if sum(map(len, kept)) + 8 == len(content) else b"".join((content[:8], *kept))


def _png_chunks(content: bytes) -> Iterator[memoryview]:
    view, at = memoryview(content), 8
    while at + 8 <= len(content):
        length, name = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        chunk = view[at : at + 12 + length]
        is_text = name in (b"tEXt", b"zTXt", b"iTXt") and length <= MAX_PNG_TEXT_BYTES and content.startswith(_PNG_TEXTS, at + 8)
        if name in _PNG_CHUNKS or is_text:
            yield chunk
        if name == b"IEND":
            return
        at += 12 + length
