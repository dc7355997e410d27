"""Confidence that means what it says: the temperature of a model, fitted on validation, and what is left of the error."""

from __future__ import annotations

import numpy as np

from fer_ray.models.metrics import evaluate, fit_temperature
from fer_ray.typing import FloatArray, IntArray


def calibrate(logits: FloatArray, labels: IntArray) -> tuple[float, dict[str, float]]:
    """The temperature that fits logits (n, classes) to labels (n,), and the figures with it.

    `ece_held_out` and `nll_held_out` are honest: each half of the images is measured with the temperature of the other half.
    """
    temperature = fit_temperature(logits, labels)
    before = evaluate(logits, labels)
    halves = np.random.default_rng(0).permutation(len(labels)) % 2
    held_out = [
        evaluate(logits[halves == half], labels[halves == half], fit_temperature(logits[halves != half], labels[halves != half]))
        for half in (0, 1)
    ]
    return temperature, {
        **evaluate(logits, labels, temperature),
        "ece_held_out": float(np.mean([figures["ece"] for figures in held_out])),
        "nll_held_out": float(np.mean([figures["nll"] for figures in held_out])),
        "ece_before_calibration": before["ece"],
        "nll_before_calibration": before["nll"],
    }
