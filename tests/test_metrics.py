"""The figures that models are judged by, against values worked out by hand or known from theory."""

import numpy as np
import pytest

from fer_ray import metrics


def test_accuracy_and_f1_of_a_small_table() -> None:
    logits = np.log(np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.7, 0.2], [0.2, 0.3, 0.5]]))
    labels = np.array([0, 1, 1, 2])
    figures = metrics.evaluate(logits, labels)
    assert metrics.confusion_matrix(logits, labels).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert figures["accuracy"] == 0.75
    assert figures["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert figures["nll"] == pytest.approx(-np.log([0.8, 0.3, 0.7, 0.5]).mean())


def test_the_temperature_undoes_overconfidence() -> None:
    generator = np.random.default_rng(0)
    honest = generator.normal(0, 1.5, (20_000, 7))
    labels = np.array([generator.choice(7, p=row) for row in metrics.softmax(honest)])
    temperature = metrics.fit_temperature(honest * 3, labels)
    assert temperature == pytest.approx(3, rel=0.05)
    assert metrics.expected_calibration_error(honest * 3, labels) > 0.1
    assert metrics.expected_calibration_error(honest * 3, labels, temperature) < 0.015


def test_probabilities_of_huge_logits_are_finite_and_add_up() -> None:
    assert metrics.softmax(np.array([[1e4, -1e4, 0.0]])).tolist() == [[1.0, 0.0, 0.0]]
