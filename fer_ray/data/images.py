"""The pictures of a data set: read side by side, decoded, brought to one size and colour; what cannot be read is said, not raised."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from fer_ray.config.recipe import RGB
from fer_ray.data.layouts import Sample
from fer_ray.errors import ImageError
from fer_ray.io.storage import Storage, is_remote
from fer_ray.schema import Status
from fer_ray.typing import UInt8Array
from fer_ray.vision.decode import decode

MAX_FILE_MEGABYTES = 64.0
MAX_MEGAPIXELS = 64.0
REMOTE_READERS = 24  # threads: a store answers slowly, but many at once
FILE_READERS = 2  # threads: decoding keeps the cores busy
CHUNK = 64  # images that a thread reads in a row


@dataclass(frozen=True)
class DecodedImages:
    """What became of each sample, in their order; where one cannot be read, its hashes are empty and its image is black.

    Attributes:
        images: (n, side, side) gray or (n, side, side, 3) RGB; None where only hashes were asked for.
        contents: SHA-256 of the files' bytes, (n).
        pixels: SHA-256 of what they decode to, (n).
        problems: why a sample cannot be read, by its position.
    """

    images: UInt8Array | None
    contents: list[bytes]
    pixels: list[bytes]
    problems: dict[int, str]


def read_images(storage: Storage, samples: Sequence[Sample], image_size: int, color: str, keep_images: bool = True) -> DecodedImages:
    """Read all samples; memory holds the result and a few files at a time.

    Raises:
        StorageError: nothing can be read with these credentials or from this bucket.
    """
    shape = (len(samples), image_size, image_size, *((3,) if color == RGB else ()))
    images = np.zeros(shape, np.uint8) if keep_images else None
    faces = DecodedImages(images, [b""] * len(samples), [b""] * len(samples), {})

    def read_chunk(start: int) -> None:
        for position in range(start, min(start + CHUNK, len(samples))):
            try:
                content, pixels = _read(storage, samples[position], image_size)
            except ImageError as error:
                faces.problems[position] = str(error)
                continue
            faces.contents[position] = hashlib.sha256(content).digest()
            faces.pixels[position] = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
            if images is not None:
                images[position] = _fit(pixels, image_size, color)

    remote = any(sample.entry and is_remote(sample.entry.image_uri) for sample in samples[:1])
    with ThreadPoolExecutor(REMOTE_READERS if remote else FILE_READERS) as pool:
        for _ in pool.map(read_chunk, range(0, len(samples), CHUNK)):
            pass
    return faces


def _read(storage: Storage, sample: Sample, image_size: int) -> tuple[bytes, UInt8Array]:
    """The bytes, and the upright pixels (h, w, 3) BGR of a file, (h, w) of a row; a large JPEG is reduced while it is decoded."""
    if sample.entry is None:
        if sample.row is None or sample.row.pixels is None:
            raise ImageError(Status.UNDECODABLE, "Its pixels are no square of numbers from 0 to 255.")
        return sample.row.pixels.tobytes(), sample.row.pixels
    content = storage.read_image(sample.entry, MAX_FILE_MEGABYTES)
    return content, decode(content, MAX_MEGAPIXELS, 4 * image_size).pixels


def _fit(pixels: UInt8Array, image_size: int, color: str) -> UInt8Array:
    """(image_size, image_size) gray or with three channels RGB; what is not square is stretched."""
    if color == RGB:
        fitting = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB if pixels.ndim == 2 else cv2.COLOR_BGR2RGB)
    else:
        fitting = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    height, width = fitting.shape[:2]
    if (height, width) != (image_size, image_size):
        method = cv2.INTER_AREA if max(height, width) > image_size else cv2.INTER_CUBIC
        fitting = cv2.resize(fitting, (image_size, image_size), interpolation=method)
    return np.asarray(fitting, np.uint8)
