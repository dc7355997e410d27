"""Confidence that means what it says, on poor pictures too.

A model has a temperature, fitted on validation. `fer-ray calibrate` adds what depends on the picture: small, noisy or covered faces get
a temperature of their own and class offsets, so that the model is unsure of them instead of calling them neutral. `fer-ray audit` adds
what people answered about the faces of one archive, whose mixture of emotions is another one than that of any data set.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fer_ray.models.metrics import compute_metrics, negative_log_likelihood, softmax
from fer_ray.typing import Float64Array, FloatArray, IntArray
from fer_ray.vision.quality import OUTPUTS, network_version

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0
MIN_ERRORS = 10  # of validation: fewer say little about how often a model errs, and nothing where images leak into it from train
Z = 1.96  # standard errors: 97.5 % of a normal distribution lie below
_TOLERANCE = 1e-6  # of the logarithm of the temperature
_MAX_COEFFICIENT = 100.0  # of a calibration by picture: far more than any that was fitted
_SHRINKAGE = 1e-3  # weight of the squared coefficients beside the mean NLL, which a few hundred faces already outweigh
MIN_PROBABILITY = 1e-7  # whose logarithm is taken
_SLOPE_SPREAD = 0.5  # of an archive's slope around 1, before there are answers
_OFFSET_SPREAD = 1.0  # of its offsets around 0
_MIN_SLOPE, _MAX_SLOPE = 0.05, 20.0
_MAX_STEPS = 100

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


def has_few_errors(figures: Mapping[str, float]) -> bool:
    """Whether the validation that these figures are of has too few errors to say how often a model errs elsewhere."""
    return (1 - figures.get("accuracy", 0.0)) * figures.get("samples", 0) < MIN_ERRORS - 0.5


def bounded_temperature(logits: FloatArray, labels: IntArray) -> float:
    """The temperature with the least NLL, but for answers with fewer than MIN_ERRORS errors no surer than these errors allow.

    A temperature fitted on answers without an error is as low as can be, and the model certain of everything. So the mean
    confidence stays below the 97.5 % lower limit of the accuracy (Wilson 1927, doi 10.2307/2276774): 0.98 for 185 of 185.

    Args:
        logits: answers before calibration, (n, classes).
        labels: indices of the true classes, (n,).
    """
    temperature, count = fit_temperature(logits, labels), len(labels)
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    if not has_few_errors({"accuracy": accuracy, "samples": count}):
        return temperature
    spread = Z * math.sqrt(accuracy * (1 - accuracy) / count + Z**2 / (4 * count**2))
    limit = (accuracy + Z**2 / (2 * count) - spread) / (1 + Z**2 / count)
    return max(temperature, _temperature_of_confidence(logits, limit))


def _temperature_of_confidence(logits: FloatArray, confidence: float) -> float:
    """The temperature at which answers are as sure as this in the mean, within the range of temperatures."""
    from scipy import optimize

    def excess(logarithm: float) -> float:
        return float(softmax(logits, math.exp(logarithm)).max(axis=1).mean()) - confidence

    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    if excess(low) <= 0 or excess(high) >= 0:
        return MIN_TEMPERATURE if excess(low) <= 0 else MAX_TEMPERATURE
    return math.exp(optimize.brentq(excess, low, high, xtol=_TOLERANCE))


def calibrate(logits: FloatArray, labels: IntArray) -> tuple[float, dict[str, float]]:
    """Fit the temperature, bounded where validation has few errors, and measure the model with it.

    Args:
        logits: answers before calibration, (n, classes).
        labels: indices of the true classes, (n,).

    Returns:
        The temperature, and the figures with it. `ece_held_out` and `nll_held_out` are honest: each half of the images is
        measured with the temperature of the other half.
    """
    temperature = bounded_temperature(logits, labels)
    before = compute_metrics(logits, labels)
    if has_few_errors(before):
        logger.warning(
            "Validation has fewer than %d errors in %s images, so confidences are bounded, not calibrated: validate on more images, of "
            "other persons and sequences than those of training (--split-by).",
            MIN_ERRORS,
            f"{len(labels):,}",
        )
    elif is_at_bound(temperature):
        logger.warning(
            "The temperature %.3g lies at the bound of its range, so confidences are not calibrated: validate on more images.", temperature
        )
    halves = np.random.default_rng(0).permutation(len(labels)) % 2
    held_out = [
        compute_metrics(logits[halves == half], labels[halves == half], bounded_temperature(logits[halves != half], labels[halves != half]))
        for half in (0, 1)
    ]
    return temperature, {
        **compute_metrics(logits, labels, temperature),
        "ece_held_out": float(np.mean([figures["ece"] for figures in held_out])),
        "nll_held_out": float(np.mean([figures["nll"] for figures in held_out])),
        "ece_before_calibration": before["ece"],
        "nll_before_calibration": before["nll"],
    }


@dataclass(frozen=True)
class PictureCalibration:
    """A temperature and class offsets that depend on what is seen of a face: logits / exp(t . s) + O s, where s is (1, seen).

    Attributes:
        temperature: t, (1 + outputs of `vision.quality`,).
        offsets: O, (classes, 1 + outputs).
    """

    temperature: Float64Array
    offsets: Float64Array

    def apply(self, logits: FloatArray, seen: FloatArray) -> Float64Array:
        """Calibrated probabilities (n, classes) from logits (n, classes) and what `describe` says of the crops (n, outputs)."""
        features = _with_one(seen)
        return softmax(logits * self._sharpness(features)[:, None] + features @ self.offsets.T)

    def _sharpness(self, features: Float64Array) -> Float64Array:
        """What logits (n, classes) are multiplied by, (n,)."""
        return np.asarray(np.exp(-np.clip(features @ self.temperature, math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))))

    def to_dict(self) -> dict[str, Any]:
        """As `bundle.json` holds it."""
        return {
            "network": network_version(),
            "features": ["one", *OUTPUTS],
            "temperature": self.temperature.tolist(),
            "offsets": self.offsets.tolist(),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any], classes: int) -> PictureCalibration:
        """Read what `to_dict` gave.

        Raises:
            ValueError: it has another shape, or numbers that no fit gives.
        """
        temperature, offsets = (np.array(content[name], np.float64) for name in ("temperature", "offsets"))
        features = 1 + len(OUTPUTS)
        if temperature.shape != (features,) or offsets.shape != (classes, features):
            raise ValueError(f"calibration by_picture must have {features} numbers for the temperature and for each class")
        if not all((np.abs(values) <= _MAX_COEFFICIENT).all() for values in (temperature, offsets)):
            raise ValueError(f"calibration by_picture must have numbers of {_MAX_COEFFICIENT:g} at most")
        return cls(temperature, offsets)


def fit_by_picture(logits: FloatArray, seen: FloatArray, labels: IntArray, weights: FloatArray) -> PictureCalibration:
    """The calibration with the least weighted NLL, its coefficients held small.

    Args:
        logits: answers to clean and to degraded faces before calibration, (n, classes).
        seen: what `vision.quality.describe` says of them, (n, outputs).
        labels: indices of the true classes, (n,).
        weights: how much each face counts, (n,).
    """
    from scipy import optimize

    features, (count, classes) = _with_one(seen), logits.shape
    width, scale = features.shape[1], 1 / weights.sum()
    one_hot = np.eye(classes)[labels]

    def loss(values: Float64Array) -> tuple[float, Float64Array]:
        fitted = PictureCalibration(values[:width], values[width:].reshape(classes, width))
        sharpness = fitted._sharpness(features)
        scaled = logits * sharpness[:, None]
        probabilities = softmax(scaled + features @ fitted.offsets.T)
        likelihood = np.maximum(probabilities[np.arange(count), labels], 1e-12)
        slope = (probabilities - one_hot) * weights[:, None] * scale
        gradient = np.concatenate([-((slope * scaled).sum(axis=1) @ features), (slope.T @ features).ravel()])
        nll = -float((weights * np.log(likelihood)).sum() * scale)
        return nll + _SHRINKAGE * float(values @ values), gradient + 2 * _SHRINKAGE * values

    found = optimize.minimize(loss, np.zeros(width * (1 + classes)), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return PictureCalibration(found.x[:width], found.x[width:].reshape(classes, width))


def _with_one(seen: FloatArray) -> Float64Array:
    return np.column_stack([np.ones(len(seen)), seen])


@dataclass(frozen=True)
class ArchiveCalibration:
    """A slope and class offsets for one archive, on top of the model's own calibration: softmax(slope * log p + offsets)."""

    slope: float
    offsets: Float64Array

    def apply(self, probabilities: FloatArray) -> Float64Array:
        """The probabilities (n, classes) as they are in this archive."""
        return softmax(self.slope * np.log(np.maximum(probabilities, MIN_PROBABILITY)) + self.offsets)

    def to_dict(self) -> dict[str, Any]:
        """As `bundle.json` holds it."""
        return {"slope": self.slope, "offsets": self.offsets.tolist()}

    @classmethod
    def from_dict(cls, content: dict[str, Any], classes: int) -> ArchiveCalibration:
        """Read what `to_dict` gave.

        Raises:
            ValueError: it has another shape, or numbers that no fit gives.
        """
        slope, offsets = float(content["slope"]), np.array(content["offsets"], np.float64)
        if offsets.shape != (classes,) or not (np.abs(offsets) <= _MAX_COEFFICIENT).all() or not _MIN_SLOPE <= slope <= _MAX_SLOPE:
            raise ValueError("calibration archive must have a slope and a number for each class")
        return cls(slope, offsets)


def fit_to_archive(probabilities: FloatArray, labels: IntArray, weights: FloatArray) -> ArchiveCalibration:
    """The calibration with which answers about some faces of an archive are likeliest.

    Temperature scaling with a bias for each class (Alexandari et al. 2020, arXiv 1901.06852), with Gaussian priors around no change,
    since the answers are few. The objective is concave; Newton's method finds its maximum.

    Args:
        probabilities: the model's, (n, classes).
        labels: indices of the true classes, (n,).
        weights: how many faces of the archive each stands for, divided by their mean, (n,).
    """
    logs = np.log(np.maximum(probabilities, MIN_PROBABILITY))
    count, classes = logs.shape
    precision = np.array([_SLOPE_SPREAD**-2, *[_OFFSET_SPREAD**-2] * classes])
    prior = np.array([1.0, *[0.0] * classes])
    parameters = prior
    design = np.concatenate([logs[:, :, None], np.broadcast_to(np.eye(classes), (count, classes, classes))], axis=2)
    for _ in range(_MAX_STEPS):
        given = softmax(design @ parameters)
        mean = np.einsum("nc,ncp->np", given, design)
        gradient = weights @ (design[np.arange(count), labels] - mean) - precision * (parameters - prior)
        curvature = np.einsum("n,nc,ncp,ncq->pq", weights, given, design, design) - np.einsum("n,np,nq->pq", weights, mean, mean)
        step = np.linalg.solve(curvature + np.diag(precision), gradient)
        parameters = parameters + step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-8:
            break
    return ArchiveCalibration(float(np.clip(parameters[0], _MIN_SLOPE, _MAX_SLOPE)), parameters[1:] - parameters[1:].mean())
