"""The figures that models are judged by, against values worked out by hand or known from theory."""

import math
import warnings

import numpy as np
import pytest

from fer_ray.models import metrics
from fer_ray.models.calibration import calibrate, fit_temperature
from fer_ray.typing import BoolArray, Float64Array, IntArray


def test_accuracy_and_f1_of_a_small_table() -> None:
    logits = np.log(np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.7, 0.2], [0.2, 0.3, 0.5]]))
    labels = np.array([0, 1, 1, 2])
    figures = metrics.compute_metrics(logits, labels)
    assert metrics.confusion_matrix(logits, labels).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert figures["accuracy"] == 0.75
    assert figures["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert figures["nll"] == pytest.approx(-np.log([0.8, 0.3, 0.7, 0.5]).mean())


def test_the_temperature_undoes_overconfidence() -> None:
    generator = np.random.default_rng(0)
    honest = generator.normal(0, 1.5, (20_000, 7))
    labels = np.array([generator.choice(7, p=row) for row in metrics.softmax(honest)])
    temperature = fit_temperature(honest * 3, labels)
    assert temperature == pytest.approx(3, rel=0.05)
    assert metrics.expected_calibration_error(honest * 3, labels) > 0.1
    assert metrics.expected_calibration_error(honest * 3, labels, temperature) < 0.015


def test_a_model_validated_without_errors_does_not_claim_certainty_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    labels = np.arange(185) % 7
    logits = np.random.default_rng(0).normal(0, 1, (185, 7)) + 9 * np.eye(7)[labels]  # right in all 185, as where frames leak
    assert fit_temperature(logits, labels) < 0.2  # the surer, the better
    temperature, figures = calibrate(logits, labels)
    confidence = metrics.softmax(logits, temperature).max(axis=1)
    assert figures["accuracy"] == 1
    assert confidence.mean() == pytest.approx(185 / (185 + 1.96**2), abs=1e-4)
    assert (confidence > 0.99).mean() < 0.5 < (metrics.softmax(logits).max(axis=1) > 0.99).mean()
    assert "fewer than 10 errors in 185 images" in caplog.text
    few, many = np.arange(40) % 2, np.arange(400) % 2
    assert metrics.softmax(np.eye(2)[few], calibrate(np.eye(2)[few], few)[0]).max() < 0.92
    erring = np.where(np.arange(400) % 10, many, 1 - many)  # 40 errors: what is fitted counts
    assert calibrate(np.eye(2)[many], erring)[0] == pytest.approx(fit_temperature(np.eye(2)[many], erring))


def test_probabilities_of_huge_logits_are_finite_and_add_up() -> None:
    assert metrics.softmax(np.array([[1e4, -1e4, 0.0]])).tolist() == [[1.0, 0.0, 0.0]]


def test_a_rare_class_that_is_never_predicted_or_has_no_faces_gives_zeros_and_no_warning() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.6, 0.4, 0.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = metrics.per_class(probabilities, np.array([0, 0, 1]))
    assert figures.precision.tolist() == [pytest.approx(2 / 3), 0, 0]
    assert figures.recall.tolist() == [1, 0, 0]
    assert figures.support.tolist() == [2, 1, 0]
    assert figures.macro_f1 == pytest.approx((0.8 + 0) / 2)  # the class without faces counts in no mean, in a training as little
    assert metrics.compute_metrics(np.log(np.maximum(probabilities, 1e-9)), np.array([0, 0, 1]))["macro_f1"] == figures.macro_f1
    assert figures.weighted_f1 == pytest.approx((2 * 0.8 + 0) / 3)
    assert figures.roc_auc[:2].tolist() == [1, 1]
    assert np.isnan(figures.roc_auc[2])
    assert figures.macro_roc_auc == 1


def test_the_area_under_the_curve_is_the_share_of_pairs_in_the_right_order() -> None:
    positive = np.array([0.9, 0.4, 0.6, 0.1])
    figures = metrics.per_class(np.column_stack([positive, 1 - positive]), np.array([0, 0, 1, 1]))
    assert figures.roc_auc.tolist() == [0.75, 0.75]
    assert metrics.per_class(np.array([[1.0, 0.0]]), np.array([0])).macro_roc_auc is None


def test_squared_errors_and_entropies_of_labels_and_of_votes() -> None:
    probabilities, votes = np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]), np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    labels = np.array([0, 2])
    assert metrics.brier_score(probabilities, np.eye(3)[labels]) == pytest.approx((0.375 + 0.24) / 2)
    assert metrics.brier_score(probabilities, votes) == pytest.approx((0.125 + 0.24) / 2)
    assert metrics.cross_entropy(probabilities, np.eye(3)[labels]) == pytest.approx(
        metrics.negative_log_likelihood(np.log(probabilities), labels)
    )
    assert metrics.kl_divergence(probabilities, votes) == pytest.approx((0.5 * np.log(2) - np.log(0.6)) / 2)
    assert metrics.kl_divergence(votes, votes) == 0


def test_an_honest_model_has_no_calibration_error_and_a_boastful_one_its_gap() -> None:
    sure = np.tile([0.75, 0.25], (8, 1))
    assert metrics.reliability(sure, np.array([0, 0, 0, 1] * 2)).expected_calibration_error == 0
    bins = metrics.reliability(sure, np.array([0, 1] * 4))
    assert bins.expected_calibration_error == pytest.approx(0.25)
    assert bins.count.tolist() == [0] * 11 + [8] + [0] * 3
    assert metrics.reliability(np.array([[1.0, 0.0]]), np.array([0])).count[-1] == 1


@pytest.fixture(scope="module")
def drawn() -> tuple[Float64Array, IntArray]:
    """Answers with known chances to be right, and labels drawn with those chances."""
    generator = np.random.default_rng(3)
    probabilities = metrics.softmax(generator.normal(0, 1.5, (4000, 4)))
    return probabilities, np.array([generator.choice(4, p=row) for row in probabilities])


def test_intervals_hold_the_figure_agree_with_theory_and_shrink_with_more_faces(drawn: tuple[Float64Array, IntArray]) -> None:
    probabilities, labels = drawn
    many, few = metrics.bootstrap_intervals(*drawn), metrics.bootstrap_intervals(probabilities[:400], labels[:400])
    figures = metrics.compute_metrics(np.log(probabilities), labels)
    assert tuple(many) == metrics.INTERVALS
    for name, (low, high) in many.items():
        assert high - low < few[name][1] - few[name][0]
        if name in ("accuracy", "macro_f1", "nll"):
            assert low < figures[name] < high
    accuracy = figures["accuracy"]
    spread = 1.96 * np.sqrt(accuracy * (1 - accuracy) / len(labels))
    assert many["accuracy"] == pytest.approx((accuracy - spread, accuracy + spread), abs=0.003)


def test_every_resample_gives_the_figures_that_the_resampled_faces_have(drawn: tuple[Float64Array, IntArray]) -> None:
    probabilities, labels = drawn[0][:60], drawn[1][:60]
    counts = np.random.default_rng(9).multinomial(60, np.full(60, 1 / 60), size=1)[0]
    again, repeated = probabilities.repeat(counts, axis=0), labels.repeat(counts)
    expected = metrics.compute_metrics(np.log(again), repeated) | {
        name: getattr(metrics.per_class(again, repeated), name) for name in ("mean_recall", "weighted_f1")
    }
    for name, (low, high) in metrics.bootstrap_intervals(probabilities, labels, seed=9, resamples=1).items():
        assert low == high == pytest.approx(expected[name]), name


def test_mcnemar_agrees_with_worked_examples_exact_and_approximate() -> None:
    def correct(both: int, first: int, second: int) -> tuple[BoolArray, BoolArray]:
        rights = [(True, True)] * both + [(True, False)] * first + [(False, True)] * second
        return np.array([a for a, _ in rights]), np.array([b for _, b in rights])

    few = metrics.mcnemar(*correct(50, 1, 5))
    assert (few.only_first, few.only_second, few.exact) == (1, 5, True)
    assert few.p_value == pytest.approx(2 * (1 + 6) / 2**6)
    many = metrics.mcnemar(*correct(50, 59, 121))  # statistic (|121 - 59| - 1)^2 / 180 = 20.67
    assert not many.exact
    assert many.p_value == pytest.approx(math.erfc(math.sqrt(61**2 / 180 / 2)))
    same = metrics.mcnemar(*correct(50, 0, 0))
    assert (same.p_value, same.exact) == (1.0, True)
