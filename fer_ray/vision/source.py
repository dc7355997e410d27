"""An image however a program has it: a path, an address, bytes, an open file, a Pillow image, an array."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeAlias, TypeGuard

import numpy as np
from PIL import Image

from fer_ray.errors import ImageError, UsageError
from fer_ray.io.folders import RAW_NAME_PREFIX, uri_of_path
from fer_ray.io.inputs import read_image_named
from fer_ray.io.storage import Storage, is_remote
from fer_ray.schema import Status
from fer_ray.typing import AnyArray, UInt8Array
from fer_ray.vision.decode import DecodedImage, decode, decode_array, decode_pillow

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_KINDS = "a path, an address (s3://, gs://, az://, https://), the bytes of a file, an open file, a Pillow image or an array of uint8"
_SHAPES = "uint8 of shape (h, w), (h, w, 3) RGB or (h, w, 4) RGBA, or (n, h, w, 3) for many"


class Readable(Protocol):
    """A file that is open for reading bytes."""

    def read(self, size: int, /) -> bytes: ...


ImageLike: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Readable | Image.Image | AnyArray
# What is left of these forms once they are checked: a URI, encoded bytes, pixels, or why there are none.
Source: TypeAlias = str | bytes | Image.Image | UInt8Array | DecodedImage | ImageError


def is_many(images: Any) -> TypeGuard[Iterable[ImageLike]]:
    """Whether these are several images and not one (or none at all, which `source_of` refuses)."""
    if isinstance(images, np.ndarray):
        return images.ndim == 4 or (images.ndim == 1 and images.dtype.kind in "OUS")
    one = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, Mapping)
    is_table = getattr(images, "ndim", 1) != 1  # a data frame runs through its column names
    return isinstance(images, Iterable) and not isinstance(images, one) and not hasattr(images, "read") and not is_table


def source_of(image: Any, max_megabytes: float, what: str = "The image") -> Source:
    """Check what was given for one image, and read it where it is an open file.

    Args:
        image: anything of `ImageLike`.
        max_megabytes: how much of an open file is read; more is an ImageError with the status too_large.
        what: how a complaint names the image.

    Raises:
        UsageError: nothing that can hold an image, an address that cannot be opened, an array of another type or shape.
    """
    if isinstance(image, ImageError | bytes | Image.Image):
        return image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return _uri_of(image, what)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or 0 in image.shape or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
            raise UsageError(f"{what} is an array {image.shape} of {image.dtype}: give {_SHAPES}.")
        return image
    if hasattr(image, "read"):
        return _read_file(image, max_megabytes, what)
    raise UsageError(f"{what} cannot be {_with_article(type(image).__name__)}: give {_KINDS}.")


def uri_of_source(source: Source) -> str | None:
    """Where the image was read from, None where that is not known."""
    return source if isinstance(source, str) else None


def read_source(source: Source, max_megabytes: float) -> bytes | None:
    """The encoded bytes of the image, None where it is given as pixels.

    Raises:
        ImageError: they cannot be read.
        StorageError: the store cannot be used as it stands.
    """
    if isinstance(source, ImageError):
        raise source
    if isinstance(source, str):
        return read_image_named(Storage(), source, max_megabytes)
    return source if isinstance(source, bytes) else None


def decode_source(source: Source, content: bytes | None, max_megapixels: float, enough_pixels: int) -> DecodedImage:
    """The pixels of an image, from its bytes where `read_source` found some.

    Raises:
        ImageError: as `decode`.
    """
    if content is not None:
        return decode(content, max_megapixels, enough_pixels)
    if isinstance(source, DecodedImage):
        return source
    if isinstance(source, Image.Image):
        return decode_pillow(source, max_megapixels)
    return decode_array(np.asarray(source, np.uint8))


def _uri_of(image: str | os.PathLike[str], what: str) -> str:
    uri = uri_of_path(os.fsdecode(image))
    scheme = _SCHEME.match(uri)
    if scheme and scheme[0] != RAW_NAME_PREFIX and not is_remote(uri):
        raise UsageError(f"{what} is at an {scheme[0]} address, which cannot be read: download it, and give its path or its bytes.")
    return uri


def _read_file(file: Readable, max_megabytes: float, what: str) -> bytes | ImageError:
    limit = int(max_megabytes * 1e6)
    try:
        content = file.read(limit + 1)
    except (OSError, ValueError) as error:
        return ImageError(Status.UNREADABLE, f"The file cannot be read ({error}).")
    if not isinstance(content, bytes):
        raise UsageError(f"{what} is a file that does not give bytes: open it with mode 'rb'.")
    if len(content) > limit:
        return ImageError(Status.TOO_LARGE, f"The file has more than {max_megabytes:g} megabytes, which is the limit.")
    return content


def _with_article(name: str) -> str:
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"
