"""How good a model is: metrics from logits or probabilities (n, classes) and the true labels (n,)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fer_ray.typing import BoolArray, Float64Array, FloatArray, Int64Array, IntArray

BINS = 15  # of confidence, as Guo et al. 2017 use for their ECE
RESAMPLES = 1000
LEVEL = 0.95  # of the intervals
INTERVALS = ("accuracy", "mean_recall", "macro_f1", "weighted_f1", "ece", "nll")
LESS_IS_BETTER = ("ece", "nll", "brier")  # of all figures that a model, a training or a search is judged by
EXACT_BELOW = 25  # images on which two models disagree: the usual limit for the chi-squared approximation
_NORMAL_QUANTILE = 1.959964  # of the normal distribution, for two-sided 95 %
_SMALLEST = 1e-12  # the least probability whose logarithm is taken
_RESAMPLING_BLOCK = 1 << 22  # counts drawn at once: 32 MiB of int64


@dataclass(frozen=True)
class PerClass:
    """One number per class (classes,): precision, recall, F1 and ROC AUC (NaN where there is none), and the number of true images."""

    precision: Float64Array
    recall: Float64Array
    f1: Float64Array
    roc_auc: Float64Array
    support: Int64Array

    @property
    def macro_f1(self) -> float:
        return float(macro_f1(self.f1, self.support))

    @property
    def mean_recall(self) -> float:
        """The mean recall of the classes that have images, which the frequent ones do not carry alone."""
        return float(self.recall[self.support > 0].mean())

    @property
    def weighted_f1(self) -> float:
        """The mean F1 weighted by the images of each class."""
        return float(np.average(self.f1, weights=self.support))

    @property
    def macro_roc_auc(self) -> float | None:
        """The mean ROC AUC of the classes that have one; None where no class has."""
        known = self.roc_auc[~np.isnan(self.roc_auc)]
        return float(known.mean()) if len(known) else None


@dataclass(frozen=True)
class Bins:
    """A reliability diagram over equally wide bins of confidence: images, mean confidence, accuracy (both 0 in empty bins)."""

    count: Int64Array
    confidence: Float64Array
    accuracy: Float64Array

    @property
    def expected_calibration_error(self) -> float:
        """The mean gap between confidence and accuracy (Guo et al. 2017, arXiv 1706.04599)."""
        return float(np.average(np.abs(self.confidence - self.accuracy), weights=self.count))


@dataclass(frozen=True)
class McNemar:
    """How often only one of two models is right, and how likely so uneven a split is when both err equally often."""

    only_first: int
    only_second: int
    p_value: float
    exact: bool


def softmax(logits: FloatArray, temperature: float = 1.0) -> Float64Array:
    """Probabilities (n, classes) that add up to 1 in every row."""
    scaled = np.asarray(logits, np.float64) / temperature  # not scipy's: a labeling process would load it for this alone
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def confusion_matrix(logits: FloatArray, labels: IntArray) -> Int64Array:
    """Counts (classes, classes): row = true class, column = predicted class."""
    classes = logits.shape[1]
    return np.bincount(labels * classes + logits.argmax(axis=1), minlength=classes * classes).reshape(classes, classes)


def f1_scores(correct: FloatArray | IntArray, true: FloatArray | IntArray, predicted: FloatArray | IntArray) -> Float64Array:
    """The F1 of each class from its images (..., classes): labeled right, truly of it, taken for it. 0 where there are none of either."""
    return np.asarray(2 * correct / np.maximum(true + predicted, _SMALLEST), np.float64)


def macro_f1(f1: Float64Array, support: IntArray) -> Float64Array:
    """The mean F1 (...) over the classes that have images; taking a face for one of the other classes costs its own class recall.

    Args:
        f1: F1 of each class, (..., classes).
        support: true images of each class, (classes,).
    """
    return np.asarray(f1[..., support > 0].mean(axis=-1))


def compute_metrics(logits: FloatArray, labels: IntArray, temperature: float = 1.0) -> dict[str, float]:
    """The figures that a training is followed by: accuracy, macro_f1, nll, ece, and the number of samples."""
    matrix = confusion_matrix(logits, labels)
    correct, true, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    return {
        "accuracy": float(correct.sum() / matrix.sum()),
        "macro_f1": float(macro_f1(f1_scores(correct, true, predicted), true)),
        "nll": negative_log_likelihood(logits, labels, temperature),
        "ece": expected_calibration_error(logits, labels, temperature),
        "samples": float(matrix.sum()),
    }


def negative_log_likelihood(logits: FloatArray, labels: IntArray, temperature: float = 1.0) -> float:
    """Mean of -log p(true class)."""
    return float(_losses(softmax(logits, temperature), labels).mean())


def _losses(probabilities: FloatArray, labels: IntArray) -> Float64Array:
    chosen = probabilities[np.arange(len(labels)), labels]
    return np.asarray(-np.log(np.maximum(chosen, _SMALLEST)), np.float64)


def expected_calibration_error(logits: FloatArray, labels: IntArray, temperature: float = 1.0, bins: int = BINS) -> float:
    """ECE with equally wide bins of confidence (Guo et al. 2017, arXiv 1706.04599)."""
    return reliability(softmax(logits, temperature), labels, bins).expected_calibration_error


def reliability(probabilities: FloatArray, labels: IntArray, bins: int = BINS) -> Bins:
    """How confident and how right the answers are, in bins of confidence."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    index = _bin(confidence, bins)
    count = np.bincount(index, minlength=bins)
    total_confidence = np.bincount(index, weights=confidence, minlength=bins)
    total_correct = np.bincount(index, weights=correct, minlength=bins)
    return Bins(count, total_confidence / np.maximum(count, 1), total_correct / np.maximum(count, 1))


def _bin(confidence: FloatArray, bins: int) -> IntArray:
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)


def brier_score(probabilities: FloatArray, targets: FloatArray) -> float:
    """Mean over the images of the squared distance to one-hot labels or shares of votes (n, classes), 0..2 (Brier 1950)."""
    return float(np.square(np.asarray(probabilities, np.float64) - targets).sum(axis=1).mean())


def cross_entropy(probabilities: FloatArray, targets: FloatArray) -> float:
    """Mean of -sum(target * log p) over the images; the NLL, where the targets are one-hot."""
    return float(-(targets * np.log(np.maximum(probabilities, _SMALLEST))).sum(axis=1).mean())


def kl_divergence(probabilities: FloatArray, targets: FloatArray) -> float:
    """Mean of sum(target * log(target / p)): the cross-entropy less what the votes themselves leave open."""
    return cross_entropy(probabilities, targets) - cross_entropy(targets, targets)


def per_class(probabilities: FloatArray, labels: IntArray) -> PerClass:
    """Precision, recall, F1 and one-against-the-rest ROC AUC of every class; 0 where a class is never predicted or has no images."""
    from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

    classes = probabilities.shape[1]
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, probabilities.argmax(axis=1), labels=np.arange(classes), zero_division=0.0
    )
    areas = np.full(classes, np.nan)
    for index in np.flatnonzero((support > 0) & (support < len(labels))):
        areas[index] = roc_auc_score(labels == index, probabilities[:, index])
    return PerClass(precision, recall, f1, areas, support)


def bootstrap_intervals(
    probabilities: FloatArray, labels: IntArray, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> dict[str, tuple[float, float]]:
    """Percentile intervals (Efron 1979) of `INTERVALS`, over images drawn with replacement.

    The resampled ECE tends to lie above the true one, since noise widens the gaps of bins.

    Args:
        probabilities: calibrated answers, (n, classes).
        labels: indices of the true classes, (n,).
        seed: of the draws.
        resamples: how often n images are drawn.
        level: the share of the resamples between the limits.

    Returns:
        The lower and the upper limit of each figure, by its name.
    """
    means = _resample(_terms(probabilities, labels), len(labels), seed, resamples)
    f1 = f1_scores(means["correct"], means["true"], means["predicted"])
    drawn = means["true"] > 0  # a resample may lack a class of few faces
    recall = means["correct"] / np.maximum(means["true"], _SMALLEST)
    figures = {
        "accuracy": means["correct"].sum(axis=1),
        "mean_recall": recall.sum(axis=1, where=drawn) / drawn.sum(axis=1),
        "macro_f1": macro_f1(f1, np.bincount(labels, minlength=probabilities.shape[1])),
        "weighted_f1": (f1 * means["true"]).sum(axis=1),
        "ece": np.abs(means["gap"]).sum(axis=1),
        "nll": means["loss"][:, 0],
    }
    limits = {name: np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) for name, values in figures.items()}
    return {name: (float(low), float(high)) for name, (low, high) in limits.items()}


def _terms(probabilities: FloatArray, labels: IntArray) -> dict[str, Float64Array]:
    """What each image adds to the sums that the figures are made of, (n, columns) by name.

    With two classes, a face of class 0 that is taken for class 1 has `correct` [0, 0], `true` [1, 0] and `predicted` [0, 1].
    """
    classes = probabilities.shape[1]
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    correct = (predicted == labels)[:, None]
    true = np.eye(classes)[labels]
    return {
        "loss": _losses(probabilities, labels)[:, None],
        "correct": true * correct,
        "true": true,
        "predicted": np.eye(classes)[predicted],
        "gap": np.eye(BINS)[_bin(confidence, BINS)] * (confidence[:, None] - correct),
    }


def _resample(terms: Mapping[str, Float64Array], images: int, seed: int, resamples: int) -> dict[str, Float64Array]:
    """The means of the terms, (resamples, columns) by name.

    A resample is a row of counts: [2, 0, 1] draws the first of three images twice and the second never. So the sums of many
    resamples are one product of matrices, which is some hundred times as fast as drawing the images themselves.
    """
    generator = np.random.default_rng(seed)
    columns = np.column_stack(list(terms.values()))
    block = max(1, _RESAMPLING_BLOCK // images)
    sums = [
        generator.multinomial(images, np.full(images, 1 / images), size=min(block, resamples - start)) @ columns
        for start in range(0, resamples, block)
    ]
    ends = np.cumsum([term.shape[1] for term in terms.values()])[:-1]
    return dict(zip(terms, np.split(np.concatenate(sums) / images, ends, axis=1), strict=True))


def wilson(share: float, of: int) -> tuple[float, float]:
    """Wilson's interval of 95 % (1927) for a share of so many, which holds for few and for shares near 0 and 1."""
    square = _NORMAL_QUANTILE**2
    middle = (share + square / (2 * of)) / (1 + square / of)
    half = _NORMAL_QUANTILE * math.sqrt(share * (1 - share) / of + square / (4 * of * of)) / (1 + square / of)
    return middle - half, middle + half


def mcnemar(first_correct: BoolArray, second_correct: BoolArray) -> McNemar:
    """McNemar's test (1947) of two models on the same images (n,).

    Exact where they disagree on fewer than 25 images, otherwise chi-squared with Edwards' continuity correction (1948).
    """
    from scipy import stats

    first, second = int((first_correct & ~second_correct).sum()), int((second_correct & ~first_correct).sum())
    either = first + second
    if either < EXACT_BELOW:
        return McNemar(first, second, float(stats.binomtest(first, either).pvalue) if either else 1.0, True)
    statistic = max(0, abs(first - second) - 1) ** 2 / either
    return McNemar(first, second, float(stats.chi2.sf(statistic, 1)), False)
