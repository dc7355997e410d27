"""What is right and wrong about a model's answers on labeled faces, as plain values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fer_ray.data.dataset import Split
from fer_ray.errors import DatasetError
from fer_ray.models import metrics
from fer_ray.typing import Float32Array, Float64Array, Int64Array

MAX_ERRORS = 30
SMALLEST = 1e-12  # the least probability whose logarithm is taken


def check_classes(model: str, known: Sequence[str], asked: Sequence[str]) -> None:
    """A model can only be judged on emotions that it knows.

    Raises:
        DatasetError: the data set has others.
    """
    lacking = [name for name in asked if name not in known]
    if lacking:
        both = " ".join(name for name in asked if name in known)
        raise DatasetError(f"The data set has {', '.join(lacking)}, which {model} does not know: leave them out with --classes {both}.")


def in_order_of(faces: Split, classes: Sequence[str], known: Sequence[str]) -> Split:
    """The faces with labels and targets (n, known) over a model's classes instead of the data set's."""
    place = np.array([known.index(name) for name in classes])
    targets = np.zeros((len(faces), len(known)), np.float32)
    targets[:, place] = faces.targets
    return Split(faces.images, place[faces.labels], targets, faces.names)


def measure(logits: Float32Array, probabilities: Float64Array, faces: Split, classes: Sequence[str], seed: int) -> dict[str, Any]:
    """Figures as `evaluation.json` holds them, from answers before calibration and after it, both (n, classes)."""
    labels = faces.labels
    per_class = metrics.per_class(probabilities, labels)
    one_hot = np.eye(len(classes))[labels]
    bins = metrics.reliability(probabilities, labels)
    figures = {
        "accuracy": float((probabilities.argmax(axis=1) == labels).mean()),
        "mean_recall": per_class.mean_recall,
        "macro_f1": per_class.macro_f1,
        "weighted_f1": per_class.weighted_f1,
        "roc_auc": per_class.macro_roc_auc,
        "ece": bins.expected_calibration_error,
        "nll": metrics.negative_log_likelihood(np.log(np.maximum(probabilities, SMALLEST)), labels),
        "brier": metrics.brier_score(probabilities, one_hot),
        "ece_before_calibration": metrics.expected_calibration_error(logits, labels),
        "nll_before_calibration": metrics.negative_log_likelihood(logits, labels),
    }
    votes = None
    if (faces.targets.max(axis=1) < 1 - 1e-6).any():
        votes = {
            "brier": metrics.brier_score(probabilities, faces.targets),
            "cross_entropy": metrics.cross_entropy(probabilities, faces.targets),
            "kl_divergence": metrics.kl_divergence(probabilities, faces.targets),
        }
    return {
        "figures": figures,
        "intervals": {name: list(limits) for name, limits in metrics.bootstrap_intervals(probabilities, labels, seed).items()},
        "votes": votes,
        "per_class": _per_class_rows(per_class, probabilities, classes),
        "confusion": _confusion(probabilities, labels, classes),
        "reliability": _reliability_rows(bins),
    }


def _per_class_rows(per_class: metrics.PerClass, probabilities: Float64Array, classes: Sequence[str]) -> list[dict[str, Any]]:
    predicted = np.bincount(probabilities.argmax(axis=1), minlength=len(classes))
    return [
        {
            "class": name,
            "images": int(per_class.support[index]),
            "predicted": int(predicted[index]),
            "precision": float(per_class.precision[index]),
            "recall": float(per_class.recall[index]),
            "f1": float(per_class.f1[index]),
            "roc_auc": None if np.isnan(per_class.roc_auc[index]) else float(per_class.roc_auc[index]),
        }
        for index, name in enumerate(classes)
    ]


def _confusion(probabilities: Float64Array, labels: Int64Array, classes: Sequence[str]) -> dict[str, Any]:
    """One row for each class that has images, one column for each that can be predicted."""
    counts = metrics.confusion_matrix(probabilities, labels)
    rows = np.flatnonzero(counts.sum(axis=1)).tolist()
    counts = counts[rows]
    shares = counts / counts.sum(axis=1, keepdims=True)
    return {
        "labels": [classes[row] for row in rows],
        "predicted": list(classes),
        "counts": counts.tolist(),
        "shares": shares.round(6).tolist(),
    }


def _reliability_rows(bins: metrics.Bins) -> list[dict[str, Any]]:
    edges = np.linspace(0, 1, len(bins.count) + 1).round(6).tolist()
    columns = zip(edges[:-1], edges[1:], bins.count.tolist(), bins.confidence.tolist(), bins.accuracy.tolist(), strict=True)
    return [dict(zip(("from", "to", "count", "confidence", "accuracy"), row, strict=True)) for row in columns]


def most_confident_errors(probabilities: Float64Array, faces: Split, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The wrong answers that the model was surest of, at most 30; `index` is the place in the split."""
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != faces.labels)
    chosen = wrong[np.argsort(-confidence[wrong], kind="stable")][:MAX_ERRORS]
    return [
        {
            "index": int(i),
            "name": faces.names[i],
            "label": classes[faces.labels[i]],
            "predicted": classes[predicted[i]],
            "confidence": float(confidence[i]),
        }
        for i in chosen
    ]
