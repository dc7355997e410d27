"""Confidence that means what it says: the temperature of a model, fitted on validation, and what is left of the error."""

from __future__ import annotations

import logging
import math

import numpy as np

from fer_ray.models.metrics import compute_metrics, negative_log_likelihood
from fer_ray.typing import FloatArray, IntArray

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0
_TOLERANCE = 1e-6  # of the logarithm of the temperature

logger = logging.getLogger(__name__)


def fit_temperature(logits: FloatArray, labels: IntArray) -> float:
    """The temperature with the least NLL (Guo et al. 2017, arXiv 1706.04599) between MIN_TEMPERATURE and MAX_TEMPERATURE.

    Args:
        logits: answers before calibration, (n, classes).
        labels: indices of the true classes, (n,).
    """
    from scipy import optimize

    found = optimize.minimize_scalar(
        lambda logarithm: negative_log_likelihood(logits, labels, math.exp(logarithm)),
        bounds=(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)),
        method="bounded",
        options={"xatol": _TOLERANCE},
    )
    return math.exp(found.x)


def is_at_bound(temperature: float) -> bool:
    """Whether the temperature is as low or as high as can be: a better one lies beyond, so the confidences are not calibrated."""
    return not 1.01 * MIN_TEMPERATURE < temperature < MAX_TEMPERATURE / 1.01


def calibrate(logits: FloatArray, labels: IntArray) -> tuple[float, dict[str, float]]:
    """Fit the temperature, and measure the model with it.

    Args:
        logits: answers before calibration, (n, classes).
        labels: indices of the true classes, (n,).

    Returns:
        The temperature, and the figures with it. `ece_held_out` and `nll_held_out` are honest: each half of the images is
        measured with the temperature of the other half.
    """
    temperature = fit_temperature(logits, labels)
    if is_at_bound(temperature):
        logger.warning(
            "The temperature %.3g lies at the bound of its range, so confidences are not calibrated: validate on more images.", temperature
        )
    before = compute_metrics(logits, labels)
    halves = np.random.default_rng(0).permutation(len(labels)) % 2
    held_out = [
        compute_metrics(logits[halves == half], labels[halves == half], fit_temperature(logits[halves != half], labels[halves != half]))
        for half in (0, 1)
    ]
    return temperature, {
        **compute_metrics(logits, labels, temperature),
        "ece_held_out": float(np.mean([figures["ece"] for figures in held_out])),
        "nll_held_out": float(np.mean([figures["nll"] for figures in held_out])),
        "ece_before_calibration": before["ece"],
        "nll_before_calibration": before["nll"],
    }
