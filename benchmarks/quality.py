"""How good the labels are: where the crop should lie, how many faces are found, and how many emotions are right.

    .venv/bin/python benchmarks/quality.py DATA [--crops]

DATA holds `fer2013`, `labeled_photos`, `lfw_photos` and `crowd_photos`, each as a folder or a zip, with the CSV files
beside them. With --crops, the variants of the crop are compared on `labeled_photos`: that is how the defaults were chosen.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import zipfile
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np

from fer_ray import Labeler
from fer_ray.config.crop import CropGeometry
from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.label import LabelingOptions
from fer_ray.data.dataset import load_dataset
from fer_ray.models import bundle
from fer_ray.models.calibration import calibrate
from fer_ray.schema import Status
from fer_ray.vision.crop import crop_face
from fer_ray.vision.decode import decode
from fer_ray.vision.detector import FaceDetector

Box = tuple[float, float, float, float]


def unpacked(data: Path, name: str, scratch: Path) -> Path:
    if (data / name).is_dir():
        return data / name
    with zipfile.ZipFile(data / f"{name}.zip") as archive:
        archive.extractall(scratch)
    return scratch / name


def read_rows(file: Path) -> list[dict[str, str]]:
    with file.open() as table:
        return list(csv.DictReader(table))


def print_frame(fer2013: Path) -> None:
    """Where the detector's box lies in FER-2013's own frames, and the crop that follows from it."""
    config = LabelingOptions()
    detector = FaceDetector(config.detector_side, config.min_face_score)
    boxes = []
    for file in sorted(fer2013.glob("validation/*/*.png"))[::6]:
        gray = np.asarray(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE), np.uint8)
        padded = cv2.copyMakeBorder(cv2.resize(gray, (192, 192), interpolation=cv2.INTER_CUBIC), 96, 96, 96, 96, cv2.BORDER_REPLICATE)
        faces, _ = detector.detect(np.asarray(cv2.cvtColor(padded, cv2.COLOR_GRAY2BGR), np.uint8))
        if faces:
            boxes.append((np.array(faces[0].bbox) - [96, 96, 0, 0]) / 192)
    x, y, width, height = np.median(boxes, axis=0)
    scale = 1 / np.sqrt(width * height)
    print(f"FER-2013 frames: box at {x:.3f}, {y:.3f}, {width:.3f} x {height:.3f} of the frame, {len(boxes)} found", end="; ")
    print(f"so a crop of scale {scale:.3f}, shift {0.5 - x - width / 2:.3f}, {0.5 - y - height / 2:.3f}")


def compare_crops(photos: Path, rows: list[dict[str, str]]) -> None:
    config, model = LabelingOptions(), bundle.load(bundle.resolve(bundle.DEFAULT))
    detector = FaceDetector(config.detector_side, config.min_face_score)
    images = [decode((photos / row["image"]).read_bytes(), 100, 720).pixels for row in rows]
    faces = [next(iter(detector.detect(image)[0]), None) for image in images]
    truth = np.array([model.classes.index(row["emotion"]) for row in rows])

    def accuracy(geometry: CropGeometry) -> float:
        found = [i for i, face in enumerate(faces) if face]
        crops = [crop_face(images[i], face, model.image_size, geometry) for i, face in enumerate(faces) if face]
        return float((model.logits(np.stack(crops)).argmax(1) == truth[found]).sum() / len(truth))

    for scale in (0.9, 1.0, 1.05, 1.13, 1.2, 1.3, 1.4):
        values = [f"rotation {r:g}: {accuracy(CropGeometry(scale=scale, rotation=r)):.1%}" for r in (0.0, 0.5, 1.0)]
        print(f"  scale {scale:.2f}  " + "  ".join(values))
    for shift in (-0.06, -0.03, 0.0, 0.0275, 0.05, 0.08):
        values = [f"rotation {r:g}: {accuracy(CropGeometry(shift_y=shift, rotation=r)):.1%}" for r in (0.0, 1.0)]
        print(f"  shift_y {shift:.3f}  " + "  ".join(values))


def print_emotions(labeler: Labeler, photos: Path, rows: list[dict[str, str]]) -> None:
    images = labeler.label([photos / row["image"] for row in rows])
    right = [bool(image.faces) and image.faces[0].emotion == row["emotion"] for image, row in zip(images, rows, strict=True)]
    found = np.mean([bool(image.faces) for image in images])
    print(f"labeled_photos: {np.mean(right):.1%} of {len(rows)} agree with their labels, seven classes, end to end; a face in {found:.1%}")


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def print_crowds(labeler: Labeler, photos: Path, rows: list[dict[str, str]], prefix: str) -> None:
    truth: dict[str, list[Box]] = defaultdict(list)
    for row in rows:
        if row["image"].startswith(prefix):
            truth[row["image"]].append((float(row["x"]), float(row["y"]), float(row["width"]), float(row["height"])))
    found = wanted = false = drawn = 0
    for name, image in zip(truth, labeler.label([photos / name for name in truth]), strict=True):
        boxes: list[Box] = [face.bbox for face in image.faces]
        free = set(range(len(boxes)))
        for box in sorted(truth[name], key=lambda b: -b[3]):
            best = max(free, key=lambda i: overlap(boxes[i], box), default=None)
            hit = best is not None and overlap(boxes[best], box) >= 0.4
            if hit and best is not None:
                free.remove(best)
            if box[3] >= 24:
                wanted, found = wanted + 1, found + hit
        false, drawn = false + len(free), drawn + len(boxes)
    print(
        f"crowd_photos {prefix}*: {found / wanted:.1%} of {wanted} boxes of 24 px and more, {false / drawn:.1%} of {drawn} found are false"
    )


def print_validation(name: str, data: Path, fer2013: Path) -> None:
    """A bundled model on the validation split, from the saved weights: FER-2013's own labels, or the majority of FER+ votes."""
    votes = tuple(str(data / f"ferplus_{split}.csv") for split in ("train", "validation")) if name == "ferplus" else ()
    model = bundle.load(bundle.resolve(name))
    config = DatasetConfig(str(fer2013), ferplus=votes, keep_duplicates=True)
    both = load_dataset(config, model.image_size, model.color)
    faces = both.validation
    logits = model.logits(faces.images)
    temperature, figures = calibrate(logits, faces.labels)
    print(f"{name}, {model.model_version}, on {len(faces):,} validation faces: accuracy {figures['accuracy']:.2%}", end=", ")
    print(f"macro F1 {figures['macro_f1']:.2%}, ECE {figures['ece_held_out']:.4f} on the half that did not fit the temperature", end="")
    print(f" (kept: {model.temperature:.4f}, found anew: {temperature:.4f})")
    seen = {image.tobytes() for image in both.train.images}
    new = np.array([image.tobytes() not in seen for image in faces.images])
    right = logits.argmax(1) == faces.labels
    print(f"  on the {new.sum():,} of them that do not stand in FER-2013's training split as well: {right[new].mean():.2%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--crops", action="store_true")
    arguments = parser.parse_args()
    data = arguments.data
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: unpacked(data, name, Path(scratch)) for name in ("fer2013", "labeled_photos", "lfw_photos", "crowd_photos")}
        labeled, crowds = read_rows(data / "labeled_photos.csv"), read_rows(data / "crowd_photos.csv")
        if arguments.crops:
            print_frame(folders["fer2013"])
            compare_crops(folders["labeled_photos"], labeled)
        for name in bundle.BUNDLED:
            print_validation(name, data, folders["fer2013"])
            print_emotions(Labeler(name), folders["labeled_photos"], labeled)
        labeler = Labeler()
        print(f"default model {labeler.model_version}, {LabelingOptions().detector_version}")
        portraits = labeler.label(sorted(folders["lfw_photos"].iterdir()))
        print(f"lfw_photos: a face in {np.mean([image.status == Status.OK for image in portraits]):.2%} of {len(portraits)}")
        for prefix in ("masks_", "wider_"):
            print_crowds(labeler, folders["crowd_photos"], crowds, prefix)


if __name__ == "__main__":
    main()
