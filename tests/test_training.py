"""Training as a user runs it, on drawn faces: it learns, and what it saves labels photographs."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from fer_ray import Labeler, bundle
from fer_ray.config import AugmentationConfig, ResidualConfig, TrainConfig
from fer_ray.dataset import augment, augmented_batches, load_dataset
from fer_ray.errors import DatasetError, UsageError
from fer_ray.training import train, train_epochs

MODEL = ResidualConfig(stem=8, widths=(16, 32), depths=(1, 1), dropout=0.1)


def draw_face(folder: Path, happy: bool, generator: np.random.Generator, number: int) -> None:
    """A disc with two eyes and a mouth that is bent up or down."""
    face = np.full((48, 48), generator.integers(20, 90), np.uint8)
    x, y = (int(v) for v in generator.integers(20, 28, 2))
    cv2.circle(face, (x, y), 18, int(generator.integers(150, 230)), cv2.FILLED)
    for side in (-7, 7):
        cv2.circle(face, (x + side, y - 6), 2, 30, cv2.FILLED)
    cv2.ellipse(face, (x, y + (6 if happy else 12)), (8, 5), 0, 0 if happy else 180, 180 if happy else 360, 30, 2)
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f"{number}.png"), face)


@pytest.fixture(scope="module")
def drawn_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, generator = tmp_path_factory.mktemp("faces"), np.random.default_rng(0)
    for split, count in (("Training", 160), ("val", 60)):
        for number in range(count):
            draw_face(root / split / "Happiness", True, generator, number)
            draw_face(root / split / "sad", False, generator, number)
    return root


def test_a_model_is_trained_saved_and_labels_photographs(
    drawn_faces: Path, tmp_path: Path, photographs: dict[str, Path], ray_cluster: None
) -> None:
    output = tmp_path / "model"
    config = TrainConfig(str(drawn_faces), str(output), epochs=10, batch_size=16, learning_rate=4e-3, weight_average=0.9, model=MODEL)
    summary = train(config)
    assert summary["accuracy"] > 0.9
    saved = json.loads((output / "bundle.json").read_text())
    assert saved["classes"] == ["happy", "sad"]
    assert saved["metrics"]["validation"]["accuracy"] == summary["accuracy"]
    assert saved["lineage"]["train_counts"] == {"happy": 160, "sad": 160}
    assert str(tmp_path) not in json.dumps(saved)
    data = load_dataset(str(drawn_faces), 48)
    logits = bundle.load(str(output)).network.predict_on_batch(data.validation.images[..., None].astype(np.float32))
    assert (logits.argmax(1) == data.validation.labels).mean() == pytest.approx(summary["accuracy"])
    (image,) = Labeler(str(output)).label([photographs["astronaut"]])
    assert set(image.faces[0].probabilities) == {"happy", "sad"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    with pytest.raises(UsageError, match="exists already"):
        train(config)


def test_training_stops_early_and_lowers_the_learning_rate_when_nothing_is_gained(drawn_faces: Path) -> None:
    data = load_dataset(str(drawn_faces), 48)
    # So small a learning rate gains nothing, so the first epoch stays the best one.
    config = TrainConfig(
        "d", "o", epochs=30, learning_rate=1e-12, warmup_epochs=0, patience=3, schedule="plateau", plateau_patience=2, model=MODEL
    )
    epochs = list(train_epochs(data, config))
    assert len(epochs) <= 1 + max(epoch.number for epoch in epochs if epoch.improved) + 3
    assert epochs[-1].learning_rate == pytest.approx(config.learning_rate * 0.2)
    assert not epochs[-1].improved


def test_augmentation_is_random_but_repeatable_and_can_be_turned_off() -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 48, 48)).astype(np.uint8)
    off = AugmentationConfig(flip=False, rotation=0, zoom=0, shift=0, brightness=0, contrast=0, blur=0, erasing=0)
    assert np.array_equal(augment(images, off, np.random.default_rng(1))[..., 0], images)
    flipped = augment(images, AugmentationConfig(True, 0, 0, 0, 0, 0, 0, 0), np.random.default_rng(1))[..., 0]
    mirrored = [np.array_equal(view, image[:, ::-1]) for view, image in zip(flipped, images, strict=True)]
    same = [np.array_equal(view, image) for view, image in zip(flipped, images, strict=True)]
    assert any(mirrored)
    assert any(same)
    assert all(a or b for a, b in zip(mirrored, same, strict=True))
    first, again = (augment(images, AugmentationConfig(), np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.min() >= 0
    assert first.max() <= 255


def test_an_epoch_shows_every_image_once(drawn_faces: Path) -> None:
    split = load_dataset(str(drawn_faces), 48).train
    off = AugmentationConfig(flip=False, rotation=0, zoom=0, shift=0, brightness=0, contrast=0, blur=0, erasing=0)
    shown = [
        image.tobytes() for images, _ in augmented_batches(split, 32, off, np.random.default_rng(0)) for image in images.astype(np.uint8)
    ]
    assert sorted(shown) == sorted(image.tobytes() for image in split.images)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda root: None, "no folder train"),
        (lambda root: [(root / name).mkdir(parents=True) for name in ("train/hungry", "test/sad")], "hungry"),
        (lambda root: (root / "train" / "sad").mkdir(parents=True), "no folder validation"),
        (lambda root: [(root / split / "sad").mkdir(parents=True) for split in ("train", "test")], "no images"),
        (lambda root: [(root / split).mkdir(parents=True) for split in ("train/sad", "train/anger", "test/sad")], "angry"),
        (lambda root: [(root / name).mkdir(parents=True) for name in ("train/sad", "train/sadness", "test/sad")], "merge"),
    ],
)
def test_a_wrong_data_set_is_refused_by_name(tmp_path: Path, spoil: object, complaint: str) -> None:
    spoil(tmp_path)  # type: ignore[operator]
    with pytest.raises(DatasetError, match=complaint):
        load_dataset(str(tmp_path), 48)


def test_a_broken_training_image_is_named(drawn_faces: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "sad").mkdir(parents=True)
        (tmp_path / split / "sad" / "broken.png").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"broken\.png cannot be decoded"):
        load_dataset(str(tmp_path), 48)
