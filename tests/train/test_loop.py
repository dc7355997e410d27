"""The training loop, without Ray: it learns, stops, resumes, freezes and weighs as it was told."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from faces import TINY, dataset_of

from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.recipe import AugmentationConfig, ModelConfig, OptimizationConfig, Recipe
from fer_ray.data import disk_images
from fer_ray.data.dataset import Dataset, load_dataset
from fer_ray.data.disk_images import DiskImages
from fer_ray.errors import DatasetError, TrainingError
from fer_ray.train.augment import augment, training_batches, weights_of_classes
from fer_ray.train.loop import make_network, train_epochs

SMALL = ModelConfig(stem=2, widths=(4,), depths=(1,))  # where nothing has to be learnt: quickly made ready
OFF = AugmentationConfig(flip=False, rotation=0, zoom=0, shift=0, brightness=0, contrast=0, blur=0, erasing=0)


@pytest.fixture(scope="module")
def data(drawn_faces: Path) -> Dataset:
    return dataset_of(drawn_faces)


@pytest.fixture(scope="module")
def few(drawn_faces: Path) -> Dataset:
    """Enough where nothing has to be learnt."""
    return load_dataset(DatasetConfig(str(drawn_faces), keep_duplicates=True, limit=64), 48)


def recipe(model: ModelConfig = TINY, augmentation: AugmentationConfig = OFF, **settings: object) -> Recipe:
    return Recipe(model, augmentation, OptimizationConfig(batch_size=16, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw", "mixup": 0.2, "class_weights": "balanced"},
        {"optimizer": "sgd", "epochs": 8, "learning_rate": 0.05, "weight_decay": 1e-4, "weight_average": 0.0},
        {"optimizer": "adam", "precision": "bfloat16", "schedule": "plateau", "weight_average": 0.999},  # which keeps up with few steps
    ],
    ids=lambda settings: str(settings["optimizer"]),
)
def test_each_optimizer_learns_to_tell_drawn_faces_apart(data: Dataset, settings: dict[str, object]) -> None:
    settings = {"epochs": 5, "learning_rate": 4e-3, "weight_average": 0.9, **settings}
    epochs = list(train_epochs(data, recipe(TINY, AugmentationConfig(erasing=0.1), **settings)))
    assert max(epoch.figures["accuracy"] for epoch in epochs) > 0.9
    assert epochs[-1].train_loss < epochs[0].train_loss


def test_a_try_of_two_short_epochs_is_better_than_chance(data: Dataset) -> None:
    epochs = list(train_epochs(data, recipe(epochs=2, learning_rate=1e-2)))
    assert epochs[-1].figures["accuracy"] > 0.8
    assert epochs[-1].learning_rate < 1e-3, "the learning rate rises and falls in however few epochs"


def test_training_stops_early_and_lowers_the_learning_rate_when_nothing_is_gained(few: Dataset) -> None:
    # So small a learning rate gains nothing, so the first epoch stays the best one.
    settings = recipe(SMALL, epochs=30, learning_rate=1e-12, warmup_epochs=0, patience=3, schedule="plateau", plateau_patience=2)
    epochs = list(train_epochs(few, settings))
    assert len(epochs) <= 1 + max(epoch.number for epoch in epochs if epoch.improved) + 3
    assert epochs[-1].learning_rate == pytest.approx(1e-12 * 0.2)
    assert not epochs[-1].improved


def test_a_resumed_training_ends_where_an_unbroken_one_does(few: Dataset) -> None:
    settings = recipe(SMALL, epochs=3, frozen_epochs=1, augmentation=AugmentationConfig())
    unbroken = list(train_epochs(few, settings))
    for broken_after in (1, 2):
        rest = list(train_epochs(few, settings, state=unbroken[broken_after - 1].state))
        assert [epoch.number for epoch in rest] == list(range(broken_after + 1, 4))
        assert [epoch.train_loss for epoch in rest] == pytest.approx([epoch.train_loss for epoch in unbroken[broken_after:]], rel=1e-3)
        for mine, theirs in zip(rest[-1].weights, unbroken[-1].weights, strict=True):
            assert mine == pytest.approx(theirs, abs=2e-3)


def test_a_frozen_base_rests_until_its_epochs_are_over(few: Dataset) -> None:
    network = make_network(recipe(SMALL), 2)
    before = network.get_weights()
    first, second = train_epochs(few, recipe(SMALL, epochs=2, frozen_epochs=1, weight_average=0.0), network)
    trained = [not np.array_equal(a, b) for a, b in zip(before, first.weights, strict=True)]
    assert trained[-2:] == [True, True]  # the last layer
    assert not any(trained[:-2])
    assert not np.array_equal(first.weights[0], second.weights[0])


def test_a_loss_that_is_no_number_ends_the_training_with_a_sentence(few: Dataset) -> None:
    hopeless = recipe(SMALL, epochs=2, learning_rate=4e9, warmup_epochs=0)
    with pytest.raises(TrainingError, match="no longer a number in epoch 1: lower --learning-rate"):
        list(train_epochs(few, hopeless))


def test_augmentation_is_random_but_repeatable_and_can_be_turned_off() -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 48, 48)).astype(np.uint8)
    assert np.array_equal(augment(images, OFF, np.random.default_rng(1))[..., 0], images)
    colored = np.repeat(images[..., None], 3, axis=3)
    assert np.array_equal(augment(colored, OFF, np.random.default_rng(1)), colored)
    flipped = augment(images, dataclasses.replace(OFF, flip=True), np.random.default_rng(1))[..., 0]
    mirrored = [np.array_equal(view, image[:, ::-1]) for view, image in zip(flipped, images, strict=True)]
    same = [np.array_equal(view, image) for view, image in zip(flipped, images, strict=True)]
    assert any(mirrored)
    assert any(same)
    assert all(a or b for a, b in zip(mirrored, same, strict=True))
    first, again = (augment(images, AugmentationConfig(), np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.min() >= 0
    assert first.max() <= 255


@pytest.mark.parametrize("color", [False, True])
def test_training_images_are_made_poor_in_each_way_that_is_asked_for_and_in_no_other(color: bool) -> None:
    shape = (64, 48, 48, 3) if color else (64, 48, 48)
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    clean = {"noise": 0, "jpeg": 100, "pixels": 0, "motion": 0, "gamma": 1, "patch": 0, "mask": 0}
    strengths = {"noise": 16, "jpeg": 10, "pixels": 12, "motion": 7, "gamma": 2, "patch": 0.5, "mask": 0.5}
    for way in (None, *clean):
        settings: dict[str, Any] = {f"degrade_{name}": strengths[name] if name == way else value for name, value in clean.items()}
        config = dataclasses.replace(OFF, degrade=1.0, **settings)
        views = augment(images, config, np.random.default_rng(1)).reshape(shape)
        changed = [not np.array_equal(view, image) for view, image in zip(views, images, strict=True)]
        assert any(changed) == bool(way), f"{way} alone"
        assert not all(changed), f"{way} spares some"


def test_a_training_on_poor_images_is_judged_on_poor_ones_too(few: Dataset) -> None:
    (epoch,) = train_epochs(few, recipe(SMALL, epochs=1, augmentation=dataclasses.replace(OFF, degrade=0.6)))
    assert 0 <= epoch.row()["degraded_accuracy"] <= 1
    (without,) = train_epochs(few, recipe(SMALL, epochs=1))
    assert "degraded_accuracy" not in without.row()


def test_a_data_set_that_is_larger_than_memory_trains_from_disk_as_one_that_fits(
    few: Dataset, drawn_faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_images, "MEMORY_SHARE", 0.0)
    monkeypatch.setattr(disk_images, "RESIDENT_BYTES", 100_000)  # a few dozen images
    on_disk = load_dataset(DatasetConfig(str(drawn_faces), keep_duplicates=True, limit=64), 48)
    assert isinstance(on_disk.train.images, DiskImages)
    assert on_disk.sha256 == few.sha256
    assert np.array_equal(on_disk.train.images, few.train.images)
    settings = recipe(SMALL, epochs=1, augmentation=dataclasses.replace(OFF, degrade=0.5))
    (epoch,), (expected,) = train_epochs(on_disk, settings), train_epochs(few, settings)
    assert epoch.row() | {"seconds": 0} == pytest.approx(expected.row() | {"seconds": 0}, rel=1e-5)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(DatasetError, match=r"too large for this machine .*: point TMPDIR to a larger disk"):
        load_dataset(DatasetConfig(str(drawn_faces), keep_duplicates=True, limit=64), 48)


def test_an_epoch_shows_every_image_once_however_many_workers_share_it(data: Dataset) -> None:
    for count in (1, 2, 4):
        shown = [
            image.astype(np.uint8).tobytes()
            for rank in range(count)
            for images, _, _ in training_batches(data.train, recipe(), 3, rank, count)
            for image in images
        ]
        assert sorted(shown) == sorted(image.tobytes() for image in data.train.images)


def test_mixup_and_smoothing_leave_probabilities_and_rare_classes_weigh_more(data: Dataset) -> None:
    targets = np.where(np.arange(len(data.train))[:, None] < 32, [[0, 1]], [[1, 0]]).astype(np.float32)
    rare = dataclasses.replace(data.train, targets=targets)
    weights = weights_of_classes(rare, OptimizationConfig(class_weights="balanced"))
    assert weights[1] / weights[0] == pytest.approx((len(rare) - 32) / 32)
    assert float((rare.targets @ weights).mean()) == pytest.approx(1.0, abs=1e-5)
    for _, targets, _ in training_batches(rare, recipe(mixup=0.4, label_smoothing=0.1), 0):
        assert targets.sum(axis=1) == pytest.approx(np.ones(16), abs=1e-5)
        assert targets.min() >= 0.05 - 1e-6
