"""What a training leaves behind after every epoch: the best bundle so far, its history, a checkpoint, and logs for people."""

from __future__ import annotations

import datetime
import json
import shutil
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fer_ray.config.train import TrainConfig
from fer_ray.data.dataset import Dataset
from fer_ray.models import bundle, keras_bundle
from fer_ray.models.architectures import NO_WEIGHTS, build
from fer_ray.models.calibration import calibrate
from fer_ray.train.learner import State
from fer_ray.train.loop import Epoch

if TYPE_CHECKING:
    import keras

BEST_FOLDER = "best"  # in a checkpoint: the bundle of the best epoch so far
STATE_FILE = "state.npz"  # in a checkpoint: what the next epoch starts from
PROGRESS_FILE = "progress.jsonl"  # in the storage of a training: a line for every epoch, its row of the history
TENSORBOARD_FOLDER = "tensorboard"  # in the storage of a training, later in the bundle


def has_checkpoints(storage: Path) -> bool:
    """Whether any epoch was finished of the training, or of the trainings, that keep their checkpoints in or below this folder."""
    return any(storage.glob(f"**/checkpoint_*/{STATE_FILE}"))


class Recorder:
    """Keeps the history of one worker's training; the first worker also saves and logs its epochs.

    Args:
        scratch: An empty folder of this process.
        data: The data set, of which the bundle says what it held.
        config: The training.
        lineage: What the bundle says about the weights that the training started from.
        storage: The folder of the training for the first worker, None for the others.
    """

    def __init__(self, scratch: Path, data: Dataset, config: TrainConfig, lineage: dict[str, Any], storage: Path | None) -> None:
        self.best, self.checkpoint = scratch / BEST_FOLDER, scratch / "checkpoint"
        self.data, self.config, self.lineage, self.storage = data, config, lineage, storage
        self.history: list[dict[str, Any]] = []
        self.event_log = _EventLog(storage / TENSORBOARD_FOLDER) if storage else None

    def restore(self, checkpoint: Path) -> State:
        """Take over the best bundle and the history of a checkpoint; returns the state to resume from."""
        import pyarrow.parquet as pq

        shutil.copytree(checkpoint / BEST_FOLDER, self.best)
        self.history = pq.read_table(self.best / bundle.HISTORY_FILE).to_pylist()
        with np.load(checkpoint / STATE_FILE, allow_pickle=False) as stored:
            return dict(stored)

    def record(self, epoch: Epoch) -> Path | None:
        """Save and log a finished epoch; returns the first worker's checkpoint, in a folder that the next epoch writes to."""
        self.history.append({**epoch.row(), "finished_at": datetime.datetime.now(datetime.UTC)})
        if self.storage is None or self.event_log is None:
            return None
        if epoch.improved:
            self._save(epoch)
        _write_history(self.history, self.best)
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        shutil.copytree(self.best, self.checkpoint / BEST_FOLDER)
        np.savez(self.checkpoint / STATE_FILE, **epoch.state)  # type: ignore[arg-type]  # numpy's stub reads the keys as its own options
        self.event_log.write(epoch.number, epoch.row())
        with (self.storage / PROGRESS_FILE).open("a", encoding="utf-8") as progress:
            progress.write(json.dumps(epoch.row()) + "\n")
        return self.checkpoint

    def _save(self, epoch: Epoch) -> None:
        """Save the model of this epoch as a bundle, calibrated on the validation split."""
        self.best.mkdir(exist_ok=True)
        self._network.set_weights(epoch.weights)
        # Anew, as training may have used a coarser arithmetic.
        logits = keras_bundle.predict_logits(self._network, self.data.validation.images)
        temperature, figures = calibrate(logits, self.data.validation.labels)
        lineage = {
            "data_sha256": self.data.sha256,
            "train_counts": self.data.train.counts(self.data.classes),
            "validation_counts": self.data.validation.counts(self.data.classes),
            "findings": list(self.data.findings),
            "epoch": epoch.number,
            **self.lineage,
            "config": self.config.to_dict(),
        }
        members = [bundle.Member(keras_bundle.KerasNetwork(self._network), self.config.recipe.model)]
        keras_bundle.save(str(self.best), members, keras_bundle.Description(self.data.classes, temperature, figures, lineage))

    @cached_property
    def _network(self) -> keras.Model:
        """What is saved, built once: TensorFlow prepares itself anew for every new network."""
        return build(self.config.recipe.model, len(self.data.classes), NO_WEIGHTS)


class _EventLog:
    """Figures for TensorBoard, on disk when `write` returns.

    tensorboardX's SummaryWriter hands them to a thread through a queue, which its `flush` does not wait for; Ray ends a worker that
    has finished before the thread has written the last epoch. So the file is written here, without the queue.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))

    def write(self, step: int, figures: dict[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in figures.items():
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        self._writer.flush()


def _write_history(rows: list[dict[str, Any]], folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table: pa.Table = pa.Table.from_pylist(rows)
    pq.write_table(table, folder / bundle.HISTORY_FILE)
