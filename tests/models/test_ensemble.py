"""Bundles made of bundles: averaged, calibrated together, and taken by the labeler like any other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from faces import TINY, dataset_of

from fer_ray import Labeler
from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.jobs.ensemble import EnsembleConfig
from fer_ray.config.recipe import OptimizationConfig, Recipe
from fer_ray.errors import UsageError
from fer_ray.models import bundle, keras_bundle
from fer_ray.models.ensemble import combine
from fer_ray.train.loop import make_network, train_epochs

if TYPE_CHECKING:
    import keras


def train_quickly(faces: Path, folder: Path, seed: int) -> str:
    recipe = Recipe(TINY, optimization=OptimizationConfig(epochs=2, batch_size=16, learning_rate=4e-3, weight_average=0.9, seed=seed))
    network = make_network(recipe, 2)
    *_, last = train_epochs(dataset_of(faces), recipe, network)
    network.set_weights(last.weights)
    return save(network, folder, ("happy", "sad"))


def save(network: keras.Model, folder: Path, classes: tuple[str, ...]) -> str:
    folder.mkdir()
    member = bundle.Member(keras_bundle.KerasNetwork(network), TINY)
    keras_bundle.save(str(folder), [member], keras_bundle.Description(classes, 1.0, {}, {}))
    return str(folder)


def test_an_ensemble_is_calibrated_saved_and_labels_photographs(drawn_faces: Path, tmp_path: Path, photographs: dict[str, Path]) -> None:
    models = (
        train_quickly(drawn_faces, tmp_path / "member1", 1),
        save(make_network(Recipe(TINY), 2), tmp_path / "member2", ("happy", "sad")),
    )
    data = DatasetConfig(str(drawn_faces), keep_duplicates=True)
    summary = combine(EnsembleConfig(models, str(tmp_path / "both"), flip=True, data=data))
    assert summary["accuracy"] >= min(summary["accuracy_of_members"].values())
    assert list(summary["accuracy_of_members"]) == [
        made["model_version"] for made in bundle.read_metadata(str(tmp_path / "both"))["lineage"]["made_of"]
    ]
    labeler = Labeler(str(tmp_path / "both"))
    assert labeler.model_version == summary["model_version"]
    assert labeler.model_version.startswith("ensemble2-")
    (image,) = labeler.label([photographs["astronaut"]])
    assert sum(image.faces[0].probabilities.values()) == pytest.approx(1)
    with pytest.raises(UsageError, match="exists already"):
        combine(EnsembleConfig(models, str(tmp_path / "both"), data=data))
    combine(EnsembleConfig(models[:2], str(tmp_path / "soup"), average="weights", share=(0.25, 0.75), data=data))
    soup, first, second = (keras_bundle.load(name).members[0].network.model.get_weights() for name in (str(tmp_path / "soup"), *models[:2]))
    assert all(np.allclose(mean, 0.25 * a + 0.75 * b, atol=1e-6) for mean, a, b in zip(soup, first, second, strict=True))
    with pytest.raises(UsageError, match="a number above 0 for each model"):
        EnsembleConfig(models[:2], str(tmp_path / "soup"), average="weights", share=(1.0,), data=data)
    other = save(make_network(Recipe(TINY), 2), tmp_path / "other", ("angry", "happy"))
    with pytest.raises(UsageError, match="only like bundles"):
        combine(EnsembleConfig((models[0], other), str(tmp_path / "mixed"), data=data))
    assert not (tmp_path / "mixed").exists()
