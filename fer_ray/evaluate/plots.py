"""The charts about models' answers, as plain values that the page's template draws."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fer_ray.evaluate.history import History
from fer_ray.models.metrics import Bins
from fer_ray.reporting.charts import BOTTOM, COLORS, TOP, Axis, Chart, Series, axis
from fer_ray.reporting.html import shorten
from fer_ray.text import percent, plural
from fer_ray.typing import Float64Array

COUNTS_HEIGHT = 170  # of the chart of how many faces each bin holds
CLASS_ROOM = 88  # left of a chart, for the name of an emotion
NUMBER_ROOM = 66  # the same for a small number such as 0.0005
NAME_ROOM = 136  # the same for the name of a model
NAME_LENGTH = 14  # letters that fit there
ROW = 24  # a line of such a chart; a model more makes it higher by
ROW_OF_MODEL = 5
MAX_STEPS = 1e5  # a learning rate that falls further is a cosine, which ends at nothing


def calibration(after: Bins, before: Bins) -> list[Chart]:
    """Accuracy over confidence in bins, after and before calibration, and how many faces each bin holds."""
    bins = len(after.count)
    middles = (np.arange(bins) + 0.5) / bins
    confidence = axis((), "confidence", words=percent, low=0, high=1)
    accuracy = Series(_with_ece("after calibration", after), _points(middles, after.accuracy, after.count), COLORS[0], "bars")
    uncalibrated = Series(_with_ece("before", before), _points(before.confidence, before.accuracy, before.count), COLORS[1])
    perfect = Series("perfect", [(0, 0), (1, 1)], "ink", "dashed")
    alt = f"Accuracy over confidence in {bins} bins; {accuracy.name}, {uncalibrated.name} calibration"
    counts = axis(after.count.tolist(), low=0)
    counts = replace(counts, ticks=counts.ticks[::2])
    faces = Series("", _points(middles, after.count, after.count), COLORS[0], "bars")
    return [
        Chart("Accuracy by confidence", alt, confidence, replace(confidence, label=""), [accuracy, perfect, uncalibrated], bins),
        Chart("Faces by confidence", "How many faces each bin holds", confidence, counts, [faces], bins, height=COUNTS_HEIGHT),
    ]


def _with_ece(name: str, bins: Bins) -> str:
    return f"{name} (ECE {bins.expected_calibration_error:.3f})"


def _points(x: Float64Array, y: Iterable[float], where: Iterable[float]) -> list[tuple[float, float]]:
    """Pairs of both where a bin holds something."""
    return [(float(a), float(b)) for a, b, count in zip(x, y, where, strict=True) if count]


def training(history: History) -> list[Chart]:
    """Losses, validation figures and the learning rate over the epochs; dashed lines where the learning rate fell to half or less."""
    rate = history.learning_rate[history.learning_rate > 0]
    in_steps = len(rate) == len(history.epoch) and 10 < rate.max() / rate.min() < MAX_STEPS
    losses = [("training loss", history.train_loss, COLORS[1]), ("validation NLL", history.nll, COLORS[0])]
    figures = [("accuracy", history.accuracy, COLORS[0]), ("macro F1", history.macro_f1, COLORS[2])]
    return [
        _over_epochs("Loss", history, losses, axis(_finite(history.train_loss, history.nll))),
        _over_epochs("Validation images", history, figures, _percent_axis(_finite(history.accuracy, history.macro_f1))),
        _over_epochs(
            "Learning rate",
            history,
            [("learning rate", history.learning_rate, COLORS[3])],
            axis(_finite(history.learning_rate), logarithmic=bool(in_steps)),
        ),
    ]


def _over_epochs(title: str, history: History, lines: Sequence[tuple[str, Float64Array, str]], y: Axis) -> Chart:
    x = axis(history.epoch.tolist(), "epoch", whole=True, margin=0)
    falls = [Series("learning rate fell", [(epoch, y.low), (epoch, y.high)], "ink", "dashed") for epoch in history.drops.tolist()]
    curves = [Series(name, _points(history.epoch, values, np.isfinite(values)), color) for name, values, color in lines]
    alt = f"{' and '.join(name for name, _, _ in lines)} over {plural(len(history.epoch), 'epoch')}"
    return Chart(title, alt, x, y, [*curves, *falls], left=NUMBER_ROOM)


def _finite(*columns: Float64Array) -> list[float]:
    """All values that are numbers: a history comes from strangers."""
    values = np.concatenate(columns)
    return [float(value) for value in values[np.isfinite(values)]]


def _percent_axis(values: Sequence[float], label: str = "") -> Axis:
    """Shares, with as many digits as tell two ticks apart."""
    spread = max(values, default=1.0) - min(values, default=0.0)
    digits = max(0, -2 - math.floor(math.log10(spread / 4))) if spread else 1
    return axis(values, label, words=lambda value: percent(value, digits))


def comparison(content: Mapping[str, Any]) -> list[Chart]:
    """Accuracy with its interval, and the F1 of each class, of all models of `evaluation.json`."""
    models, classes = content["models"], content["classes"]
    colors = [COLORS[index % len(COLORS)] for index in range(len(models))]
    return [_accuracies(models, colors), _f1(models, colors, classes)]


def _accuracies(models: Sequence[Mapping[str, Any]], colors: Sequence[str]) -> Chart:
    series, told = [], []
    for row, (one, color) in enumerate(zip(models, colors, strict=True)):
        value, (low, high) = one["figures"]["accuracy"], one["intervals"]["accuracy"]
        told.append(f"{one['name']} {percent(value, 1)} ({percent(low, 1)} to {percent(high, 1)})")
        series += [
            Series("", [(low, row), (high, row)], color, title=told[-1]),
            Series("", [(value, row)], color, "dots", title=told[-1]),
        ]
    x = _percent_axis([limit for one in models for limit in one["intervals"]["accuracy"]], "accuracy")
    x = replace(x, ticks=x.ticks[::2])
    y = _rows([shorten(one["name"], NAME_LENGTH) for one in models])
    height = TOP + BOTTOM + (ROW + ROW_OF_MODEL) * len(models)
    return Chart("Accuracy with its 95 % interval", "; ".join(told), x, y, series, left=NAME_ROOM, height=height)


def parts(title: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Chart:
    """Accuracy with its interval, and beside it what the model says of itself, for each part of the faces.

    Args:
        title: What the parts are.
        rows: A part's name, and its figures as `breakdown.part_figures` has them.
    """
    accuracy, confidence, told = [], [], []
    for place, (name, row) in enumerate(rows):
        value, (low, high) = row["figures"]["accuracy"], row["intervals"]["accuracy"]
        told.append(f"{name} {percent(value, 1)} ({percent(low, 1)} to {percent(high, 1)})")
        accuracy += [
            Series("", [(low, place), (high, place)], COLORS[0], title=told[-1]),
            Series("accuracy", [(value, place)], COLORS[0], "dots", title=told[-1]),
        ]
        confidence.append(Series("mean confidence", [(row["figures"]["confidence"], place)], COLORS[1], "dots"))
    shown = [value for _, row in rows for value in (*row["intervals"]["accuracy"], row["figures"]["confidence"])]
    x = _percent_axis(shown, "share")
    y = _rows([shorten(name, NAME_LENGTH) for name, _ in rows])
    return Chart(title, "; ".join(told), x, y, [*accuracy, *confidence], left=NAME_ROOM, height=TOP + BOTTOM + ROW * len(rows))


def _f1(models: Sequence[Mapping[str, Any]], colors: Sequence[str], classes: Sequence[str]) -> Chart:
    offsets = np.linspace(-0.22, 0.22, len(models))
    series = []
    for one, color, offset in zip(models, colors, offsets, strict=True):
        f1 = {row["class"]: row["f1"] for row in one["per_class"]}
        series.append(Series(one["name"], [(f1[name], row + offset) for row, name in enumerate(classes)], color, "dots"))
    height = TOP + BOTTOM + (ROW + ROW_OF_MODEL * len(models)) * len(classes)
    alt = f"F1 of {', '.join(classes)} by model; the numbers are in the tables of the models"
    return Chart("F1 of each class", alt, axis((), "F1", low=0, high=1), _rows(classes), series, left=CLASS_ROOM, height=height)


def _rows(names: Sequence[str]) -> Axis:
    """An axis with a name for 0, 1, 2 and so on, from above."""
    return Axis(len(names) - 0.5, -0.5, ticks=tuple((1 - (row + 0.5) / len(names), name) for row, name in enumerate(names)))
