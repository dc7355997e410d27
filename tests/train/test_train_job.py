"""Training as a user runs it, through Ray Train: what it saves labels photographs, and neither a dead worker nor a dead job loses it."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
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
from fer_ray.models import bundle
from fer_ray.train import job
from fer_ray.train.job import first_network, train

ROOT = Path(__file__).parents[2]


def config_of(faces: Path, output: Path, epochs: int, workers: int = 1, **options: object) -> TrainConfig:
    optimization = OptimizationConfig(epochs=epochs, batch_size=16, learning_rate=4e-3, weight_average=0.9, patience=epochs)
    data = DatasetConfig(str(faces), keep_duplicates=True)
    return TrainConfig(str(output), workers=workers, data=data, recipe=Recipe(TINY, optimization=optimization), **options)  # type: ignore[arg-type]


def test_a_model_is_trained_saved_fine_tuned_and_labels_photographs(
    drawn_faces: Path, tmp_path: Path, photographs: dict[str, Path], ray_cluster: None
) -> None:
    output = tmp_path / "model"
    config = config_of(drawn_faces, output, 10)
    summary = train(config)
    assert summary["accuracy"] > 0.9
    saved = json.loads((output / "bundle.json").read_text())
    assert saved["classes"] == ["happy", "sad"]
    assert saved["metrics"]["validation"]["accuracy"] == summary["accuracy"]
    assert saved["lineage"]["train_counts"] == {"happy": 160, "sad": 160}
    assert str(tmp_path) not in json.dumps(saved)
    assert str(drawn_faces) not in json.dumps(saved)
    validation = dataset_of(drawn_faces).validation
    assert (bundle.load(str(output)).logits(validation.images).argmax(1) == validation.labels).mean() == pytest.approx(summary["accuracy"])
    history = pq.read_table(output / bundle.HISTORY_FILE).to_pylist()
    assert [row["epoch"] for row in history] == list(range(1, len(history) + 1))
    assert max(row["accuracy"] for row in history) == pytest.approx(summary["accuracy"], abs=0.02)
    assert list((output / "tensorboard").glob("events.out.tfevents.*"))
    (image,) = Labeler(str(output)).label([photographs["astronaut"]])
    assert set(image.faces[0].probabilities) == {"happy", "sad"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    with pytest.raises(UsageError, match="exists already"):
        train(config)

    tuned = config_of(drawn_faces, tmp_path / "tuned", 1, start_from=str(output))
    network, lineage = first_network(tuned, dataset_of(drawn_faces))
    assert lineage == {"started_from": saved["model_version"]}
    started = bundle.load(str(output)).members[0].network
    assert all(np.array_equal(a, b) for a, b in zip(network.get_weights(), started.get_weights(), strict=True))


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


def test_a_worker_that_alone_cannot_read_the_data_ends_the_training_with_its_reason(
    drawn_faces: Path, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loop(arguments: dict[str, Any]) -> None:  # as on a cluster where not every machine has the folder
        import ray.train

        from fer_ray.train.job import train_loop_per_worker

        config = arguments["config"]
        if ray.train.get_context().get_world_rank() == 1:
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, dataset="/only/on/the/head"))
        train_loop_per_worker({**arguments, "config": config})

    monkeypatch.setattr(job, "train_loop_per_worker", loop)
    with pytest.raises(TrainingError, match="/only/on/the/head"):
        train(config_of(drawn_faces, tmp_path / "model", 2, workers=2))
    assert not (tmp_path / "model").exists()


def test_a_killed_training_goes_on_from_its_last_checkpoint(drawn_faces: Path, tmp_path: Path) -> None:
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
    refused = start()
    assert "go on with --resume" in refused.communicate()[1]
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
        ({"batch_size": 512}, "fewer than one batch"),
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
