"""The page about an evaluation: one HTML file with everything in it. `templates/evaluation.html.j2` says how it looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

import fer_ray
from fer_ray.models.metrics import LESS_IS_BETTER
from fer_ray.reporting.html import NOTHING, render
from fer_ray.text import percent

FIGURES = {
    "accuracy": ("Accuracy", "share of faces labeled right"),
    "macro_f1": ("Macro F1", "mean F1 of the classes"),
    "weighted_f1": ("Weighted F1", "mean F1, weighted by faces"),
    "roc_auc": ("ROC AUC", "one class against the rest, mean of the classes"),
    "ece": ("ECE", "gap between confidence and accuracy, 15 bins; less is better"),
    "nll": ("NLL", "mean of -log p of the label; less is better"),
    "brier": ("Brier score", "squared error of the probabilities; less is better"),
}
CLASS_FIGURES = ("precision", "recall", "f1", "roc_auc")
WEBP_QUALITY = 80  # of pictures in the page; the PNG files beside it are exact
SMALLEST_P = 1e-4  # below, a p-value is said to be below


def evaluation_page(content: Mapping[str, Any], pictures: Mapping[str, Mapping[str, bytes]], comparison: bytes | None) -> str:
    """The page.

    Args:
        content: What `evaluation.json` holds.
        pictures: PNGs by the model's name and the file's.
        comparison: The picture of several models side by side.
    """
    models = content["models"]
    return render(
        "fer_ray.evaluate",
        "evaluation.html.j2",
        styles=("evaluation.css",),
        scripts=("base.js",),
        title="Evaluation of " + ", ".join(str(one["name"]) for one in models),
        links=[(name, name) for name in ("evaluation.json", *(["predictions.parquet"] if len(models) == 1 else []))],
        content=content,
        models=[_model(one, pictures[one["name"]]) for one in models],
        side_by_side=_side_by_side(models) if len(models) > 1 else [],
        tests=[_test(row) for row in content["comparison"]],
        comparison=_as_webp(comparison) if comparison else None,
        version=fer_ray.__version__,
    )


def _model(one: Mapping[str, Any], pictures: Mapping[str, bytes]) -> dict[str, Any]:
    """A model as the template shows it: figures in words, pictures small."""
    networks = " and ".join(dict.fromkeys(one["networks"]))
    absent = [row["class"] for row in one["per_class"] if not row["images"]]
    return {
        **one,
        "described": f"{len(one['networks'])} networks ({networks}), averaged" if len(one["networks"]) > 1 else networks,
        "cards": [
            {"name": label, "value": number(name, one["figures"][name]), "notes": [_interval(name, one) or "\N{NO-BREAK SPACE}", meaning]}
            for name, (label, meaning) in FIGURES.items()
        ],
        "classes_table": [
            (row["class"], f"{row['images']:,}", f"{row['predicted']:,}", *(number(name, row[name]) for name in CLASS_FIGURES))
            for row in one["per_class"]
        ],
        "absent": absent,
        "without_area": [row["class"] for row in one["per_class"] if row["roc_auc"] is None],
        "errors": [(e["name"], e["label"], e["predicted"], percent(e["confidence"], 1)) for e in one["most_confident_errors"]],
        "pictures": {name.removesuffix(".png"): _as_webp(png) for name, png in pictures.items()},
    }


def number(name: str, value: float | None) -> str:
    """A figure as people read it; a dash where there is none."""
    if value is None:
        return NOTHING
    return percent(value, 1) if name == "accuracy" else f"{value:.3f}"


def _interval(name: str, one: Mapping[str, Any]) -> str:
    if name not in one["intervals"]:
        return ""
    low, high = (number(name, limit) for limit in one["intervals"][name])
    return f"{low} to {high}"


def _side_by_side(models: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each figure: its name, and for each model the value, its interval, and whether it is the best."""
    rows = []
    for name, (label, _) in FIGURES.items():
        values = [one["figures"][name] for one in models]
        best = (min if name in LESS_IS_BETTER else max)((value for value in values if value is not None), default=None)
        cells = [
            {"words": number(name, value), "interval": _interval(name, one), "best": value is not None and value == best}
            for one, value in zip(models, values, strict=True)
        ]
        rows.append({"name": label, "cells": cells})
    return rows


def _test(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One of McNemar's tests as cells."""
    p_value = f"below {SMALLEST_P}" if row["p_value"] < SMALLEST_P else f"{row['p_value']:.4f}"
    return (
        f"{row['first']} and {row['second']}",
        f"{row['accuracy_difference'] * 100:+.1f}",
        f"{row['only_first_correct']:,}",
        f"{row['only_second_correct']:,}",
        p_value + (" (exact)" if row["exact"] else ""),
    )


def _as_webp(png: bytes) -> bytes:
    """The same picture at a tenth of the bytes."""
    pixels = np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED))
    return bytes(cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])[1])
