"""How good a model is: figures from logits (n, classes) and true labels (n,), and the temperature that calibrates it."""

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.floating]
Int = npt.NDArray[np.integer]


def softmax(logits: Float, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Probabilities (n, classes) that add up to 1 in every row."""
    scaled = np.asarray(logits, np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float64)


def confusion_matrix(logits: Float, labels: Int) -> npt.NDArray[np.int64]:
    """Counts (classes, classes): row = true class, column = predicted class."""
    classes = logits.shape[1]
    return np.bincount(labels * classes + logits.argmax(axis=1), minlength=classes * classes).reshape(classes, classes)


def negative_log_likelihood(logits: Float, labels: Int, temperature: float = 1.0) -> float:
    """Mean of -log p(true class)."""
    chosen = softmax(logits, temperature)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def expected_calibration_error(logits: Float, labels: Int, temperature: float = 1.0, bins: int = 15) -> float:
    """ECE with equally wide bins of confidence (Guo et al. 2017, arXiv 1706.04599)."""
    probabilities = softmax(logits, temperature)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[index == b].mean() - correct[index == b].mean()) * (index == b).mean() for b in np.unique(index)]
    return float(sum(gaps))


def fit_temperature(logits: Float, labels: Int) -> float:
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


def evaluate(logits: Float, labels: Int, temperature: float = 1.0) -> dict[str, float]:
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
