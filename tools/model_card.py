"""Write docs/model_card.md: what the bundled models are, how they were trained, and how good they are, measured anew.

    .venv/bin/python tools/model_card.py DATA > docs/model_card.md

DATA holds `fer2013` and `labeled_photos`, each as a folder or a zip, with the CSV files beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from quality import read_rows, unpacked

from fer_ray import Labeler
from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.evaluate import EvaluateConfig
from fer_ray.data.dataset import load_dataset
from fer_ray.evaluate.job import evaluate
from fer_ray.models import bundle, keras_bundle
from fer_ray.models.calibration import calibrate

CARD = Path(__file__).with_name("model_card.md").read_text(encoding="utf-8")


def measured(name: str, data: Path, fer2013: Path, scratch: Path) -> dict[str, Any]:
    """The figures of `jobs/evaluate.py` on the validation split, with the honest ECE and the size."""
    votes = tuple(str(data / f"ferplus_{split}.csv") for split in ("train", "validation")) if name == "ferplus" else ()
    config = DatasetConfig(str(fer2013), ferplus=votes)
    evaluate(EvaluateConfig((name,), str(scratch / name), "validation", data=config))
    figures: dict[str, Any] = json.loads((scratch / name / "evaluation.json").read_text())["models"][0]
    model = bundle.load(bundle.resolve(name))
    faces = load_dataset(config, model.image_size, model.color, ("validation",)).validation
    figures["ece_held_out"] = calibrate(model.logits(faces.images), faces.labels)[1]["ece_held_out"]
    figures["megabytes"] = sum(file.stat().st_size for file in Path(bundle.resolve(name)).iterdir()) / 1e6
    figures["parameters"] = keras_bundle.load(bundle.resolve(name)).members[0].network.model.count_params()
    return figures


def photographs_right(name: str, photos: Path, rows: list[dict[str, str]]) -> float:
    images = Labeler(name).label([photos / row["image"] for row in rows])
    return float(np.mean([bool(image.faces) and image.faces[0].emotion == row["emotion"] for image, row in zip(images, rows, strict=True)]))


def class_table(figures: dict[str, Any]) -> str:
    rows = [
        f"| {values['class']} | {values['images']:,} | {values['precision']:.3f} | {values['recall']:.3f} | {values['f1']:.3f} |"
        for values in figures["per_class"]
    ]
    return "\n".join(["| class | faces | precision | recall | F1 |", "|---|---|---|---|---|", *rows])


def figure_lines(figures: dict[str, Any], photographs: float) -> str:
    low, high = figures["intervals"]["accuracy"]
    values = figures["figures"]
    return "\n".join(
        [
            "| | |",
            "|---|---|",
            f"| model_version | `{figures['model_version']}` |",
            f"| network | {figures['parameters']:,} parameters, {figures['megabytes']:.1f} MB |",
            f"| accuracy, validation | {values['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%}) |",
            f"| macro F1, weighted F1 | {values['macro_f1']:.1%}, {values['weighted_f1']:.1%} |",
            f"| ROC AUC, one class against the rest | {values['roc_auc']:.3f} |",
            f"| ECE, 15 bins, temperature fitted on the other half | {figures['ece_held_out']:.3f} |",
            f"| NLL, Brier score | {values['nll']:.3f}, {values['brier']:.3f} |",
            f"| labeled photographs, seven classes, end to end | {photographs:.1%} |",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    card = CARD
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        folders = {name: unpacked(data, name, Path(scratch)) for name in ("fer2013", "labeled_photos")}
        rows = read_rows(data / "labeled_photos.csv")
        for name in bundle.BUNDLED:
            figures = measured(name, data, folders["fer2013"], Path(scratch))
            photographs = photographs_right(name, folders["labeled_photos"], rows)
            card = card.replace(f"<{name} figures>", figure_lines(figures, photographs))
            card = card.replace(f"<{name} classes>", class_table(figures))
    print(card, end="")


if __name__ == "__main__":
    main()
