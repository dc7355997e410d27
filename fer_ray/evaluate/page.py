"""The page about an evaluation: one HTML file with everything in it. `templates/evaluation.html.j2` says how it looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import fer_ray
from fer_ray.config.jobs.evaluate import EvaluateConfig
from fer_ray.data.dataset import Split
from fer_ray.evaluate import pictures, plots, sections
from fer_ray.evaluate.breakdown import MIN_COMPARED
from fer_ray.evaluate.history import History
from fer_ray.evaluate.pictures import Answer, Attention
from fer_ray.models import metrics
from fer_ray.models.metrics import LESS_IS_BETTER
from fer_ray.reporting.charts import Chart
from fer_ray.reporting.html import NOTHING, render
from fer_ray.text import percent
from fer_ray.typing import Float32Array, Float64Array

if TYPE_CHECKING:
    import keras

FIGURES = {
    "accuracy": ("Accuracy", "share of faces labeled right"),
    "mean_recall": ("Mean recall", "mean share found of each class"),
    "macro_f1": ("Macro F1", "mean F1 of the classes"),
    "weighted_f1": ("Weighted F1", "mean F1, weighted by faces"),
    "roc_auc": ("ROC AUC", "one class against the rest, mean of the classes"),
    "ece": ("ECE", "gap between confidence and accuracy, 15 bins; less is better"),
    "nll": ("NLL", "mean of -log p of the label; less is better"),
    "brier": ("Brier score", "squared error of the probabilities; less is better"),
}
ANSWERS_FILE = "predictions.parquet"
SHARES = ("accuracy", "mean_recall")  # in percent
CLASS_FIGURES = ("precision", "recall", "f1", "roc_auc")
SMALLEST_P = 1e-4  # below, a p-value is said to be below


@dataclass(frozen=True)
class Shown:
    """What the page shows of a model beside its figures.

    Attributes:
        calibration: charts of confidence.
        training: charts of its training, if its history is known.
        random: answers to faces taken at random, the same faces for all models.
        errors: its most confident errors.
        attention: what its first network looks at, if it can be had in Keras.
    """

    calibration: Sequence[Chart]
    training: Sequence[Chart]
    random: Sequence[Answer]
    errors: Sequence[Answer]
    attention: Attention | None


def show(
    config: EvaluateConfig,
    content: Mapping[str, Any],
    network: keras.Model | None,
    faces: Split,
    logits: Float32Array,
    probabilities: Float64Array,
    history: History | None,
) -> Shown:
    """Charts and faces of a model.

    Args:
        config: How many random faces, and their seed: these are the same for all models.
        content: What `evaluation.json` says of the model.
        network: Its first network in Keras, for what it looks at; None where there is none.
        faces: Labels and targets in the order of its classes.
        logits: Its answers to them before calibration, (n, classes).
        probabilities: The same after it.
        history: Its training, if it is known.
    """
    classes = content["classes"]
    after, before = (metrics.reliability(answers, faces.labels) for answers in (probabilities, metrics.softmax(logits)))
    random = np.random.default_rng(config.seed).choice(len(faces), min(config.samples, len(faces)), replace=False).tolist()
    errors = [error["index"] for error in content["most_confident_errors"]]
    return Shown(
        plots.calibration(after, before),
        plots.training(history) if history else [],
        pictures.answers(random, faces, probabilities, classes),
        pictures.answers(errors, faces, probabilities, classes),
        None if network is None else pictures.attention(network, faces, probabilities, classes, config.seed),
    )


def evaluation_page(content: Mapping[str, Any], shown: Sequence[Shown]) -> str:
    """The page.

    Args:
        content: What `evaluation.json` holds.
        shown: What else is shown of each of its models.
    """
    models = content["models"]
    several = len(models) > 1
    return render(
        "fer_ray.evaluate",
        "evaluation.html.j2",
        styles=("charts.css", "evaluation.css"),
        scripts=("base.js",),
        title="Evaluation of " + ", ".join(str(one["name"]) for one in models),
        links=[("evaluation.json", "evaluation.json")],
        content=content,
        models=[_model(one, of_it, several) for one, of_it in zip(models, shown, strict=True)],
        random=list(zip(*(one.random for one in shown), strict=True)),
        side_by_side=_side_by_side(models) if several else [],
        degraded=_degraded_side_by_side(models) if several else [],
        tests=[_test(row) for row in content["comparison"]],
        comparison=plots.comparison(content) if several else [],
        min_compared=MIN_COMPARED,
        version=fer_ray.__version__,
    )


def _model(one: Mapping[str, Any], shown: Shown, several: bool) -> dict[str, Any]:
    """A model as the template shows it: figures in words."""
    networks = " and ".join(dict.fromkeys(one["networks"]))
    confusion = one["confusion"]
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
        "confusion_rows": [
            (label, list(zip(confusion["predicted"], shares, counts, strict=True)))
            for label, shares, counts in zip(confusion["labels"], confusion["shares"], confusion["counts"], strict=True)
        ],
        "parts": sections.of_parts(one),
        "absent": [row["class"] for row in one["per_class"] if not row["images"]],
        "without_area": [row["class"] for row in one["per_class"] if row["roc_auc"] is None],
        "answers_file": f"{one['name']}/{ANSWERS_FILE}" if several else ANSWERS_FILE,
        "shown": shown,
    }


def number(name: str, value: float | None) -> str:
    """A figure as people read it; a dash where there is none."""
    if value is None:
        return NOTHING
    return percent(value, 1) if name in SHARES else f"{value:.3f}"


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


def _degraded_side_by_side(models: list[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each condition: its name, and the accuracy of each model."""
    return [
        (rows[0]["condition"], *(percent(row["figures"]["accuracy"], 1) for row in rows))
        for rows in zip(*(one["degraded"] for one in models), strict=True)
    ]


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
