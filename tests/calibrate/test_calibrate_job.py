"""Calibrating a bundle as a user does, on drawn faces."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_ray import Labeler
from fer_ray.calibrate.job import calibrate_bundle
from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.jobs.calibrate import CalibrateConfig
from fer_ray.errors import DatasetError, UsageError
from fer_ray.models import bundle
from fer_ray.vision import degradation

PER_CLASS = 26


@pytest.fixture(scope="module")
def poses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A validation split with all eight emotions: drawn discs, whose labels have little to do with what the model sees in them."""
    root, generator = tmp_path_factory.mktemp("poses"), np.random.default_rng(0)
    for emotion in ("angry", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise"):
        (root / "validation" / emotion).mkdir(parents=True)
        (root / "train" / emotion).mkdir(parents=True)
        for number in range(PER_CLASS + 1):
            face = generator.integers(0, 60, (48, 48)).astype(np.uint8)
            cv2.circle(face, (24, 24), int(generator.integers(14, 20)), int(generator.integers(120, 230)), cv2.FILLED)
            cv2.ellipse(face, (24, 30), (8, 5), 0, 180 * (number % 2), 180 + 180 * (number % 2), 30, 2)
            folder = "validation" if number else "train"
            cv2.imwrite(str(root / folder / emotion / f"{number}.png"), face)
    return root


def test_a_calibrated_bundle_claims_no_more_than_it_knows_and_labels_like_any_other(
    poses: Path, tmp_path: Path, photographs: dict[str, Path]
) -> None:
    config = CalibrateConfig("ferplus", str(tmp_path / "calibrated"), views=1, data=DatasetConfig(str(poses)))
    summary = calibrate_bundle(config)
    before, after = bundle.load(bundle.resolve("ferplus")), bundle.load(str(tmp_path / "calibrated"))
    assert after.model_version == summary["model_version"] != before.model_version
    assert list(summary["conditions"]) == list(degradation.CONDITIONS)
    face = np.asarray(cv2.imread(str(poses / "validation" / "happy" / "1.png"), cv2.IMREAD_GRAYSCALE), np.uint8)[None]
    assert after.logits(face).tolist() == before.logits(face).tolist(), "the networks are the same"
    assert after.probabilities(face).max() < 0.4, "the labels of these faces cannot be told from what is drawn"
    (image,) = Labeler(str(tmp_path / "calibrated")).label([photographs["astronaut"]])
    assert sum(image.faces[0].probabilities.values()) == pytest.approx(1)
    with pytest.raises(UsageError, match="exists already"):
        calibrate_bundle(config)


def test_faces_without_an_emotion_that_the_model_knows_and_too_few_of_them_are_refused(poses: Path, tmp_path: Path) -> None:
    few = shutil.copytree(poses, tmp_path / "few")
    shutil.rmtree(few / "validation" / "contempt")
    for data, complaint in ((DatasetConfig(str(few)), "no contempt"), (DatasetConfig(str(poses), limit=3), "needs 200")):
        with pytest.raises(DatasetError, match=complaint):
            calibrate_bundle(CalibrateConfig("ferplus", str(tmp_path / "none"), data=data))
    assert not (tmp_path / "none").exists()
