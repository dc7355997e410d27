"""From images to faces with emotions, in plain Python: what one process does, alone or inside a cluster."""

from __future__ import annotations

import hashlib
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast, overload

import cv2
import numpy as np

from fer_ray.config.crop import CropGeometry
from fer_ray.config.flat import did_you_mean
from fer_ray.config.jobs.label import LabelingOptions
from fer_ray.emotions import UNKNOWN
from fer_ray.errors import FerRayError, ImageError, UsageError
from fer_ray.label.result import Face, LabeledImage, LabeledImages
from fer_ray.models import bundle
from fer_ray.schema import Status
from fer_ray.typing import Float32Array, Float64Array, UInt8Array
from fer_ray.vision import quality
from fer_ray.vision.capture import NOTHING_RECORDED, Capture
from fer_ray.vision.crop import KeptCrop, crop_face, keep_crop, sharpness
from fer_ray.vision.decode import DecodedImage
from fer_ray.vision.detector import Detection, FaceDetector
from fer_ray.vision.source import ImageLike, Source, decode_source, is_many, read_source, source_of, uri_of_source


@dataclass(frozen=True)
class _Prepared:
    """An image after decoding and detection: its label without emotions, and its faces with their crops."""

    image: LabeledImage
    scale: float = 1.0
    detections: Sequence[Detection] = ()
    crops: Sequence[UInt8Array] = ()
    kept: Sequence[KeptCrop | None] = ()


@dataclass(frozen=True)
class _Asked:
    """Images whose crops the model was given: what is seen of each face (n, outputs), and what waits for the model's answer."""

    prepared: Sequence[_Prepared]
    seen: Float32Array
    answer: Callable[[], Float64Array] | None


class Classifier(Protocol):
    """A model as the labeler needs it: a `Bundle`, or one that calculates elsewhere and has `ask`, which does not wait for the answer."""

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

    def probabilities(self, images: UInt8Array, seen: Float32Array) -> Float64Array:
        """Calibrated probabilities (n, classes) of crops (n, s, s) gray or (n, s, s, 3) RGB, of which `vision.quality` said `seen`."""


class Labeler:
    """Finds the faces of images and labels their apparent emotions; load it once and give it many images at a time.

    Example:
        labeler = Labeler(min_face_size=40)
        image = labeler.label("one.jpg")
        for face in image.faces:
            print(face.bbox, face.emotion, face.confidence)
        labeler.label(["one.jpg", "two.jpg"]).to_pandas()
    """

    def __init__(
        self,
        model: str | Path | Classifier | None = None,
        options: LabelingOptions | None = None,
        threads: int | None = None,
        **settings: float,
    ) -> None:
        """Load the model.

        Args:
            model: `ferplus` (the default), `fer2013`, the folder of a bundle, or a model that is loaded already.
            options: what is looked for and how much of an image is read.
            threads: how many threads OpenCV and ONNX Runtime use in this process (default: one for each CPU).
            settings: fields of `LabelingOptions`, which change `options`: `min_face_size=40`.

        Raises:
            BundleError: the model cannot be used.
            UsageError: there is no such setting, or it has an impossible value.
        """
        self.options = _changed(options or LabelingOptions(), settings)
        if threads:
            cv2.setNumThreads(threads)
        if isinstance(model, str | Path | None):
            model = bundle.load(bundle.resolve(str(model or "")), self.options.flip, threads or 0)
        self._model = model
        self.crop_pixels = 0  # the longest side of the crop that is kept of each face for later models; 0 for none
        self._detector = FaceDetector(self.options.detector_side, self.options.min_face_score, threads)
        self.stage_seconds: defaultdict[str, float] = defaultdict(float)  # spent so far on decoding, detecting, classifying
        self.model_version = self._model.model_version
        self.classes = self._model.classes

    @overload
    def label(self, images: ImageLike) -> LabeledImage: ...  # type: ignore[overload-overlap]  # a str is an iterable of str too
    @overload
    def label(self, images: Iterable[ImageLike]) -> LabeledImages: ...
    def label(self, images: ImageLike | Iterable[ImageLike]) -> LabeledImage | LabeledImages:
        """Label one image, or many in their order.

        Args:
            images: a path, an s3:// address, the bytes of a file, a file open for reading bytes, a Pillow image, an array of
                uint8: (h, w) gray, (h, w, 3) RGB, (h, w, 4) RGBA; or many of them in a list or another iterable. An array
                (n, h, w, 3) is many images.

        Returns:
            One answer for one image, a list of answers for many. An image that cannot be read or decoded has an answer with
            that status and the reason.

        Raises:
            UsageError: something that cannot hold an image; nothing is labeled then.
            StorageError: the store of an address cannot be used as it stands.
        """
        limit = self.options.max_file_megabytes
        if not is_many(images):
            return self._label_and_remember([source_of(images, limit)])[0]
        return self._label_and_remember([source_of(image, limit, f"Image {index}") for index, image in enumerate(images)])

    def label_sources(self, sources: Iterable[Source]) -> list[LabeledImage]:
        """Label checked images one after the other without holding on to them; one answer each, in their order.

        An ImageError stands for an image that whoever fetched the bytes could not get, and becomes the answer that it describes.
        """
        return [image for batch in self.label_batches([sources]) for image in batch]

    def label_batches(self, batches: Iterable[Iterable[Source]]) -> Iterator[list[LabeledImage]]:
        """The same batch by batch; a model that calculates elsewhere does so for one while the faces of the next are found."""
        asked: _Asked | None = None
        for sources in batches:
            following = self._ask([self._prepare(source) for source in sources])
            if asked is not None:
                yield self._finish_all(asked)
            asked = following
        if asked is not None:
            yield self._finish_all(asked)

    def _ask(self, prepared: Sequence[_Prepared]) -> _Asked:
        """Look at the crops and give them to the model. A model in this process calculates only when it is waited for."""
        crops = [crop for one in prepared for crop in one.crops]
        if not crops:
            return _Asked(prepared, np.empty((0, len(quality.OUTPUTS)), np.float32), None)
        stacked = np.stack(crops)
        with self._timed("classify"):
            seen = quality.describe(stacked)
        ask = getattr(self._model, "ask", None) or partial(partial, self._model.probabilities)
        return _Asked(prepared, seen, cast("Callable[[], Float64Array]", ask(stacked, seen)))

    def _finish_all(self, asked: _Asked) -> list[LabeledImage]:
        with self._timed("classify"):
            probabilities = asked.answer() if asked.answer else ()
        columns = (quality.probability(asked.seen, name).tolist() for name in quality.PROBABILITIES)
        faces = zip(probabilities, *columns, strict=True)
        return [self._finish(one, [next(faces) for _ in one.crops]) for one in asked.prepared]

    def _label_and_remember(self, sources: Sequence[Source]) -> LabeledImages:
        return LabeledImages(
            replace(image, image_uri=uri_of_source(source), _read_again=partial(_read_whole, source, self.options))
            for source, image in zip(sources, self.label_sources(sources), strict=True)
        )

    def _prepare(self, source: Source) -> _Prepared:
        content: bytes | None = None
        try:
            content = read_source(source, self.options.max_file_megabytes)
            with self._timed("decode"):
                decoded = decode_source(source, content, self.options.max_megapixels, self.options.detector_side * 3 // 2)
            return self._find_faces(decoded, content)
        except ImageError as error:
            return _Prepared(_described(content, Status(error.status), str(error)))
        except FerRayError:
            raise  # no trouble of this image: the store cannot be used
        except Exception as error:  # noqa: BLE001 - the boundary of one image: whatever it sets off becomes its row, not the end of the run
            reason = " ".join(f"{type(error).__name__} {error}".split())[:300]
            return _Prepared(_described(content, Status.UNDECODABLE, f"The image could not be processed ({reason})."))

    def _find_faces(self, decoded: DecodedImage, content: bytes | None) -> _Prepared:
        with self._timed("detect"):
            found, doubtful = self._detector.detect(decoded.pixels)
        faces = [face for face in found if max(face.bbox[2:]) * decoded.scale >= self.options.min_face_size]
        left_out = doubtful + len(found) - len(faces)
        status = Status.OK if faces else Status.NO_FACE
        image = replace(
            _described(content, status, None, width=decoded.width, height=decoded.height, left_out_count=left_out),
            format=decoded.format,
            **self._recorded(decoded.capture),
        )
        crops = [crop_face(decoded.pixels, face, self._model.image_size, self._model.crop, self._model.color) for face in faces]
        kept = [keep_crop(decoded.pixels, face, self.crop_pixels) if self.crop_pixels else None for face in faces]
        return _Prepared(image, decoded.scale, faces, crops, kept)

    def _recorded(self, capture: Capture) -> dict[str, Any]:
        """What the camera recorded, without the place unless that was asked for."""
        known = asdict(capture) if capture is not NOTHING_RECORDED else {}
        return known if self.options.location else known | dict.fromkeys(("latitude", "longitude"))

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stage_seconds[stage] += time.perf_counter() - started

    def _finish(self, prepared: _Prepared, said: list[tuple[Float64Array, float, float]]) -> LabeledImage:
        """The image with its faces; `said` has the probabilities, the quality and the occlusion of each."""
        image = prepared.image
        for detection, crop, kept, (row, readable, occluded) in zip(prepared.detections, prepared.crops, prepared.kept, said, strict=True):
            best = int(row.argmax())
            confidence = float(row[best])
            image.faces.append(
                Face(
                    bbox=_clipped(detection.bbox, prepared.scale, image.width or 0, image.height or 0),
                    detection_score=detection.score,
                    landmarks=detection.landmarks * np.float32(prepared.scale),
                    sharpness=sharpness(crop),
                    emotion=self.classes[best] if confidence >= self.options.unknown_below else UNKNOWN,
                    confidence=confidence,
                    probabilities=dict(zip(self.classes, row.tolist(), strict=True)),
                    kept=kept,
                    quality=readable,
                    occluded=occluded,
                )
            )
        return image


def _described(
    content: bytes | None, status: Status, error: str | None, width: int | None = None, height: int | None = None, left_out_count: int = 0
) -> LabeledImage:
    digest = None if content is None else hashlib.sha256(content).hexdigest()
    size = None if content is None else len(content)
    return LabeledImage(status, error, width, height, size, digest, left_out_count=left_out_count)


def _changed(options: LabelingOptions, settings: dict[str, float]) -> LabelingOptions:
    known = [field.name for field in fields(LabelingOptions)]
    for name in settings:
        if name not in known:
            raise UsageError(f"The labeler has no setting {name}{did_you_mean(name, known)} LabelingOptions lists them.")
    return replace(options, **settings)  # type: ignore[arg-type]  # checked there


def _read_whole(source: Source, options: LabelingOptions) -> DecodedImage:
    """The image once more, in full size."""
    content = read_source(source, options.max_file_megabytes)
    return decode_source(source, content, options.max_megapixels, sys.maxsize)


def _clipped(bbox: tuple[float, float, float, float], scale: float, width: int, height: int) -> tuple[int, int, int, int]:
    """Whole pixels of the original inside its frame, at least one each way."""
    left, top, right, bottom = (round(v * scale) for v in (bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3]))
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return left, top, max(min(right, width) - left, 1), max(min(bottom, height) - top, 1)
