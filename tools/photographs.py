"""What the labels of whole photographs are worth: measurements for `quality.py` and the model card, which choose nothing.

The labels of `labeled_photos` are no person's: 485 are answers of Microsoft's Emotion API of 2016 on press photographs, 131 one
student's labels of film stills, which follow no face. Comparing with the API's answers is allowed, training on them is not.
"""

from __future__ import annotations

import csv
import math
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from fer_ray import Labeler
from fer_ray.config.crop import CropGeometry
from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.jobs.label import LabelingOptions
from fer_ray.data import demo_photos
from fer_ray.data.dataset import load_dataset
from fer_ray.label.result import Face
from fer_ray.models.metrics import BINS, wilson
from fer_ray.typing import BoolArray, Float64Array, UInt8Array
from fer_ray.vision.detector import FaceDetector
from fer_ray.vision.pose import head_pose

Box = tuple[float, float, float, float]

SOURCES = {"api": "Microsoft's Emotion API of 2016, on press photographs", "film_still": "one student, on film stills of about 100 px"}
WEARING = {"con_mascarilla": "a mask", "mascarilla_mal_puesta": "a mask worn wrong", "sin_mascarilla": "no mask"}
SURE = 0.8  # a confidence that people act on
MIN_BOX = 24  # pixels: the height of the smallest box in a crowd that must be found
SAME = 0.4  # intersection over union of two boxes of one face
SIDE = 48  # pixels of FER-2013's pictures
EVERY_TRAINING = 20  # faces of training that are looked at for how they are turned
TURNED = (30, 60)  # degrees
EVERY = 3  # faces of validation that are placed in frames
FRAME = (640, 480)  # pixels
INSIDE = (0.45, 0.56)  # of the side: from a face's middle to where the head that it lies on begins to show, and shows alone


def unpacked(data: Path, name: str, scratch: Path) -> Path:
    if (data / name).is_dir():
        return data / name
    with zipfile.ZipFile(data / f"{name}.zip") as archive:
        archive.extractall(scratch)
    return scratch / name


def read_rows(file: Path) -> list[dict[str, str]]:
    with file.open() as table:
        return list(csv.DictReader(table))


@dataclass(frozen=True)
class Share:
    """So many of so many, with Wilson's interval of 95 %."""

    count: int
    of: int

    def __str__(self) -> str:
        low, high = wilson(self.count / self.of, self.of)
        return f"{100 * self.count / self.of:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


@dataclass(frozen=True)
class Agreement:
    """How the labels of one source agree with ours, seven classes: a photograph without a face agrees with none."""

    agreed: Share
    found: Share
    confidence: float
    ece: float


def agreement(labeler: Labeler, photos: Path, rows: Sequence[dict[str, str]], source: str) -> Agreement:
    """Of the largest face, end to end.

    Args:
        labeler: The model.
        photos: The folder of `labeled_photos`.
        rows: Those of `labeled_photos_sources.csv`.
        source: One of SOURCES.
    """
    chosen = [row for row in rows if row["label_source"] == source]
    images = labeler.label([photos / row["image"] for row in chosen])
    right = np.array([bool(image.faces) and image.faces[0].emotion == row["emotion"] for image, row in zip(images, chosen, strict=True)])
    found = np.array([bool(image.faces) for image in images])
    confidence = np.array([image.faces[0].confidence for image in images if image.faces])
    return Agreement(
        Share(int(right.sum()), len(chosen)), Share(int(found.sum()), len(chosen)), float(confidence.mean()), _ece(confidence, right[found])
    )


def _ece(confidence: Float64Array, correct: BoolArray) -> float:
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(bins, weights=confidence - correct)).sum() / len(correct))


@dataclass(frozen=True)
class Crowds:
    """Faces found of those that people drew boxes around, and what was found beside them."""

    found: Share
    false: Share


def crowds(labeler: Labeler, photos: Path, rows: Sequence[dict[str, str]], prefix: str) -> Crowds:
    """Recall in the photographs of `crowd_photos` whose names begin so."""
    found = wanted = false = drawn = 0
    for truth, faces in _matched(labeler, photos, rows, prefix):
        found += sum(face is not None for row, face in truth if float(row["height"]) >= MIN_BOX)
        wanted += sum(float(row["height"]) >= MIN_BOX for row, _ in truth)
        false += len(faces) - sum(face is not None for _, face in truth)
        drawn += len(faces)
    return Crowds(Share(found, wanted), Share(false, drawn))


@dataclass(frozen=True)
class Worn:
    """What the model says of faces that wear a mask, or none."""

    faces: int
    emotions: Counter[str]
    surely_neutral: Share
    covered: Share  # said to be so: `occluded` of a half and more
    confidence: float


def worn(labeler: Labeler, photos: Path, rows: Sequence[dict[str, str]]) -> dict[str, Worn]:
    """By how `masks_*` of `crowd_photos` say that the mask is worn; faces of 24 pixels and more that are found."""
    faces: dict[str, list[Face]] = defaultdict(list)
    for truth, _ in _matched(labeler, photos, rows, "masks_"):
        for row, face in truth:
            if face is not None and float(row["height"]) >= MIN_BOX:
                faces[row["label"]].append(face)
    return {
        label: Worn(
            len(some),
            Counter(face.emotion for face in some),
            Share(sum(face.emotion == "neutral" and face.confidence >= SURE for face in some), len(some)),
            Share(sum((face.occluded or 0) >= 0.5 for face in some), len(some)),
            float(np.mean([face.confidence for face in some])),
        )
        for label, some in ((label, faces[label]) for label in WEARING)
    }


def _matched(
    labeler: Labeler, photos: Path, rows: Sequence[dict[str, str]], prefix: str
) -> Iterator[tuple[list[tuple[dict[str, str], Face | None]], list[Face]]]:
    """Of each photograph the rows, largest first, each with the face that was found for it, and all faces."""
    by_image: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        if row["image"].startswith(prefix):
            by_image[row["image"]].append(row)
    for name, image in zip(by_image, labeler.label([photos / name for name in by_image]), strict=True):
        free, truth = list(image.faces), []
        for row in sorted(by_image[name], key=lambda row: -float(row["height"])):
            box = (float(row["x"]), float(row["y"]), float(row["width"]), float(row["height"]))
            best = max(free, key=lambda face: _overlap(face.bbox, box), default=None)
            if best is not None and _overlap(best.bbox, box) >= SAME:
                free.remove(best)
            else:
                best = None
            truth.append((row, best))
        yield truth, list(image.faces)


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


@dataclass(frozen=True)
class Placing:
    """How faces are placed in a frame of 640 x 480: the side of each in pixels, degrees clockwise, and how many there are."""

    side: int
    angle: float = 0
    many: int = 1

    def __str__(self) -> str:
        turned = f", turned by {self.angle:g} degrees" if self.angle else ""
        return f"{'one' if self.many == 1 else self.many} of {self.side} px{turned}"


PLACINGS = (Placing(192), Placing(96), Placing(48), Placing(32), Placing(96, 15), Placing(96, 30), Placing(96, 45), Placing(96, many=6))


@dataclass(frozen=True)
class Way:
    """What is left at the end of the whole way, from a frame to a label."""

    found: Share
    right: Share


def validation_faces(data: Path, fer2013: Path) -> tuple[UInt8Array, list[str]]:
    """Every third face of validation (n, 48, 48), and what most of the people who voted saw in it."""
    dataset = load_dataset(DatasetConfig(str(fer2013), ferplus=(str(data / "ferplus_validation.csv"),)), SIDE, splits=("validation",))
    faces = dataset.validation
    return faces.images[::EVERY], [dataset.classes[label] for label in faces.labels[::EVERY]]


def whole_way(labeler: Labeler, faces: UInt8Array, labels: Sequence[str], placing: Placing) -> Way:
    """Faces (n, s, s) placed in frames, found again, cut out and labeled; a face that is not found is labeled wrong."""
    found = right = 0
    for start in range(0, len(faces), placing.many):
        image, some = labeler.label(_frame(faces[start : start + placing.many], placing)), labels[start : start + placing.many]
        for centre, label in zip(_centres(len(some)), some, strict=True):
            face = next((face for face in image.faces if _distance(face.bbox, centre) < placing.side / 4), None)
            found += face is not None
            right += face is not None and face.emotion == label
    return Way(Share(found, len(labels)), Share(right, len(labels)))


def _centres(many: int) -> list[tuple[float, float]]:
    columns = math.ceil(math.sqrt(many))
    rows = math.ceil(many / columns)
    return [((place % columns + 0.5) * FRAME[0] / columns, (place // columns + 0.5) * FRAME[1] / rows) for place in range(many)]


def _distance(box: Box, centre: tuple[float, float]) -> float:
    return math.dist((box[0] + box[2] / 2, box[1] + box[3] / 2), centre)


@cache
def _head() -> tuple[UInt8Array, Float64Array, float]:
    """NASA's portrait of Eileen Collins, in the public domain: gray pixels, middle and side of the face as FER-2013 cuts it."""
    path = next(entry.image_uri for entry in demo_photos.images() if "astronaut" in entry.image_uri)
    geometry, (x, y, width, height) = CropGeometry(), Labeler().label(path).faces[0].bbox
    side = math.sqrt(width * height) * geometry.scale
    middle = np.array([x + width / 2 + geometry.shift_x * side, y + height / 2 + geometry.shift_y * side])
    return np.asarray(cv2.imread(path, cv2.IMREAD_GRAYSCALE), np.uint8), middle, side


def _frame(faces: UInt8Array, placing: Placing) -> UInt8Array:
    """Faces on the heads of portraits, side by side: a detector wants more of a person than the square that FER-2013 shows."""
    centres = _centres(len(faces))
    width, height = (round(2 * centres[0][axis]) for axis in (0, 1))
    frame = np.zeros(FRAME[::-1], np.uint8)
    for face, (x, y) in zip(faces, centres, strict=True):
        left, top = round(x - width / 2), round(y - height / 2)
        frame[top : top + height, left : left + width] = _portrait(face, placing, width, height)
    return frame


def _portrait(face: UInt8Array, placing: Placing, width: int, height: int) -> UInt8Array:
    """A face in the middle of so many pixels, on the head, turned with it."""
    portrait, middle, side = _head()
    scale = placing.side / side
    offset = (np.arange(placing.side) + 0.5) / placing.side - 0.5
    inside = np.clip((INSIDE[1] - np.hypot(*np.meshgrid(offset, offset / 1.08))) / (INSIDE[1] - INSIDE[0]), 0, 1)
    pictures = [np.asarray(one, np.float32) for one in (_resized(portrait, scale), _resized(face, placing.side / len(face)), inside)]
    centres = [middle * scale, np.full(2, placing.side / 2), np.full(2, placing.side / 2)]
    borders = [cv2.BORDER_REPLICATE, cv2.BORDER_REPLICATE, cv2.BORDER_CONSTANT]
    head, placed, weight = (
        np.asarray(cv2.warpAffine(pixels, _turn(centre, placing.angle, width, height), (width, height), borderMode=border))
        for pixels, centre, border in zip(pictures, centres, borders, strict=True)
    )
    seam = (weight > 0.05) & (weight < 0.95)
    head = head + (placed[seam].mean() - head[seam].mean())  # in the same light
    return np.asarray(np.clip(placed * weight + head * (1 - weight), 0, 255), np.uint8)


def _resized(pixels: UInt8Array, scale: float) -> UInt8Array:
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA), np.uint8)


def _turn(centre: Float64Array, angle: float, width: int, height: int) -> Float64Array:
    """A point of a picture to the middle of another, and the picture turned clockwise around it."""
    matrix = np.asarray(cv2.getRotationMatrix2D(centre.tolist(), -angle, 1), np.float64)
    matrix[:, 2] += np.array([width / 2, height / 2]) - centre
    return matrix


def turned_away(faces: UInt8Array) -> tuple[Share, dict[int, Share]]:
    """Of training faces (n, 48, 48): in how many the detector finds a face, and how many of these are turned by so many degrees."""
    detector, side, landmarks = FaceDetector(LabelingOptions().detector_side, LabelingOptions().min_face_score), 4 * SIDE, []
    room = side // 2
    for face in faces:
        larger = cv2.resize(face, (side, side), interpolation=cv2.INTER_CUBIC)
        padded = cv2.copyMakeBorder(larger, room, room, room, room, cv2.BORDER_REPLICATE)
        found, _ = detector.detect(np.asarray(cv2.cvtColor(padded, cv2.COLOR_GRAY2BGR), np.uint8))
        landmarks += [found[0].landmarks] if found else []
    yaw = np.abs(head_pose(np.stack(landmarks))[:, 0])
    return Share(len(yaw), len(faces)), {angle: Share(int((yaw > angle).sum()), len(yaw)) for angle in TURNED}
