"""What runs in a worker of a training: it loads the data, builds the network, and reports every epoch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_ray.config.jobs.train import TrainConfig
from fer_ray.config.recipe import PRETRAINED
from fer_ray.data.dataset import Dataset, load_dataset
from fer_ray.errors import FerRayError, OutageError, UsageError
from fer_ray.io.storage import Storage, join
from fer_ray.models import bundle, keras_bundle
from fer_ray.models.architectures import LOGITS, NO_WEIGHTS, share_gpus
from fer_ray.models.conversion import add_onnx
from fer_ray.models.flops import multiply_adds
from fer_ray.models.silence import load_keras
from fer_ray.train.collective import CollectiveWorkers
from fer_ray.train.filesystem import address_of, local_folder, wait_out
from fer_ray.train.loop import make_network, train_epochs
from fer_ray.train.recorder import Recorder
from fer_ray.train.strategy import SingleWorker, Workers
from fer_ray.train.teacher import with_teachers

if TYPE_CHECKING:
    import keras

Report = Callable[[dict[str, Any], Path | None], None]  # told of an epoch: its row of the history, and its checkpoint from the first worker
COST = "multiply_adds"  # in the report of an epoch: what an image costs the network
FINISHED_FOLDER = "finished"  # in the storage of a training: the bundle, complete
FAILURE_FILE = "failure.txt"  # in the storage of a training: why it cannot continue, in a sentence


@dataclass(frozen=True)
class TrainingRun:
    """One Ray Train job, or the part of a training that it does.

    Attributes:
        config: The training; all its paths are absolute, since workers have another working directory.
        storage: The folder for its checkpoints, its progress and its logs: one that all machines see, or an address in a store.
        start: The checkpoint to resume from where the storage has none yet.
        until: The last epoch of this part; by default that of the training.
        gpus_per_worker: GPUs of each worker where the training uses GPUs; a fraction shares one.
        finish: Whether the first worker, which has TensorFlow loaded, leaves a complete bundle in the end.
    """

    config: TrainConfig
    storage: str
    start: str = ""
    until: int | None = None
    gpus_per_worker: float = 1.0
    finish: bool = False

    @property
    def resources_per_worker(self) -> dict[str, float]:
        """What Ray reserves for each worker."""
        gpus = self.gpus_per_worker if self.config.use_gpu else 0.0
        return {"CPU": self.config.cpus_per_worker or 1} | ({"GPU": gpus} if gpus else {})

    @property
    def stores(self) -> Storage:
        """How to get at them."""
        return Storage.of(self.config.data)


def train_loop_per_worker(arguments: dict[str, Any]) -> None:
    """What Ray Train calls in each worker, with the `run` and the number of `threads` to compute with."""
    import ray.train

    run: TrainingRun = arguments["run"]
    failure = join(run.storage, FAILURE_FILE)
    if wait_out(lambda: run.stores.stat(failure)):
        return
    context = ray.train.get_context()
    checkpoint = ray.train.get_checkpoint()
    try:
        data = load_training_data(run.config)
        workers = join_workers(context.get_world_rank(), context.get_world_size(), arguments["threads"])
        train_as(workers, run, data, address_of(checkpoint) if checkpoint else run.start, _report_to_ray_train)
    except OutageError:  # another try may find the store up again
        raise
    except FerRayError as error:  # another try would end the same way
        run.stores.write(failure, str(error).encode())
        if context.get_world_size() > 1:
            raise  # the others may be waiting for this one: Ray Train ends and restarts all, and they find what is written


def _report_to_ray_train(row: dict[str, Any], checkpoint: Path | None) -> None:
    import ray.train

    ray.train.report(row, checkpoint=ray.train.Checkpoint.from_directory(checkpoint) if checkpoint else None)


def join_workers(rank: int, count: int, threads: int) -> Workers:
    """Make this process a worker that computes with so many threads; must come before TensorFlow computes anything."""
    load_keras()
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1 if count == 1 else 2)
        share_gpus()
    elif count > 1:
        raise UsageError(f"Several workers need the TensorFlow backend of Keras, not {keras.backend.backend()}.")
    return CollectiveWorkers(rank, count) if count > 1 else SingleWorker()


def load_training_data(config: TrainConfig) -> Dataset:
    """The data set as the model of this training takes it."""
    return load_dataset(config.data, config.recipe.model.image_size, config.recipe.model.color)


def train_as(workers: Workers, run: TrainingRun, data: Dataset, start: str, report: Report) -> None:
    """Train as one of the workers, from the checkpoint `start` where there is one, and report every epoch."""
    network, lineage = initial_network(run.config, data)
    data = with_teachers(data, run.config) if run.config.teacher else data
    cost = {COST: multiply_adds(network)}
    with tempfile.TemporaryDirectory(prefix="fer-ray-") as scratch:
        recorder = Recorder(Path(scratch), data, run.config, lineage, run.storage if workers.rank == 0 else None)
        state = None
        if start:
            with local_folder(run.stores, start) as folder:
                state = recorder.restore(folder)
        for epoch in train_epochs(data, run.config.recipe, network, state, workers, run.until):
            report(epoch.row() | cost, recorder.record(epoch))
        if run.finish and workers.rank == 0:
            add_onnx(str(recorder.best))
            finished = join(run.storage, FINISHED_FOLDER)
            run.stores.remove_folder(finished)  # that of an earlier try
            wait_out(lambda: run.stores.put_folder(recorder.best, finished, last=bundle.METADATA_FILE))


def initial_network(config: TrainConfig, data: Dataset) -> tuple[keras.Model, dict[str, Any]]:
    """The network to train, with the weights it starts from, and what the bundle will say about those."""
    network = make_network(config.recipe, len(data.classes), NO_WEIGHTS if config.start_from else config.weights)
    if not config.start_from:
        return network, {"initial_weights": Path(config.weights).name} if config.recipe.model.architecture in PRETRAINED else {}
    with bundle.local_copy(Storage.of(config.data), config.start_from) as folder:
        start = keras_bundle.load(folder)
    same_classes = start.classes == data.classes
    for layer, trained in zip(network.layers, start.members[0].network.model.layers, strict=True):
        if layer.name != LOGITS or same_classes:
            layer.set_weights(trained.get_weights())
    return network, {"started_from": start.model_version}
