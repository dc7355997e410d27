"""What a training leaves behind after every epoch: the best bundle so far, its history, a checkpoint, and logs for people."""

from __future__ import annotations

import datetime
import json
import re
import shutil
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fer_ray.config.jobs.train import TrainConfig
from fer_ray.data.dataset import Dataset
from fer_ray.io.storage import Storage, is_remote, join
from fer_ray.models import bundle, keras_bundle
from fer_ray.models.architectures import NO_WEIGHTS, build
from fer_ray.models.calibration import calibrate
from fer_ray.train.filesystem import wait_out
from fer_ray.train.learner import State
from fer_ray.train.loop import Epoch

if TYPE_CHECKING:
    import keras

BEST_FOLDER = "best"  # in a checkpoint: the bundle of the best epoch so far
STATE_FILE = "state.npz"  # in a checkpoint: what the next epoch starts from
PROGRESS_FILE = "progress.jsonl"  # in the storage of a training: a line for every epoch, its row of the history
TENSORBOARD_FOLDER = "tensorboard"  # in the storage of a training, later in the bundle
_WHOLE = {STATE_FILE, *(f"{BEST_FOLDER}/{name}" for name in (bundle.METADATA_FILE, bundle.HISTORY_FILE, bundle.weights_file(0)))}


def has_checkpoints(storage: Storage, place: str) -> bool:
    """Whether any epoch was finished of the training, or of the trainings, that keep their checkpoints in or below this folder."""
    states = (entry.image_uri.split("/") for entry in storage.list_files(place) if entry.image_uri.endswith(f"/{STATE_FILE}"))
    return any(names[-2].startswith("checkpoint_") for names in states)


def newest_checkpoint(storage: Storage, folder: str) -> str | None:
    """The newest checkpoint that is whole, in or below this folder; None before the first.

    Checkpoints are named by the time that they were made at, which a copy of the training to another place leaves alone.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in wait_out(lambda: list(storage.list_files(folder))):
        checkpoint = re.match(r"(.+/checkpoint_[^/]+)/(.+)", entry.image_uri)
        if checkpoint and checkpoint[2] in _WHOLE:
            found.setdefault(checkpoint[1], {})[checkpoint[2]] = entry.modified_at
    whole = ((place.rpartition("/")[2], max(times.values()), place) for place, times in found.items() if len(times) == len(_WHOLE))
    newest = max(whole, default=None)
    return newest[2] if newest else None


class Recorder:
    """Keeps the history of one worker's training; the first worker also saves and logs its epochs.

    Args:
        scratch: An empty folder of this process.
        data: The data set, of which the bundle says what it held.
        config: The training.
        lineage: What the bundle says about the weights that the training started from.
        place: The folder of the training for the first worker, None for the others.
    """

    def __init__(self, scratch: Path, data: Dataset, config: TrainConfig, lineage: dict[str, Any], place: str | None) -> None:
        self.best, self.checkpoint = scratch / BEST_FOLDER, scratch / "checkpoint"
        self.data, self.config, self.lineage = data, config, lineage
        self.history: list[dict[str, Any]] = []
        self.logs = _Logs(Storage.of(config.data), place, scratch) if place else None

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
        if self.logs is None:
            return None
        if epoch.improved:
            self._save(epoch)
        _write_history(self.history, self.best)
        shutil.rmtree(self.checkpoint, ignore_errors=True)
        shutil.copytree(self.best, self.checkpoint / BEST_FOLDER)
        np.savez(self.checkpoint / STATE_FILE, **epoch.state)  # type: ignore[arg-type]  # numpy's stub reads the keys as its own options
        self.logs.write(epoch.number, epoch.row())
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


class _Logs:
    """The figures of every epoch, for who follows the training and for TensorBoard; they are in their place when `write` returns.

    tensorboardX's SummaryWriter hands them to a thread through a queue, which its `flush` does not wait for; Ray ends a worker that
    has finished before the thread has written the last epoch. So the file is written here, without the queue. In a folder it grows,
    so that TensorBoard can follow it; in a store, where nothing grows, it is put anew after each epoch.
    """

    def __init__(self, storage: Storage, place: str, scratch: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        self._storage, self._progress, self._events = storage, join(place, PROGRESS_FILE), join(place, TENSORBOARD_FOLDER)
        self._folder = scratch / TENSORBOARD_FOLDER if is_remote(place) else Path(self._events)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(self._folder / "events"))
        self._lines = self._read_lines()

    def _read_lines(self) -> bytes:
        """The progress so far, that of an earlier worker included."""
        try:
            return wait_out(lambda: self._storage.read(self._progress))
        except FileNotFoundError:
            return b""

    def write(self, step: int, figures: dict[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        for name, value in figures.items():
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        self._writer.flush()
        if is_remote(self._events):
            wait_out(lambda: self._storage.put_folder(self._folder, self._events, last=""))
        self._lines += json.dumps(figures).encode() + b"\n"
        wait_out(lambda: self._storage.write(self._progress, self._lines))


def _write_history(rows: list[dict[str, Any]], folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table: pa.Table = pa.Table.from_pylist(rows)
    pq.write_table(table, folder / bundle.HISTORY_FILE)
