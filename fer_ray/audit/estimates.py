"""What answers about a sample say of all faces: accuracy and shares with intervals.

The sample is stratified: so many faces of each stratum (those that the model calls alike, with like confidence) were looked at, of a
known number. In each, the true emotions of the faces that nobody looked at follow a multinomial distribution whose parameter has a
Dirichlet posterior: the answers, and the model's own mean probabilities with the weight of PRIOR_FACES answers, so that a class that
was not seen among few faces is not taken to be absent (Gelman et al., Bayesian Data Analysis, 2013, 3.4 and 8.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fer_ray.typing import Float64Array, FloatArray, Int64Array

PRIOR_FACES = 1.0  # what the model's own probabilities count for in a stratum, in answers
DRAWS = 4000  # of the posterior
LEVEL = 0.9  # of the intervals
MIN_PROBABILITY = 1e-7


@dataclass(frozen=True)
class Stratum:
    """Faces that the model calls alike.

    Attributes:
        predicted: the class that the model gives them.
        faces: how many there are.
        mean: their mean probabilities, (classes,).
        answers: how many of those that were looked at are of each class, (classes,).
    """

    predicted: int
    faces: int
    mean: Float64Array
    answers: Int64Array


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimates:
    """What the answers say of all faces: the accuracy, and for each class its share, precision and recall."""

    accuracy: Interval
    shares: list[Interval]
    precision: list[Interval | None]
    recall: list[Interval | None]


def estimate(strata: Sequence[Stratum], seed: int = 0) -> Estimates:
    """The posterior means and the intervals of LEVEL; None for a class that the model never gives, or that there is not."""
    generator = np.random.default_rng(seed)
    classes = len(strata[0].mean)
    table = np.zeros((DRAWS, classes, classes))  # faces by what the model says and what they are
    for stratum in strata:
        prior = np.maximum(stratum.mean, MIN_PROBABILITY)
        theta = generator.dirichlet(stratum.answers + PRIOR_FACES * prior / prior.sum(), DRAWS)
        unseen = max(0, stratum.faces - int(stratum.answers.sum()))
        table[:, stratum.predicted] += stratum.answers + generator.multinomial(unseen, theta)
    right, given, true = np.einsum("dcc->dc", table), table.sum(axis=2), table.sum(axis=1)
    total = table.sum(axis=(1, 2))
    return Estimates(
        _interval(right.sum(axis=1) / total),
        [_interval(true[:, one] / total) for one in range(classes)],
        [_ratio(right[:, one], given[:, one]) for one in range(classes)],
        [_ratio(right[:, one], true[:, one]) for one in range(classes)],
    )


def _interval(draws: Float64Array) -> Interval:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(draws.mean()), float(low), float(high))


def _ratio(part: Float64Array, whole: Float64Array) -> Interval | None:
    there = whole > 0
    return _interval(part[there] / whole[there]) if there.mean() > LEVEL else None


def adapt(probabilities: FloatArray, shares: FloatArray) -> Float64Array:
    """The shares of the classes among other faces than those that the probabilities are calibrated for, where the classes have `shares`.

    Expectation maximization of the priors (Saerens et al. 2002, doi 10.1162/089976602753284446): what a class looks like must be the
    same, only how often it comes may differ.
    """
    source = np.maximum(np.asarray(shares, np.float64), MIN_PROBABILITY)
    found = source / source.sum()
    for _ in range(1000):
        weighted = np.asarray(probabilities) * (found / source)
        new = (weighted / weighted.sum(axis=1, keepdims=True)).mean(axis=0)
        if np.abs(new - found).max() < 1e-7:
            return np.asarray(new, np.float64)
        found = new
    return np.asarray(found, np.float64)
