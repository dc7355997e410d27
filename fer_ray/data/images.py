"""The pictures of a data set: read side by side, decoded, brought to one size and colour; what cannot be read is said, not raised."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from fer_ray.config.crop import DEFAULT_CROP, CropGeometry
from fer_ray.config.jobs.label import LabelingOptions
from fer_ray.config.recipe import GRAY, RGB
from fer_ray.data.disk_images import empty_images
from fer_ray.data.sample import Sample
from fer_ray.errors import ImageError
from fer_ray.io.storage import Storage, is_remote
from fer_ray.schema import Status
from fer_ray.typing import UInt8Array
from fer_ray.vision.crop import crop_face
from fer_ray.vision.decode import DecodedImage, decode
from fer_ray.vision.detector import Detection, FaceDetector

MAX_FILE_MEGABYTES = 64.0
MAX_MEGAPIXELS = 64.0
REMOTE_READERS = 24  # threads: a store answers slowly, but many at once
FILE_READERS = 2  # threads: decoding keeps the cores busy
CHUNK = 64  # images that a thread reads in a row
PHOTO_PIXELS = 4096  # of the longer side: in larger photographs a face is large enough in half of the size
MIN_OVERLAP = 0.2  # intersection over union of a detected face and the box that a data set gives
THUMBNAIL = 12  # pixels of the side: enough to tell faces apart, too few for what compression changes


@dataclass(frozen=True)
class DecodedImages:
    """What became of each sample, in their order; where one cannot be read, its hashes are empty and its image is black.

    Attributes:
        images: (n, side, side) gray or (n, side, side, 3) RGB; None where only hashes were asked for.
        contents: SHA-256 of the files' bytes, (n).
        pixels: SHA-256 of what they decode to, (n).
        thumbnails: (n, THUMBNAIL, THUMBNAIL) gray, by which near copies are found.
        problems: why a sample cannot be used, by its position.
    """

    images: UInt8Array | None
    contents: list[bytes]
    pixels: list[bytes]
    thumbnails: UInt8Array
    problems: dict[int, str]


@dataclass(frozen=True)
class FaceCrops:
    """How images become faces: in which size and colour, and whether the face is found in them first.

    Attributes:
        size: side in pixels.
        color: `gray` or `rgb`.
        find_faces: whether they are photographs, in which the largest face counts, or the one in the box that the data set gives.
        geometry: how much of a face's surroundings a model wants to see.
    """

    size: int
    color: str = GRAY
    find_faces: bool = False
    geometry: CropGeometry = DEFAULT_CROP

    def cut(self, image: DecodedImage, box: tuple[float, float, float, float] | None, detector: FaceDetector | None) -> UInt8Array:
        """The face: (size, size, 3) BGR uint8, or the whole image where neither a box is given nor a face to be found.

        Raises:
            ImageError: there is no face.
        """
        where = None if box is None else Detection(tuple(value / image.scale for value in box), _LEVEL, 1.0)  # type: ignore[arg-type]  # four stay four
        face, geometry = where, _AS_GIVEN
        if detector is not None:
            found, _ = detector.detect(image.pixels)
            if where is not None:
                found = sorted((one for one in found if _overlap(one, where) >= MIN_OVERLAP), key=lambda one: -_overlap(one, where))
            if found:
                face, geometry = found[0], self.geometry
            elif where is None:
                raise ImageError(Status.NO_FACE, "No face was found in it.")
        if face is None:
            return image.pixels
        crop = crop_face(image.pixels, face, self.size, geometry, RGB)
        return np.asarray(cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), np.uint8)


_AS_GIVEN = CropGeometry(scale=1.0, shift_y=0.0, rotation=0.0)  # for the boxes of a data set
_LEVEL = np.array([[1, 0], [0, 0], [0, 0], [0, 0], [0, 0]], np.float32)  # points of a face whose eyes are taken for level


def _overlap(first: Detection, second: Detection) -> float:
    """Intersection over union."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = first.bbox, second.bbox
    width, height = min(ax + aw, bx + bw) - max(ax, bx), min(ay + ah, by + bh) - max(ay, by)
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / (aw * ah + bw * bh - shared)


def read_images(storage: Storage, samples: Sequence[Sample], crops: FaceCrops, keep_images: bool = True) -> DecodedImages:
    """Read all samples; memory holds the result and a few files at a time.

    Raises:
        StorageError: nothing can be read with these credentials or from this bucket.
    """
    shape = (len(samples), crops.size, crops.size, *((3,) if crops.color == RGB else ()))
    images = empty_images(shape) if keep_images else None
    thumbnails = np.zeros((len(samples), THUMBNAIL, THUMBNAIL), np.uint8)
    faces = DecodedImages(images, [b""] * len(samples), [b""] * len(samples), thumbnails, {})
    options = LabelingOptions()
    detector = FaceDetector(options.detector_side, options.min_face_score, threads=1) if crops.find_faces else None

    def read_chunk(start: int) -> None:
        for position in range(start, min(start + CHUNK, len(samples))):
            try:
                content, pixels = _read(storage, samples[position], crops, detector)
            except ImageError as error:
                faces.problems[position] = str(error)
                continue
            faces.contents[position] = hashlib.sha256(content).digest()
            faces.pixels[position] = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
            thumbnails[position] = _fit(pixels, THUMBNAIL, GRAY)
            if images is not None:
                images[position] = _fit(pixels, crops.size, crops.color)

    remote = any(sample.entry and is_remote(sample.entry.image_uri) for sample in samples[:1])
    with ThreadPoolExecutor(REMOTE_READERS if remote else FILE_READERS) as pool:
        for _ in pool.map(read_chunk, range(0, len(samples), CHUNK)):
            pass
    return faces


def _read(storage: Storage, sample: Sample, crops: FaceCrops, detector: FaceDetector | None) -> tuple[bytes, UInt8Array]:
    """The bytes, and the upright pixels (h, w, 3) BGR of a file, (h, w) of a row; a large JPEG is reduced while it is decoded."""
    if sample.row is not None:
        if sample.row.pixels is None:
            raise ImageError(Status.UNDECODABLE, "Its pixels are no square of numbers from 0 to 255.")
        return sample.row.pixels.tobytes(), sample.row.pixels
    if sample.load is not None:
        content = sample.load()
        if len(content) > MAX_FILE_MEGABYTES * 1e6:
            raise ImageError(Status.TOO_LARGE, f"It has {len(content):,} bytes, the limit is {MAX_FILE_MEGABYTES:g} megabytes.")
    elif sample.entry is not None:
        content = storage.read_image(sample.entry, MAX_FILE_MEGABYTES)
    else:
        raise ValueError(f"{sample.name} has nothing to be read")
    if sample.box is None and detector is None:
        return content, decode(content, MAX_MEGAPIXELS, 4 * crops.size).pixels
    face = crops.cut(decode(content, MAX_MEGAPIXELS, PHOTO_PIXELS), sample.box, detector)
    return content + repr(sample.box).encode() + face.tobytes(), face


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
