"""How good a model is: figures from logits or probabilities (n, classes) and true labels (n,), and the temperature that calibrates it."""

from dataclasses import dataclass

import numpy as np

from fer_ray.typing import BoolArray, Float64Array, FloatArray, Int64Array, IntArray

BINS = 15
RESAMPLES, LEVEL = 1000, 0.95
INTERVALS = ("accuracy", "macro_f1", "weighted_f1", "ece", "nll")
EXACT_BELOW = 25
LESS_IS_BETTER = ("ece", "nll", "brier")  # of all figures that a model, a training or a search is judged by
_SMALLEST = 1e-12
_RESAMPLING_BLOCK = 1 << 22


@dataclass(frozen=True)
class PerClass:
    """One number per class: precision, recall, F1 and `roc_auc` float64 (NaN where there is none), `support` int64 (true images)."""

    precision: Float64Array
    recall: Float64Array
    f1: Float64Array
    roc_auc: Float64Array
    support: Int64Array

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the classes that have images; answers with any other class cost those classes recall."""
        return float(self.f1[self.support > 0].mean())

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
    """A reliability diagram: `count` int64, mean `confidence` and `accuracy` float64 (0 in empty bins) of equally wide bins."""

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
    scaled = np.asarray(logits, np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float64)


def confusion_matrix(logits: FloatArray, labels: IntArray) -> Int64Array:
    """Counts (classes, classes): row = true class, column = predicted class."""
    classes = logits.shape[1]
    return np.bincount(labels * classes + logits.argmax(axis=1), minlength=classes * classes).reshape(classes, classes)


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
    confidences, rights = (np.bincount(index, weights=values, minlength=bins) for values in (confidence, correct))
    return Bins(count, confidences / np.maximum(count, 1), rights / np.maximum(count, 1))


def _bin(confidence: FloatArray, bins: int) -> IntArray:
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)


def fit_temperature(logits: FloatArray, labels: IntArray) -> float:
    """The temperature in 0.05..20 with the least NLL (Guo et al. 2017), by golden-section search over its logarithm."""
    low, high = np.log(0.05), np.log(20.0)
    ratio = (np.sqrt(5) - 1) / 2
    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if negative_log_likelihood(logits, labels, float(np.exp(left))) < negative_log_likelihood(logits, labels, float(np.exp(right))):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def evaluate(logits: FloatArray, labels: IntArray, temperature: float = 1.0) -> dict[str, float]:
    """accuracy, macro_f1, nll, ece and samples."""
    matrix = confusion_matrix(logits, labels)
    found, true, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    return {
        "accuracy": float(found.sum() / matrix.sum()),
        "macro_f1": float((2 * found / np.maximum(true + predicted, 1)).mean()),
        "nll": negative_log_likelihood(logits, labels, temperature),
        "ece": expected_calibration_error(logits, labels, temperature),
        "samples": float(matrix.sum()),
    }


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
    figures = precision_recall_fscore_support(labels, probabilities.argmax(axis=1), labels=np.arange(classes), zero_division=0.0)
    precision, recall, f1, support = figures
    areas = np.full(classes, np.nan)
    for index in np.flatnonzero((support > 0) & (support < len(labels))):
        areas[index] = roc_auc_score(labels == index, probabilities[:, index])
    return PerClass(precision, recall, f1, areas, support)


def bootstrap_intervals(
    probabilities: FloatArray, labels: IntArray, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> dict[str, tuple[float, float]]:
    """Percentile intervals (Efron 1979) of `INTERVALS`, over images drawn with replacement.

    Every figure is made of sums over the images, so a resample is a row of counts, and all of them one product of matrices.
    The resampled ECE tends to lie above the true one, since noise widens the gaps of bins.
    """
    generator, images, classes = np.random.default_rng(seed), *probabilities.shape
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    correct = predicted == labels
    true, said, one_bin = np.eye(classes)[labels], np.eye(classes)[predicted], np.eye(BINS)[_bin(confidence, BINS)]
    gaps = one_bin * (confidence - correct)[:, None]
    summands = np.column_stack([_losses(probabilities, labels), true * correct[:, None], true, said, gaps])
    rows = max(1, _RESAMPLING_BLOCK // images)
    means = np.concatenate(
        [
            generator.multinomial(images, np.full(images, 1 / images), size=min(rows, resamples - start)) @ summands / images
            for start in range(0, resamples, rows)
        ]
    )
    nll, found, share, answered, gap = np.split(means, np.cumsum([1, classes, classes, classes]), axis=1)
    f1 = 2 * found / np.maximum(share + answered, _SMALLEST)
    has_images = np.bincount(labels, minlength=classes) > 0
    figures = {
        "accuracy": found.sum(axis=1),
        "macro_f1": f1[:, has_images].mean(axis=1),
        "weighted_f1": (f1 * share).sum(axis=1),
        "ece": np.abs(gap).sum(axis=1),
        "nll": nll[:, 0],
    }
    tails = [(1 - level) / 2, (1 + level) / 2]
    intervals = {name: np.quantile(values, tails) for name, values in figures.items()}
    return {name: (float(low), float(high)) for name, (low, high) in intervals.items()}


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
