"""A model's figures apart: on the same faces degraded, and on the faces of each group; as plain values for JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fer_ray.data.dataset import Split
from fer_ray.models import metrics
from fer_ray.reporting.html import points
from fer_ray.text import percent, sanitize
from fer_ray.typing import BoolArray, Float64Array, Int64Array, UInt8Array
from fer_ray.vision.degradation import CONDITIONS, degraded

MIN_COMPARED = 20  # faces of a group that the largest gap may be of
SHUFFLES = 1000

Answer = Callable[[UInt8Array, str], Float64Array]
"""Crops (n, s, s) or (n, s, s, 3), and what they are called, to calibrated probabilities (n, classes)."""


def by_condition(answer: Answer, faces: Split, classes: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """The figures under each of `degradation.CONDITIONS`, the first of which changes nothing.

    Args:
        answer: The model.
        faces: Labels in the order of its classes.
        classes: What it knows.
        seed: Of the resamples behind the intervals.
    """
    rows = []
    for condition in CONDITIONS:
        probabilities = answer(degraded(faces.images, condition), condition)
        rows.append({"condition": condition, **part_figures(probabilities, faces.labels, classes, seed)})
    return rows


def by_group(probabilities: Float64Array, labels: Int64Array, classes: Sequence[str], groups: Sequence[str], seed: int) -> dict[str, Any]:
    """The figures of each group, and the largest gap of accuracy between two groups; None without two of `MIN_COMPARED` faces.

    Args:
        probabilities: Calibrated answers, (n, classes).
        labels: Indices of the true classes, (n,).
        classes: What the model knows.
        groups: The group of each face, (n).
        seed: Of the resamples and of the shuffles.
    """
    names, members = np.unique(np.array(groups, object), return_inverse=True)
    rows = [
        {"group": name, **part_figures(probabilities[members == place], labels[members == place], classes, seed)}
        for place, name in enumerate(names)
    ]
    correct = np.asarray(probabilities.argmax(axis=1) == labels)
    return {"groups": rows, "largest_gap": _largest_gap(names.tolist(), members, correct, labels, seed)}


def part_figures(probabilities: Float64Array, labels: Int64Array, classes: Sequence[str], seed: int) -> dict[str, Any]:
    """What a part of the faces comes to: figures with intervals, and how often each class is there, said and found."""
    n_classes = len(classes)
    predicted = probabilities.argmax(axis=1)
    true, said = np.bincount(labels, minlength=n_classes), np.bincount(predicted, minlength=n_classes)
    right = np.bincount(labels[predicted == labels], minlength=n_classes)
    recall = right / np.maximum(true, 1)
    return {
        "samples": len(labels),
        "figures": {
            "accuracy": float(right.sum() / len(labels)),
            "mean_recall": float(recall[true > 0].mean()),
            "macro_f1": float(metrics.macro_f1(metrics.f1_scores(right, true, said), true)),
            "confidence": float(probabilities.max(axis=1).mean()),
            "ece": metrics.reliability(probabilities, labels).expected_calibration_error,
        },
        "intervals": {name: list(limits) for name, limits in metrics.bootstrap_intervals(probabilities, labels, seed).items()},
        "per_class": [
            {
                "class": name,
                "images": int(true[index]),
                "predicted": int(said[index]),
                "recall": float(recall[index]) if true[index] else None,
            }
            for index, name in enumerate(classes)
        ],
    }


def summarize(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the last line of the job says of degraded faces and of groups, where they were asked for.

    Args:
        content: What `evaluation.json` says of the model.
    """
    said: dict[str, Any] = {}
    if content["degraded"]:
        said["degraded"] = {row["condition"]: _brief(row) for row in content["degraded"]}
    if content["groups"]:
        said["groups"] = {
            column: {"largest_gap": parts["largest_gap"], "groups": {row["group"]: _brief(row) for row in parts["groups"]}}
            for column, parts in content["groups"].items()
        }
    return said


def sentences(content: Mapping[str, Any]) -> list[str]:
    """What the log says of degraded faces and of groups.

    Args:
        content: What `evaluation.json` says of the model.
    """
    degraded_faces = [f"{row['condition']} {percent(row['figures']['accuracy'], 1)}" for row in content["degraded"]]
    gaps = [f"by {sanitize(column)}: {gap_sentence(parts['largest_gap'])}" for column, parts in content["groups"].items()]
    return [*([f"accuracy where the faces are degraded: {', '.join(degraded_faces)}"] if degraded_faces else []), *gaps]


def gap_sentence(gap: Mapping[str, Any] | None) -> str:
    """The largest gap between two groups in words."""
    if gap is None:
        return f"No two groups have {MIN_COMPARED} faces, so none are compared."
    low, high = (points(limit) for limit in gap["interval"])
    between = f"between {sanitize(gap['highest'])} and {sanitize(gap['lowest'])} ({low} to {high})"
    p_value = f"below {1 / SHUFFLES}" if gap["p_value"] < 1 / SHUFFLES else f"= {gap['p_value']:.3f}"
    chance = f"Groups shuffled among faces of the same label have one as large with p {p_value}."
    return f"The largest gap of accuracy is {100 * gap['difference']:.1f} points, {between}. {chance}"


def _brief(row: Mapping[str, Any]) -> dict[str, Any]:
    figures = {name: row["figures"][name] for name in ("accuracy", "mean_recall", "ece")}
    return {**figures, "accuracy_interval": row["intervals"]["accuracy"], "samples": row["samples"]}


def _largest_gap(names: Sequence[str], members: Int64Array, correct: BoolArray, labels: Int64Array, seed: int) -> dict[str, Any] | None:
    """Between the groups of the highest and of the lowest accuracy; `p_value` is how often chance alone makes one as large.

    Chance: groups shuffled among faces of the same label, so that neither the groups' numbers nor their emotions explain it.
    """
    sizes = np.bincount(members)
    compared = np.flatnonzero(sizes >= MIN_COMPARED)
    if len(compared) < 2:
        return None
    accuracy = np.bincount(members, weights=correct) / sizes
    best, worst = (int(compared[pick(accuracy[compared])]) for pick in (np.argmax, np.argmin))
    gap = float(accuracy[best] - accuracy[worst])
    generator, order = np.random.default_rng(seed), np.argsort(labels, kind="stable")
    shuffled, as_large = np.empty_like(members), 0
    for _ in range(SHUFFLES):
        shuffled[order] = members[np.argsort(labels + generator.random(len(labels)))]
        by_chance = (np.bincount(shuffled, weights=correct) / sizes)[compared]
        as_large += int(np.ptp(by_chance) >= gap - 1e-12)
    return {
        "figure": "accuracy",
        "highest": names[best],
        "lowest": names[worst],
        "difference": gap,
        "interval": _difference_interval(float(accuracy[best]), int(sizes[best]), float(accuracy[worst]), int(sizes[worst])),
        "p_value": (as_large + 1) / (SHUFFLES + 1),
        "compared": [names[place] for place in compared.tolist()],
    }


def _difference_interval(first: float, first_of: int, second: float, second_of: int) -> list[float]:
    """Newcombe's interval of 95 % for the difference of two shares (1998, method 10), which holds for few faces too."""
    (first_low, first_high), (second_low, second_high) = metrics.wilson(first, first_of), metrics.wilson(second, second_of)
    difference = first - second
    low = difference - np.hypot(first - first_low, second_high - second)
    high = difference + np.hypot(first_high - first, second - second_low)
    return [float(low), float(high)]
