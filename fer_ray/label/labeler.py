"""From images to faces with emotions, in plain Python: what one process does, alone or inside a cluster."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np

from fer_ray.config.crop import CropGeometry
from fer_ray.config.label import LabelingConfig
from fer_ray.errors import ImageError
from fer_ray.io.inputs import read_image_named
from fer_ray.io.storage import Storage
from fer_ray.models import bundle
from fer_ray.models.silence import load_keras
from fer_ray.schema import Status
from fer_ray.typing import Float32Array, Float64Array, UInt8Array
from fer_ray.vision.decode import DecodedImage, decode
from fer_ray.vision.detector import Detection, FaceDetector, crop_face, sharpness

if TYPE_CHECKING:
    from pathlib import Path

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Face:
    """One face. `bbox` is x, y, width, height and `landmarks` (5, 2) float32 points, in pixels of the upright original.

    Landmarks are left eye, right eye, nose, left and right corner of the mouth; left and right are the subject's own.
    `probabilities` are calibrated and add up to 1; `emotion` is the likeliest, `unknown` below the given threshold.
    """

    bbox: tuple[int, int, int, int]
    detection_score: float
    landmarks: Float32Array
    sharpness: float
    emotion: str
    confidence: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class LabeledImage:
    """What became of an image: its status, the faces with the largest first, and how many were too small or too doubtful."""

    status: Status
    error: str | None = None
    width: int | None = None
    height: int | None = None
    size_bytes: int | None = None
    content_sha256: str | None = None
    faces: list[Face] = field(default_factory=list)
    left_out_count: int = 0


@dataclass(frozen=True)
class _Prepared:
    """An image after decoding and detection: its label without emotions, and its faces with their crops."""

    image: LabeledImage
    scale: float = 1.0
    detections: Sequence[Detection] = ()
    crops: Sequence[UInt8Array] = ()


class Classifier(Protocol):
    """A model as the labeler needs it: a `Bundle`, or one that calculates elsewhere."""

    @property
    def image_size(self) -> int: ...
    @property
    def color(self) -> str: ...
    @property
    def crop(self) -> CropGeometry: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def model_version(self) -> str: ...

    def probabilities(self, images: UInt8Array) -> Float64Array:
        """Calibrated probabilities (n, classes) of crops (n, s, s) gray or (n, s, s, 3) RGB."""


class Labeler:
    """Finds the faces of images and labels their apparent emotions; load it once and give it many images at a time.

    Example:
        labeler = Labeler()
        for image in labeler.label(["one.jpg", "two.jpg"]):
            for face in image.faces:
                print(face.bbox, face.emotion, face.confidence)
    """

    def __init__(self, model: str | Classifier | None = None, config: LabelingConfig | None = None, threads: int | None = None) -> None:
        """Load a bundle (the one of the package by default); `threads` bounds what OpenCV and TensorFlow use in this process.

        A model that is loaded already is taken as it is.

        Raises:
            BundleError: the model cannot be used.
        """
        self.config = config or LabelingConfig()
        if threads:
            cv2.setNumThreads(threads)
        self._model = load_model(model or "", self.config.flip, threads) if isinstance(model, str | None) else model
        self._detector = FaceDetector(self.config.detector_side, self.config.min_face_score, threads)
        self.stage_seconds: defaultdict[str, float] = defaultdict(float)  # spent so far on decoding, detecting, classifying
        self.model_version = self._model.model_version
        self.classes = self._model.classes

    def label(self, images: Iterable[str | Path | bytes | UInt8Array | ImageError]) -> list[LabeledImage]:
        """Label paths, s3:// addresses, encoded bytes, or arrays (h, w, 3) RGB or (h, w) gray uint8; one answer each, in their order.

        An ImageError stands for an image that whoever fetched the bytes could not get, and gives the answer that it
        describes. An image that cannot be read or decoded gives an answer with that status and the reason; none raises.
        """
        prepared = [self._prepare(image) for image in images]
        crops = [crop for one in prepared for crop in one.crops]
        with self._timed("classify"):
            probabilities = iter(self._model.probabilities(np.stack(crops)) if crops else ())
        return [self._finish(one, [next(probabilities) for _ in one.crops]) for one in prepared]

    def _prepare(self, image: str | Path | bytes | UInt8Array | ImageError) -> _Prepared:
        content: bytes | None = None
        try:
            if isinstance(image, ImageError):
                raise image
            if isinstance(image, np.ndarray):
                return self._find_faces(_decoded_from_array(image), None)
            content = image if isinstance(image, bytes) else read_image_named(Storage(), str(image), self.config.max_file_megabytes)
            with self._timed("decode"):
                decoded = decode(content, self.config.max_megapixels, self.config.detector_side * 3 // 2)
            return self._find_faces(decoded, content)
        except ImageError as error:
            return _Prepared(_described(content, Status(error.status), str(error)))
        except Exception as error:  # noqa: BLE001 - the boundary of one image: whatever it sets off becomes its row, not the end of the run
            reason = " ".join(f"{type(error).__name__} {error}".split())[:300]
            return _Prepared(_described(content, Status.UNDECODABLE, f"The image could not be processed ({reason})."))

    def _find_faces(self, decoded: DecodedImage, content: bytes | None) -> _Prepared:
        with self._timed("detect"):
            found, doubtful = self._detector.detect(decoded.pixels)
        faces = [face for face in found if max(face.bbox[2:]) * decoded.scale >= self.config.min_face_size]
        left_out = doubtful + len(found) - len(faces)
        status = Status.OK if faces else Status.NO_FACE
        image = _described(content, status, None, width=decoded.width, height=decoded.height, left_out_count=left_out)
        crops = [crop_face(decoded.pixels, face, self._model.image_size, self._model.crop, self._model.color) for face in faces]
        return _Prepared(image, decoded.scale, faces, crops)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stage_seconds[stage] += time.perf_counter() - started

    def _finish(self, prepared: _Prepared, probabilities: list[Float64Array]) -> LabeledImage:
        image = prepared.image
        for detection, crop, row in zip(prepared.detections, prepared.crops, probabilities, strict=True):
            best = int(row.argmax())
            confidence = float(row[best])
            image.faces.append(
                Face(
                    bbox=_clipped(detection.bbox, prepared.scale, image.width or 0, image.height or 0),
                    detection_score=detection.score,
                    landmarks=detection.landmarks * np.float32(prepared.scale),
                    sharpness=sharpness(crop),
                    emotion=self.classes[best] if confidence >= self.config.unknown_below else UNKNOWN,
                    confidence=confidence,
                    probabilities=dict(zip(self.classes, row.tolist(), strict=True)),
                )
            )
        return image


def _described(
    content: bytes | None, status: Status, error: str | None, width: int | None = None, height: int | None = None, left_out_count: int = 0
) -> LabeledImage:
    digest = None if content is None else hashlib.sha256(content).hexdigest()
    size = None if content is None else len(content)
    return LabeledImage(status, error, width, height, size, digest, left_out_count=left_out_count)


def _decoded_from_array(image: UInt8Array) -> DecodedImage:
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or 0 in image.shape:
        reason = f"An array must be (h, w, 3) RGB or (h, w) gray uint8, not {image.shape} {image.dtype}."
        raise ImageError(Status.UNDECODABLE, reason)
    code = cv2.COLOR_GRAY2BGR if image.ndim == 2 else cv2.COLOR_RGB2BGR
    return DecodedImage(np.asarray(cv2.cvtColor(image, code), np.uint8), image.shape[1], image.shape[0])


def _clipped(bbox: tuple[float, float, float, float], scale: float, width: int, height: int) -> tuple[int, int, int, int]:
    """Whole pixels of the original inside its frame, at least one each way."""
    left, top, right, bottom = (round(v * scale) for v in (bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3]))
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return left, top, max(min(right, width) - left, 1), max(min(bottom, height) - top, 1)


def load_model(model: str, flip: bool, threads: int | None = None) -> bundle.Bundle:
    """The bundle of this name or folder; `threads` bounds what TensorFlow uses in this process.

    Raises:
        BundleError: the model cannot be used.
    """
    load_keras()
    if threads:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    return bundle.load(bundle.resolve(model), flip)
