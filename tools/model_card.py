"""Write docs/model_card.md: what the bundled models are, how they were trained, and how good they are, measured anew.

    .venv/bin/python tools/model_card.py DATA > docs/model_card.md

DATA holds `fer2013`, `labeled_photos`, `crowd_photos` and `lfw_photos`, each as a folder or a zip, with the CSV files beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import photographs

from fer_ray import Labeler
from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.jobs.evaluate import EvaluateConfig
from fer_ray.data.dataset import load_dataset
from fer_ray.evaluate.job import evaluate
from fer_ray.models import bundle, keras_bundle
from fer_ray.models.calibration import calibrate

CARD = Path(__file__).with_name("model_card.md").read_text(encoding="utf-8")


def measured(name: str, data: Path, fer2013: Path, scratch: Path) -> dict[str, Any]:
    """The figures of `fer-ray evaluate --degrade` on the validation split, with the honest ECE and the size."""
    votes = tuple(str(data / f"ferplus_{split}.csv") for split in ("train", "validation")) if name == "ferplus" else ()
    config = DatasetConfig(str(fer2013), ferplus=votes)
    evaluate(EvaluateConfig((name,), str(scratch / name), "validation", degrade=True, data=config))
    figures: dict[str, Any] = json.loads((scratch / name / "evaluation.json").read_text())["models"][0]
    model = bundle.load(bundle.resolve(name))
    faces = load_dataset(config, model.image_size, model.color, ("validation",)).validation
    figures["ece_held_out"] = calibrate(model.logits(faces.images), faces.labels)[1]["ece_held_out"]
    figures["unseen"] = accuracy_on_unseen(model, config)
    figures["megabytes"] = sum(file.stat().st_size for file in Path(bundle.resolve(name)).iterdir()) / 1e6
    figures["parameters"] = keras_bundle.load(bundle.resolve(name)).members[0].network.model.count_params()
    return figures


def accuracy_on_unseen(model: bundle.Bundle[Any], config: DatasetConfig) -> photographs.Share:
    """Accuracy on the validation faces that do not stand in FER-2013's training split as well."""
    both = load_dataset(replace(config, keep_duplicates=True), model.image_size, model.color)
    seen = {image.tobytes() for image in both.train.images}
    faces = both.validation
    right = model.logits(faces.images).argmax(axis=1) == faces.labels
    unseen = [place for place, image in enumerate(faces.images) if image.tobytes() not in seen]
    return photographs.Share(int(right[unseen].sum()), len(unseen))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" if any(line) else "| | |" for line in lines)


def figure_table(figures: Mapping[str, Any]) -> str:
    values, (low, high) = figures["figures"], figures["intervals"]["accuracy"]
    rows = [
        ("model_version", f"`{figures['model_version']}`"),
        ("network", f"{figures['parameters']:,} parameters, {figures['megabytes']:.1f} MB"),
        ("accuracy, validation", f"{values['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%})"),
        ("accuracy without faces that stand in training too", f"{figures['unseen']}, {figures['unseen'].of:,} faces"),
        ("mean recall, macro F1, weighted F1", f"{values['mean_recall']:.1%}, {values['macro_f1']:.1%}, {values['weighted_f1']:.1%}"),
        ("ROC AUC, one class against the rest", f"{values['roc_auc']:.3f}"),
        ("ECE, 15 bins; with a temperature of the other half alone", f"{values['ece']:.3f}; {figures['ece_held_out']:.3f}"),
        ("NLL, Brier score", f"{values['nll']:.3f}, {values['brier']:.3f}"),
    ]
    return table(("", ""), rows)


def class_table(figures: Mapping[str, Any]) -> str:
    rows = [
        (row["class"], f"{row['images']:,}", f"{row['precision']:.3f}", f"{row['recall']:.3f}", f"{row['f1']:.3f}")
        for row in figures["per_class"]
    ]
    return table(("class", "faces", "precision", "recall", "F1"), rows)


def degraded_table(figures: Mapping[str, Any]) -> str:
    rows = []
    for row in figures["degraded"]:
        values, (low, high) = row["figures"], row["intervals"]["accuracy"]
        classes = {one["class"]: one for one in row["per_class"]}
        rows.append(
            (
                row["condition"],
                f"{values['accuracy']:.1%} ({100 * low:.1f} to {100 * high:.1f})",
                f"{values['mean_recall']:.1%}",
                f"{values['confidence']:.1%}",
                f"{values['ece']:.3f}",
                f"{classes['neutral']['predicted'] / row['samples']:.0%}",
                f"{classes['happy']['recall']:.0%}",
            )
        )
    true = (
        next(one["images"] for one in figures["degraded"][0]["per_class"] if one["class"] == "neutral") / figures["degraded"][0]["samples"]
    )
    columns = ("the faces are", "accuracy", "mean recall", "said", "ECE", f"called neutral (true {true:.0%})", "happy found")
    return table(columns, rows)


def sources_table(labelers: Sequence[Labeler], photos: Path, rows: list[dict[str, str]]) -> str:
    lines = []
    for source, words in photographs.SOURCES.items():
        seen = [photographs.agreement(labeler, photos, rows, source) for labeler in labelers]
        cells = [f"{one.agreed}, said {one.confidence:.0%}, ECE {one.ece:.3f}" for one in seen]
        lines.append((words, seen[0].agreed.of, *cells))
    return table(("labels of", "photographs", *(f"`{name}` agrees in" for name in bundle.BUNDLED[::-1])), lines)


def masks_table(labeler: Labeler, photos: Path, rows: list[dict[str, str]]) -> str:
    lines = []
    for label, seen in photographs.worn(labeler, photos, rows).items():
        said = ", ".join(f"{emotion} {count / seen.faces:.0%}" for emotion, count in seen.emotions.most_common(4))
        lines.append((photographs.WEARING[label], seen.faces, said, f"{seen.confidence:.0%}", seen.surely_neutral, seen.covered))
    columns = ("the face wears", "faces", "called", "said", f"neutral with {photographs.SURE:g} and more", "said to be covered")
    return table(columns, lines)


def frames_table(labeler: Labeler, data: Path, fer2013: Path) -> str:
    faces, labels = photographs.validation_faces(data, fer2013)
    rows = []
    for placing in photographs.PLACINGS:
        seen = photographs.whole_way(labeler, faces, labels, placing)
        rows.append((placing, seen.found, seen.right))
    return table(("faces in a frame of 640 x 480", "found", "found and labeled right"), rows)


def detector_table(labeler: Labeler, folders: Mapping[str, Path], rows: list[dict[str, str]]) -> str:
    portraits = labeler.label(sorted(folders["lfw_photos"].iterdir()))
    found = photographs.Share(sum(bool(image.faces) for image in portraits), len(portraits))
    lines: list[tuple[str, object]] = [(f"LFW portraits with a face found, {found.of:,}", found)]
    for prefix, words in (("masks_", "streets, many with masks"), ("wider_", "crowds")):
        seen = photographs.crowds(labeler, folders["crowd_photos"], rows, prefix)
        lines.append((f"{words}: boxes of 24 pixels and more found, {seen.found.of:,}", seen.found))
        lines.append((f"{words}: found faces that are none, {seen.false.of:,}", seen.false))
    return table(("", ""), lines)


def missing_table(fer2013: Path) -> str:
    """What can be told about the training images without asking who is in them."""
    train = load_dataset(DatasetConfig(str(fer2013)), photographs.SIDE, splits=("train",))
    counts = train.train.counts(train.classes)
    found, turned = photographs.turned_away(train.train.images[:: photographs.EVERY_TRAINING])
    rows: list[tuple[str, object]] = [(name, f"{count:,}") for name, count in sorted(counts.items(), key=lambda item: item[1])]
    rows += [("a face that the detector does not find", f"{1 - found.count / found.of:.1%}")]
    rows += [(f"a face turned by more than {angle} degrees", share) for angle, share in turned.items()]
    return table(("training images of", "number or share"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data.resolve()
    card = CARD
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        folders = {
            name: photographs.unpacked(data, name, Path(scratch)) for name in ("fer2013", "labeled_photos", "crowd_photos", "lfw_photos")
        }
        for name in bundle.BUNDLED:
            figures = measured(name, data, folders["fer2013"], Path(scratch))
            card = card.replace(f"<{name} figures>", figure_table(figures)).replace(f"<{name} classes>", class_table(figures))
            card = card.replace(f"<{name} degraded>", degraded_table(figures))
        default, other = Labeler(), Labeler(next(name for name in bundle.BUNDLED if name != bundle.DEFAULT))
        rows = photographs.read_rows(data / "labeled_photos_sources.csv")
        card = card.replace("<sources>", sources_table((default, other), folders["labeled_photos"], rows))
        boxes = photographs.read_rows(data / "crowd_photos.csv")
        card = card.replace("<masks>", masks_table(default, folders["crowd_photos"], boxes))
        card = card.replace("<detector>", detector_table(default, folders, boxes))
        card = card.replace("<frames>", frames_table(default, data, folders["fer2013"]))
        card = card.replace("<missing>", missing_table(folders["fer2013"]))
    print(card, end="")


if __name__ == "__main__":
    main()
