"""How good the labels are: where the crop should lie, how many faces are found, and how many emotions are right.

    .venv/bin/python benchmarks/quality.py DATA [--crops]

DATA holds `fer2013`, `labeled_photos`, `lfw_photos` and `crowd_photos`, each as a folder or a zip, with the CSV files
beside them. With --crops, the variants of the crop are compared on the press photographs of `labeled_photos`; film stills
choose nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from fer_ray import Labeler
from fer_ray.config.crop import CropGeometry
from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.jobs.label import LabelingOptions
from fer_ray.data.dataset import load_dataset
from fer_ray.models import bundle
from fer_ray.models.calibration import calibrate
from fer_ray.schema import Status
from fer_ray.vision.crop import crop_face
from fer_ray.vision.decode import decode
from fer_ray.vision.detector import FaceDetector

sys.path.append(str(Path(__file__).parents[1] / "tools"))  # what measures photographs is shared with the model card there

from photographs import (
    PLACINGS,
    SOURCES,
    SURE,
    WEARING,
    agreement,
    crowds,
    read_rows,
    unpacked,
    validation_faces,
    whole_way,
    worn,
)


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
    rows = [row for row in rows if row["label_source"] == "api"]
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


def print_photographs(labeler: Labeler, photos: Path, rows: list[dict[str, str]]) -> None:
    for source, words in SOURCES.items():
        seen = agreement(labeler, photos, rows, source)
        print(
            f"  labeled_photos, {words}: agrees in {seen.agreed}, seven classes, end to end; said {seen.confidence:.1%}, ECE {seen.ece:.3f}"
        )


def print_crowds(labeler: Labeler, photos: Path, rows: list[dict[str, str]]) -> None:
    for prefix in ("masks_", "wider_"):
        seen = crowds(labeler, photos, rows, prefix)
        print(
            f"crowd_photos {prefix}*: found {seen.found} of {seen.found.of} boxes of 24 px and more; false {seen.false} of {seen.false.of}"
        )
    for label, seen_of in worn(labeler, photos, rows).items():
        said = ", ".join(f"{emotion} {count}" for emotion, count in seen_of.emotions.most_common())
        sure = f"neutral with {SURE:g} and more: {seen_of.surely_neutral}; said to be covered: {seen_of.covered}"
        print(f"  {seen_of.faces} faces with {WEARING[label]}: {said}; {sure}")


def print_whole_way(labeler: Labeler, data: Path, fer2013: Path) -> None:
    faces, labels = validation_faces(data, fer2013)
    for placing in PLACINGS:
        seen = whole_way(labeler, faces, labels, placing)
        print(f"FER+ validation faces in frames, {placing}: found {seen.found}, labeled right {seen.right} of {len(labels):,}")


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
        labeled = read_rows(data / "labeled_photos_sources.csv")
        if arguments.crops:
            print_frame(folders["fer2013"])
            compare_crops(folders["labeled_photos"], labeled)
        for name in bundle.BUNDLED:
            print_validation(name, data, folders["fer2013"])
            print_photographs(Labeler(name), folders["labeled_photos"], labeled)
        labeler = Labeler()
        print(f"default model {labeler.model_version}, {LabelingOptions().detector_version}")
        portraits = labeler.label(sorted(folders["lfw_photos"].iterdir()))
        print(f"lfw_photos: a face in {np.mean([image.status == Status.OK for image in portraits]):.2%} of {len(portraits)}")
        print_crowds(labeler, folders["crowd_photos"], read_rows(data / "crowd_photos.csv"))
        print_whole_way(labeler, data, folders["fer2013"])


if __name__ == "__main__":
    main()
