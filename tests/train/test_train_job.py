"""Training as a user runs it, through Ray Train: its model labels photographs, and neither a dead worker nor a dead job loses an epoch."""

import dataclasses
import json
import logging
import os
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from faces import TINY, dataset_of

from fer_ray import Labeler, cluster
from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.jobs.train import TrainConfig
from fer_ray.config.recipe import ModelConfig, OptimizationConfig, Recipe
from fer_ray.data.dataset import Dataset, Split
from fer_ray.errors import TrainingError, UsageError
from fer_ray.io.storage import Storage
from fer_ray.models import bundle, keras_bundle
from fer_ray.train import trainer
from fer_ray.train.job import check_places, train
from fer_ray.train.recorder import TENSORBOARD_FOLDER
from fer_ray.train.strategy import SingleWorker
from fer_ray.train.teacher import with_teachers
from fer_ray.train.worker import TrainingRun, initial_network, train_as

ROOT = Path(__file__).parents[2]


EPOCHS = 5


def config_of(faces: Path, output: Path, workers: int = 1, **options: object) -> TrainConfig:
    optimization = OptimizationConfig(epochs=EPOCHS, batch_size=16, learning_rate=4e-3, weight_average=0.9, patience=EPOCHS)
    data = DatasetConfig(str(faces), keep_duplicates=True)
    return TrainConfig(str(output), workers=workers, data=data, recipe=Recipe(TINY, optimization=optimization), **options)  # type: ignore[arg-type]


def test_a_failed_training_tells_why_and_just_runs_again_and_a_killed_one_resumes_and_ends_as_a_whole_model(
    drawn_faces: Path, tmp_path: Path, photographs: dict[str, Path], ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model"
    one_of_two_workers_cannot_read(monkeypatch)
    with pytest.raises(TrainingError, match="/only/on/the/head"):
        train(config_of(drawn_faces, output, workers=2))
    assert not output.exists()

    ours = ray.get_runtime_context().gcs_address
    killed = start(drawn_faces, output, RAY_ADDRESS=ours)
    deadline = time.monotonic() + 240
    while len(list((tmp_path / "model.training").glob("train/checkpoint_*/state.npz"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    logged = set(logged_epochs(tmp_path / "model.training"))
    assert logged >= {1, 2}, "every finished epoch is in the log for TensorBoard, also where nobody could close it"
    with pytest.raises(UsageError, match="resume it with --resume"):
        train(config_of(drawn_faces, output))

    snapshot = tmp_path / "model.training" / trainer.CHECKPOINTS_FOLDER / trainer.SNAPSHOT_FILE
    snapshot.write_bytes(snapshot.read_bytes()[:100])  # as where it was killed while Ray wrote it
    newest = max(snapshot.parent.glob("checkpoint_*/state.npz")).parent
    resumed = start(drawn_faces, output, "--resume", RAY_ADDRESS=ours)
    printed, told = resumed.communicate()
    assert resumed.returncode == 0, told
    assert f"was cut off: resuming from {newest}" in told
    assert f"Next: fer-ray evaluate --model {output} --dataset {drawn_faces.name} --split validation" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    a_whole_model(output, drawn_faces, photographs, json.loads(printed.splitlines()[-1])["accuracy"])
    with pytest.raises(UsageError, match="exists already"):
        train(config_of(drawn_faces, output))


def one_of_two_workers_cannot_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a cluster where not every machine has the folder."""

    def loop(arguments: dict[str, Any]) -> None:
        import ray.train

        from fer_ray.train.worker import train_loop_per_worker

        run = arguments["run"]
        if ray.train.get_context().get_world_rank() == 1:
            data = dataclasses.replace(run.config.data, dataset="/only/on/the/head")
            run = dataclasses.replace(run, config=dataclasses.replace(run.config, data=data))
        train_loop_per_worker({**arguments, "run": run})

    monkeypatch.setattr(trainer, "train_loop_per_worker", loop)


def start(faces: Path, output: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    """The command, in the folder above the data set, which its workers do not share."""
    recipe = {
        "epochs": EPOCHS,
        "patience": EPOCHS,
        "batch_size": 16,
        "learning_rate": 0.004,
        "weight_average": 0.9,
        "keep_duplicates": True,
    }
    (faces.parent / "recipe.yaml").write_text(json.dumps(recipe | {"keep_duplicates": True} | dataclasses.asdict(TINY)))
    flags = ["--config", "recipe.yaml", "--dataset", faces.name, "--output", str(output), *more]
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / "train.py"), *flags],
        cwd=faces.parent,
        env=inherited | environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("content", "left"), [(b"", False), (b'{"ray_ver', False), (b"\xff", False), (b"{}", True)])
def test_a_list_of_checkpoints_that_was_cut_off_before_the_first_was_whole_is_removed(tmp_path: Path, content: bytes, left: bool) -> None:
    snapshot = tmp_path / trainer.CHECKPOINTS_FOLDER / trainer.SNAPSHOT_FILE
    half = snapshot.parent / "checkpoint_2026-12-01_00-00-00.000000" / "state.npz"
    half.parent.mkdir(parents=True)
    half.touch()
    snapshot.write_bytes(content)
    trainer.mend_snapshot(TrainingRun(TrainConfig("model", data=DatasetConfig("faces")), str(tmp_path)))
    assert snapshot.exists() == left


def a_whole_model(output: Path, faces: Path, photographs: dict[str, Path], accuracy: float) -> None:
    """Its figures are true, its history and its log are complete, it names no folder, it labels, and another can start from it."""
    assert accuracy > 0.9
    saved = json.loads((output / "bundle.json").read_text())
    assert saved["classes"] == ["happy", "sad"]
    assert saved["metrics"]["validation"]["accuracy"] == pytest.approx(accuracy, abs=1e-4)
    assert saved["lineage"]["train_counts"] == {"happy": 160, "sad": 160}
    assert str(output.parent) not in json.dumps(saved)
    assert str(faces) not in json.dumps(saved)
    data = dataset_of(faces)
    answers = bundle.load(str(output)).logits(data.validation.images).argmax(1)
    assert (answers == data.validation.labels).mean() == pytest.approx(accuracy, abs=1e-4)
    history = pq.read_table(output / bundle.HISTORY_FILE).to_pylist()
    assert [row["epoch"] for row in history] == list(range(1, EPOCHS + 1))
    assert max(row["accuracy"] for row in history) == pytest.approx(accuracy, abs=0.02)
    assert set(logged_epochs(output)) == set(range(1, EPOCHS + 1))
    (image,) = Labeler(str(output)).label([photographs["astronaut"]])
    assert set(image.faces[0].probabilities) == {"happy", "sad"}
    network, lineage = initial_network(config_of(faces, output.with_name("tuned"), start_from=str(output)), data)
    assert lineage == {"started_from": saved["model_version"]}
    started = keras_bundle.load(str(output)).members[0].network.model
    assert all(np.array_equal(a, b) for a, b in zip(network.get_weights(), started.get_weights(), strict=True))


def logged_epochs(folder: Path) -> Iterator[int]:
    """The epochs in the logs for TensorBoard, whose records have a length, its checksum, the event, and its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for file in (folder / TENSORBOARD_FOLDER).glob("events.out.tfevents.*"):
        content, position = file.read_bytes(), 0
        while position < len(content):
            (length,) = struct.unpack_from("<Q", content, position)
            event = Event.FromString(content[position + 12 : position + 12 + length])
            position += length + 16
            if event.HasField("summary"):
                yield event.step


def test_a_training_that_version_0_1_began_resumes_after_its_last_epoch(drawn_faces: Path, tmp_path: Path) -> None:
    """What is recorded are the request and a checkpoint of `jobs/train.py --keep-duplicates` with the settings below, of 0.1.0."""
    with zipfile.ZipFile(Path(__file__).with_name("training_0.1.zip")) as recorded:
        recorded.extractall(tmp_path / "model.training")
    model = ModelConfig(stem=2, widths=(4,), depths=(1,))
    optimization = OptimizationConfig(epochs=60, patience=60, batch_size=16, weight_average=0.9)
    data = DatasetConfig(str(drawn_faces), keep_duplicates=True)
    config = TrainConfig(str(tmp_path / "model"), resume=True, data=data, recipe=Recipe(model, optimization=optimization))
    work = str(tmp_path / "model.training")
    check_places(Storage(), config, str(tmp_path / "model"), work)  # refuses other settings than those of the request
    (checkpoint,) = (tmp_path / "model.training" / "train").iterdir()
    begun = pq.read_table(checkpoint / "best" / bundle.HISTORY_FILE).to_pylist()
    run = TrainingRun(config, work, until=len(begun) + 1)
    rows: list[dict[str, Any]] = []
    train_as(SingleWorker(), run, dataset_of(drawn_faces), str(checkpoint), lambda row, checkpoint: rows.append(row))
    assert [row["epoch"] for row in rows] == [len(begun) + 1]
    assert rows[0]["train_loss"] < begun[0]["train_loss"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"batch_size": 15}, "cannot be shared evenly"),
        ({"batch_size": 512}, "fewer than a batch of 512: lower --batch-size"),
        ({"output": "s3://bucket"}, "a whole bucket: give s3://bucket/name"),
        ({"output": "https://server/model"}, "cannot be written: results go to folders, and to s3://"),
        ({"resume": True}, "no training into .* to resume"),
        ({"start_from": "/nowhere"}, "missing"),
        ({"teacher": ("ferplus",)}, "The teacher .*ferplus knows angry, .*, the data set only happy, sad"),
        ({"teacher": ("ferplus",), "teacher_share": (0.7, 0.2)}, "one share for each teacher"),
        ({"teacher": ("ferplus", "fer2013"), "teacher_share": (0.7, 0.4)}, "1 at most in all"),
        ({"model": ModelConfig(architecture="vgg16", image_size=32), "weights": "/nowhere"}, "give --weights FILE or none"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    drawn_faces: Path, tmp_path: Path, options: dict[str, object], complaint: str
) -> None:
    batch_size, model = options.pop("batch_size", 16), options.pop("model", TINY)
    recipe = Recipe(model, optimization=OptimizationConfig(batch_size=batch_size))  # type: ignore[arg-type]
    arguments = {"output": str(tmp_path / "model"), "workers": 2 if batch_size == 15 else 1, "recipe": recipe, **options}
    with pytest.raises(UsageError, match=complaint):
        train(TrainConfig(data=DatasetConfig(str(drawn_faces), keep_duplicates=True), **arguments))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_teachers_have_their_shares_in_the_targets_of_training_alone() -> None:
    names = (bundle.resolve("ferplus"), bundle.resolve("fer2013"))
    eight, seven = (bundle.load(name) for name in names)
    images = np.random.default_rng(0).integers(0, 256, (6, 48, 48), np.uint8)
    split = Split(images, np.arange(6), np.eye(8, dtype=np.float32)[:6], tuple("abcdef"))
    config = TrainConfig("model", teacher=names, teacher_share=(0.25, 0.1), data=DatasetConfig("faces"))
    taught = with_teachers(Dataset(eight.classes, {"train": split, "validation": split}, ""), config)
    others = np.insert(seven.probabilities(images), eight.classes.index("contempt"), 0, axis=1)
    assert taught.train.targets == pytest.approx(0.65 * split.targets + 0.25 * eight.probabilities(images) + 0.1 * others, abs=1e-6)
    assert taught.validation is split
    assert dataclasses.replace(config, teacher_share=()).teacher_shares == (0.25, 0.25)
    large = dataclasses.replace(config, recipe=Recipe(ModelConfig(image_size=64)))
    with pytest.raises(UsageError, match="sees images of 48 pixels, gray, not 64 pixels, gray"):
        with_teachers(Dataset(eight.classes, {"train": split}, ""), large)


def test_a_training_whose_machines_never_come_says_what_it_waits_for_and_ends_after_the_time_that_was_set(
    drawn_faces: Path, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)  # a cluster that may grow
    monkeypatch.setenv(trainer.START_LIMIT, "1")
    monkeypatch.setattr(cluster, "NOTE_SECONDS", 0.2)
    caplog.set_level(logging.INFO, logger="fer_ray")
    ended = "waited 2s for its workers, and the cluster has 2 CPUs, of which . CPUs? are free: add machines, or raise --wait-for-machines"
    with pytest.raises(TrainingError, match=ended):
        train(config_of(drawn_faces, tmp_path / "model", workers=4, wait_for_machines="2s"))
    assert [line for line in caplog.messages if line.startswith("waiting for 4 CPUs: the cluster has 2 CPUs, of which ")]


def test_a_training_that_ran_out_of_memory_says_so_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = ray.exceptions.OutOfMemoryError("2 worker(s) were killed due to the node running low on memory.\nRefer to https://docs.ray.io")
    monkeypatch.setattr(trainer, "_make_trainer", lambda *_: Mock(fit=Mock(side_effect=killed)))
    with pytest.raises(TrainingError, match=r"^A machine ran out of memory: lower --batch-size or .*; --resume continues from there\)\.$"):
        trainer.run_training(TrainingRun(TrainConfig("model", data=DatasetConfig("faces")), str(tmp_path)))
