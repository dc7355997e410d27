"""Confidence that depends on the picture."""

from __future__ import annotations

import numpy as np
import pytest

from fer_ray.models.calibration import PictureCalibration, fit_by_picture
from fer_ray.models.metrics import compute_metrics
from fer_ray.typing import Float64Array, Int64Array
from fer_ray.vision.quality import OUTPUTS

RNG = np.random.default_rng(0)
OCCLUDED = OUTPUTS.index("occluded")


def answers(covered: bool, count: int) -> tuple[Float64Array, Float64Array, Int64Array]:
    """Logits, what is seen and labels: a model that is as sure of covered faces, of which it is right about half."""
    labels = RNG.integers(0, 3, count)
    right = RNG.random(count) < (0.5 if covered else 0.9)
    said = np.where(right, labels, RNG.integers(0, 3, count))
    seen = RNG.normal(0, 0.3, (count, len(OUTPUTS)))
    seen[:, OCCLUDED] += 3 if covered else -3
    return 4 * np.eye(3)[said] + RNG.normal(0, 0.5, (count, 3)), seen, labels


def test_a_covered_face_is_unsure_where_a_free_one_is_sure() -> None:
    parts = [answers(covered, 2000) for covered in (False, True)]
    logits, seen, labels = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    fitted = fit_by_picture(logits, seen, labels, np.ones(len(labels)))
    for (logits, seen, labels), confident in zip([answers(False, 2000), answers(True, 2000)], (True, False), strict=True):
        probabilities = fitted.apply(logits, seen)
        assert probabilities.sum(axis=1) == pytest.approx(np.ones(len(labels)))
        assert compute_metrics(np.log(probabilities), labels)["ece"] < 0.04
        assert (probabilities.max(axis=1) > 0.8).mean() > 0.8 if confident else (probabilities.max(axis=1) > 0.8).mean() < 0.5


def test_a_calibration_is_read_back_as_it_was_written() -> None:
    fitted = PictureCalibration(RNG.normal(size=1 + len(OUTPUTS)), RNG.normal(size=(3, 1 + len(OUTPUTS))))
    again = PictureCalibration.from_dict(fitted.to_dict(), 3)
    logits, seen, _ = answers(True, 5)
    assert again.apply(logits, seen).tolist() == fitted.apply(logits, seen).tolist()
