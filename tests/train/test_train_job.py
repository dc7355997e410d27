"""Training as a user runs it, through Ray Train: its model labels photographs, and neither a dead worker nor a dead job loses an epoch."""

import dataclasses
import json
import logging
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from faces import TINY, dataset_of

from fer_ray import Labeler
from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.recipe import ModelConfig, OptimizationConfig, Recipe
from fer_ray.config.train import TrainConfig
from fer_ray.errors import TrainingError, UsageError
from fer_ray.models import bundle, keras_bundle
from fer_ray.train import trainer
from fer_ray.train.job import train
from fer_ray.train.recorder import TENSORBOARD_FOLDER
from fer_ray.train.worker import initial_network

ROOT = Path(__file__).parents[2]


def config_of(faces: Path, output: Path, epochs: int, workers: int = 1, **options: object) -> TrainConfig:
    optimization = OptimizationConfig(epochs=epochs, batch_size=16, learning_rate=4e-3, weight_average=0.9, patience=epochs)
    data = DatasetConfig(str(faces), keep_duplicates=True)
    return TrainConfig(str(output), workers=workers, data=data, recipe=Recipe(TINY, optimization=optimization), **options)  # type: ignore[arg-type]


def test_a_model_is_trained_saved_fine_tuned_and_labels_photographs(
    drawn_faces: Path,
    tmp_path: Path,
    photographs: dict[str, Path],
    ray_cluster: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(drawn_faces.parent)  # the workers have another working directory
    caplog.set_level(logging.INFO, logger="fer_ray")
    output = tmp_path / "model"
    config = config_of(Path(drawn_faces.name), output, 6)
    summary = train(config)
    assert summary["accuracy"] > 0.9
    assert caplog.messages[-1].startswith(f"Next: fer-ray evaluate --model {output} --dataset {drawn_faces.name} --split validation")
    saved = json.loads((output / "bundle.json").read_text())
    assert saved["classes"] == ["happy", "sad"]
    assert saved["metrics"]["validation"]["accuracy"] == pytest.approx(summary["accuracy"], abs=1e-4)
    assert saved["lineage"]["train_counts"] == {"happy": 160, "sad": 160}
    assert str(tmp_path) not in json.dumps(saved)
    assert str(drawn_faces) not in json.dumps(saved)
    validation = dataset_of(drawn_faces).validation
    assert (bundle.load(str(output)).logits(validation.images).argmax(1) == validation.labels).mean() == pytest.approx(
        summary["accuracy"], abs=1e-4
    )
    history = pq.read_table(output / bundle.HISTORY_FILE).to_pylist()
    assert [row["epoch"] for row in history] == list(range(1, len(history) + 1))
    assert max(row["accuracy"] for row in history) == pytest.approx(summary["accuracy"], abs=0.02)
    assert sorted(set(logged_epochs(output))) == [row["epoch"] for row in history]
    (image,) = Labeler(str(output)).label([photographs["astronaut"]])
    assert set(image.faces[0].probabilities) == {"happy", "sad"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    with pytest.raises(UsageError, match="exists already"):
        train(config)

    tuned = config_of(drawn_faces, tmp_path / "tuned", 1, start_from=str(output))
    network, lineage = initial_network(tuned, dataset_of(drawn_faces))
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


def test_two_workers_train_one_network_and_a_dead_one_is_replaced(drawn_faces: Path, tmp_path: Path, ray_cluster: None) -> None:
    work = tmp_path / "model.training"
    killer = threading.Thread(target=kill_a_worker_after_a_checkpoint, args=(work,))
    killer.start()
    summary = train(config_of(drawn_faces, tmp_path / "model", 8, workers=2))
    killer.join()
    assert summary["accuracy"] > 0.9
    history = pq.read_table(tmp_path / "model" / bundle.HISTORY_FILE).to_pylist()
    assert [row["epoch"] for row in history] == list(range(1, 9))
    losses = [row["train_loss"] for row in history]
    assert losses == sorted(losses, reverse=True) or losses[-1] < 0.7 * losses[0]


def kill_a_worker_after_a_checkpoint(work: Path) -> None:
    while not list(work.glob("train/checkpoint_*/state.npz")):
        time.sleep(0.1)
    ours = psutil.Process().children(recursive=True)
    workers = [process for process in ours if "RayTrainWorker" in " ".join(process.cmdline())]
    assert len(workers) >= 2
    workers[0].kill()


def test_a_worker_that_alone_cannot_read_the_data_ends_the_training_with_its_reason_and_the_next_try_just_runs(
    drawn_faces: Path, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loop(arguments: dict[str, Any]) -> None:  # as on a cluster where not every machine has the folder
        import ray.train

        from fer_ray.train.worker import train_loop_per_worker

        run = arguments["run"]
        if ray.train.get_context().get_world_rank() == 1:
            data = dataclasses.replace(run.config.data, dataset="/only/on/the/head")
            run = dataclasses.replace(run, config=dataclasses.replace(run.config, data=data))
        train_loop_per_worker({**arguments, "run": run})

    monkeypatch.setattr(trainer, "train_loop_per_worker", loop)
    with pytest.raises(TrainingError, match="/only/on/the/head"):
        train(config_of(drawn_faces, tmp_path / "model", 2, workers=2))
    assert not (tmp_path / "model").exists()
    monkeypatch.undo()
    train(config_of(drawn_faces, tmp_path / "model", 1, workers=2))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_killed_training_keeps_its_log_and_resumes_from_its_last_checkpoint(drawn_faces: Path, tmp_path: Path) -> None:
    settings = {"epochs": 8, "batch_size": 16, "learning_rate": 0.004, "weight_average": 0.9, "patience": 8, "keep_duplicates": True}
    model = {"stem": 8, "widths": [16, 32], "depths": [1, 1], "dropout": 0.1}
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(settings | model))
    command = [sys.executable, ROOT / "jobs" / "train.py", "--config", file, "--dataset", drawn_faces, "--output", tmp_path / "model"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}

    def start(*more: str) -> subprocess.Popen[str]:
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
        return subprocess.Popen([*map(str, command), *more], start_new_session=True, **piped)  # type: ignore[call-overload, no-any-return]

    killed = start()
    deadline = time.monotonic() + 240
    while len(list((tmp_path / "model.training").glob("train/checkpoint_*/state.npz"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    logged = set(logged_epochs(tmp_path / "model.training"))
    assert logged >= {1, 2}, "every finished epoch is in the log for TensorBoard, also where nobody could close it"
    refused = start()
    assert "resume it with --resume" in refused.communicate()[1]
    assert refused.returncode == 2
    resumed = start("--resume")
    output, errors = resumed.communicate()
    assert resumed.returncode == 0, errors
    assert "epoch 1/8" not in output + errors
    history = pq.read_table(tmp_path / "model" / bundle.HISTORY_FILE).to_pylist()
    assert [row["epoch"] for row in history] == list(range(1, 9))
    assert json.loads(output.splitlines()[-1])["accuracy"] > 0.6


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"batch_size": 15}, "cannot be shared evenly"),
        ({"batch_size": 512}, "fewer than a batch of 512: lower --batch-size"),
        ({"output": "s3://bucket/model"}, "a folder that all machines see"),
        ({"resume": True}, "no training into .* to resume"),
        ({"start_from": "/nowhere"}, "missing"),
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
