"""The parts of an evaluation without its job: measures, histories of trainings, charts and heat maps."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from histories import write_history

from fer_ray.data.dataset import Split
from fer_ray.evaluate import gradcam, plots
from fer_ray.evaluate.breakdown import by_group
from fer_ray.evaluate.history import History, read_history
from fer_ray.evaluate.score import in_order_of, measure
from fer_ray.io.storage import Storage
from fer_ray.models import bundle
from fer_ray.models.metrics import Bins, softmax


def test_a_model_with_more_emotions_than_the_data_keeps_them_and_errs_with_them() -> None:
    split = Split(np.zeros((4, 8, 8), np.uint8), np.array([0, 0, 1, 1]), np.eye(2, dtype=np.float32)[[0, 0, 1, 1]], ("a", "b", "c", "d"))
    known = ("contempt", "sad", "happy")
    moved = in_order_of(split, ("happy", "sad"), known)
    assert moved.labels.tolist() == [2, 2, 1, 1]
    assert moved.targets[0].tolist() == [0, 0, 1]
    logits = np.log(np.array([[0.1, 0.1, 0.8], [0.6, 0.1, 0.3], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1]], np.float32))
    found = measure(logits, softmax(logits), moved, known, seed=0)
    assert found["figures"]["accuracy"] == 0.75
    assert found["figures"]["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["confusion"]["labels"] == ["sad", "happy"]
    assert found["confusion"]["counts"] == [[0, 2, 0], [1, 0, 1]]
    assert found["per_class"][0]["roc_auc"] is None
    assert found["votes"] is None


def test_votes_are_judged_beside_the_labels() -> None:
    votes = np.array([[0.75, 0.25], [0.0, 1.0]], np.float32)
    split = Split(np.zeros((2, 8, 8), np.uint8), np.array([0, 1]), votes, ("a", "b"))
    logits = np.log(np.array([[0.75, 0.25], [0.5, 0.5]], np.float32))
    found = measure(logits, softmax(logits), split, ("happy", "sad"), seed=0)
    assert found["votes"]["brier"] == pytest.approx(0.25)
    assert found["votes"]["kl_divergence"] == pytest.approx(np.log(2) / 2, abs=1e-6)
    assert found["figures"]["brier"] == pytest.approx((2 * 0.0625 + 0.5) / 2)


def test_the_largest_gap_between_groups_is_told_from_chance_and_from_other_emotions() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 800)
    answers = np.eye(2)[np.where(generator.random(800) < np.where(labels == 0, 0.95, 0.7), labels, 1 - labels)]
    by_mix = np.where(generator.random(800) < np.where(labels == 0, 0.8, 0.2), "mostly happy", "mostly sad").tolist()
    gap = by_group(answers, labels, ("happy", "sad"), [*by_mix[:790], *["few"] * 10], seed=0)["largest_gap"]
    assert (gap["highest"], gap["lowest"], gap["compared"]) == ("mostly happy", "mostly sad", ["mostly happy", "mostly sad"])
    assert gap["interval"][0] > 0.1, "the gap is real"
    assert gap["p_value"] > 0.05, "and comes of what the groups show"
    unfair = np.where((answers.argmax(axis=1) == labels) | (generator.random(800) < 0.3), "new", "old").tolist()
    assert by_group(answers, labels, ("happy", "sad"), unfair, seed=0)["largest_gap"]["p_value"] < 0.01


def test_the_interval_of_a_gap_is_that_of_the_worked_example() -> None:
    """56 of 70 and 48 of 80, method 10 of Newcombe 1998."""
    labels, groups = np.zeros(150, np.int64), ["a"] * 70 + ["b"] * 80
    answers = np.eye(2)[[0] * 56 + [1] * 14 + [0] * 48 + [1] * 32]
    gap = by_group(answers, labels, ("happy", "sad"), groups, seed=0)["largest_gap"]
    assert gap["difference"] == pytest.approx(0.2)
    assert gap["interval"] == pytest.approx([0.0524, 0.3339], abs=1e-4)


@pytest.fixture
def bombs(tmp_path: Path) -> dict[str, Path]:
    """Bundles whose history is not one."""
    folders = {name: tmp_path / name for name in ("garbage", "words", "long", "huge", "impossible", "missing")}
    for folder in folders.values():
        folder.mkdir()
    (folders["garbage"] / bundle.HISTORY_FILE).write_bytes(b"PAR1" + b"\0" * 100 + b"PAR1")
    write_history(folders["words"], accuracy=["high"])
    write_history(folders["long"], accuracy=[0.5] * 20_000)
    with (folders["huge"] / bundle.HISTORY_FILE).open("wb") as file:
        file.truncate(64 << 20)
    write_history(folders["impossible"], nll=[1e300])
    pq.write_table(pa.table({"epoch": [1]}), folders["missing"] / bundle.HISTORY_FILE)
    return folders


def test_a_broken_history_in_a_bundle_is_a_note_and_not_a_crash(bombs: dict[str, Path]) -> None:
    notes = {name: read_history(Storage(), str(folder)) for name, folder in bombs.items()}
    assert all(history is None for history, _ in notes.values())
    assert "too large" in notes["huge"][1]
    assert "plain numbers" in notes["words"][1]
    assert "20,000 rows" in notes["long"][1]
    assert all("history.parquet" in note for _, note in notes.values())


def test_falls_of_the_learning_rate_are_found_and_drawn() -> None:
    rate = np.array([0.5e-3, 1e-3, 1e-3, 0.9e-3, 2e-4, 2e-4, 1e-4])
    values = np.linspace(0, 1, len(rate))
    history = History(np.arange(1.0, 8.0), values, values, values, values, rate)
    assert history.drops.tolist() == [5, 7]
    cosine = 1 + np.cos(np.pi * np.arange(1, 8) / 7)
    assert History(np.arange(1.0, 8.0), values, values, values, values, cosine).drops.tolist() == []
    for chart in plots.training(history):
        falls = [one for one in chart.series if one.kind == "dashed"]
        assert [[x for x, _ in fall.points] for fall in falls] == [[5, 5], [7, 7]]


def test_a_history_with_holes_is_drawn_without_them() -> None:
    hole = np.array([0.5, np.nan, 0.7])
    loss, *_ = plots.training(History(np.arange(1.0, 4.0), np.full(3, np.nan), hole, hole, hole, np.full(3, np.nan)))
    assert [list(one.points) for one in loss.series] == [[], [(1, 0.5), (3, 0.7)]]


def test_calibration_is_drawn_where_there_are_faces() -> None:
    after = Bins(np.array([0, 3, 0, 1]), np.array([0, 0.3, 0, 0.8]), np.array([0, 1 / 3, 0, 1]))
    accuracy, faces = plots.calibration(after, after)
    assert [list(one.points) for one in accuracy.series] == [[(0.375, 1 / 3), (0.875, 1)], [(0, 0), (1, 1)], [(0.3, 1 / 3), (0.8, 1)]]
    assert list(faces.series[0].points) == [(0.375, 3), (0.875, 1)]


def test_the_heat_map_lies_where_the_evidence_is() -> None:
    import keras

    inputs = keras.Input((32, 32, 1))
    brightness = keras.layers.Conv2D(2, 3, padding="same", kernel_initializer="ones")(inputs)
    network = keras.Model(inputs, keras.layers.Dense(2, kernel_initializer="ones")(keras.layers.GlobalAveragePooling2D()(brightness)))
    image = np.zeros((1, 32, 32), np.uint8)
    image[0, 4:12, 20:28] = 255
    heat = gradcam.heat_maps(network, image, np.array([1]))
    assert heat is not None
    assert heat[0, 6:10, 22:26].min() == 1
    assert heat[0, :, :16].max() == 0
    maps = gradcam.first_activations(network, image[0])
    assert maps is not None
    assert maps.shape == (2, 32, 32)


def test_a_network_without_feature_maps_has_no_heat_map() -> None:
    import keras

    inputs = keras.Input((8, 8, 1))
    network = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Reshape((64,))(inputs)))
    assert gradcam.first_activations(network, np.zeros((8, 8), np.uint8)) is None
    inputs = keras.Input((4,))
    assert gradcam.heat_maps(keras.Model(inputs, keras.layers.Dense(2)(inputs)), np.zeros((1, 8, 8), np.uint8), np.array([0])) is None
