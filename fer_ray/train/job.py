"""The training job: Ray Train workers run the loop of `fitting`; checkpoints, resuming, calibration, and the bundle at the end."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fer_ray.cluster import cluster_cpus, connect, exceeds_this_machine
from fer_ray.config.recipe import PRETRAINED, ModelConfig
from fer_ray.config.train import TrainConfig
from fer_ray.data.dataset import Dataset, load_dataset
from fer_ray.errors import FerRayError, TrainingError, UsageError
from fer_ray.io.storage import Storage
from fer_ray.models import bundle
from fer_ray.models.architectures import LOGITS, NO_WEIGHTS, build, share_gpus
from fer_ray.models.calibration import calibrate
from fer_ray.train.collective import CollectiveConfig, CollectiveWorkers
from fer_ray.train.loop import Epoch, SingleWorker, State, Workers, make_network, train_epochs

if TYPE_CHECKING:
    import keras
    import pyarrow as pa
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

BEST, STATE_FILE, TENSORBOARD = "best", "state.npz", "tensorboard"
KEPT = "finished checkpoints, if any, are kept in"
PROGRESS_FILE, FAILURE_FILE, REQUEST_FILE = "progress.txt", "failure.txt", "request.json"
REPORT_SECONDS = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"


def train(config: TrainConfig) -> dict[str, Any]:
    """Train over Ray Train and leave the best epoch as a bundle at `config.output`; gives the summary.

    Until the end everything lies under `<output>.training`: checkpoints with the state of the last epochs and the best bundle.

    Raises:
        UsageError: the data set, the output or the bundle to start from cannot be used.
        TrainingError: the training could not go on; its checkpoints are kept.
    """
    output = Path(config.output).absolute()
    work = output.with_name(output.name + ".training")
    config = _with_started_model(config)
    _check_places(config, output, work)
    check_data(config)
    try:
        work.mkdir(parents=True, exist_ok=True)
        (work / REQUEST_FILE).write_text(_request(config), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"The output {config.output} cannot be written ({error.strerror}).") from error
    with _progress_shown(work / PROGRESS_FILE):
        best = run_trainer(make_trainer(config, str(work)), str(work)) / BEST
    _finish(best, work, output)
    saved = bundle.read_metadata(str(output))
    return {"model_version": saved["model_version"], **saved["metrics"]["validation"], "output": config.output}


@contextmanager
def _progress_shown(file: Path) -> Iterator[None]:
    """Print what the first worker adds to the file; its terminal, which TensorFlow and Ray fill with notes, stays in Ray's logs."""
    file.touch()
    ended = threading.Event()

    def follow() -> None:
        with file.open(encoding="utf-8") as lines:
            lines.seek(0, os.SEEK_END)
            over = False
            while not over:
                over = ended.wait(0.5)
                for line in lines:
                    print(line, end="", flush=True)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()


def check_data(config: TrainConfig) -> None:
    """Refuse a wrong data set before a cluster starts, and say what looks wrong in a right one."""
    model = config.recipe.model
    data = load_dataset(config.data, model.image_size, model.color)
    for finding in data.findings:
        print(f"note: {finding}", flush=True)
    print(f"training on {len(data.train):,} images, validating on {len(data.validation):,}: {', '.join(data.classes)}", flush=True)
    if len(data.train) < config.recipe.optimization.batch_size:
        raise UsageError(f"The data set has {len(data.train)} training images, fewer than one batch: lower --batch-size.")
    if model.architecture in PRETRAINED and not config.start_from and config.weights != NO_WEIGHTS:
        build(model, len(data.classes), config.weights)  # weights that cannot be had are refused here too


def _with_started_model(config: TrainConfig) -> TrainConfig:
    """With --start-from, the model is that of the bundle."""
    if not config.start_from:
        return config
    place = bundle.resolve(config.start_from)
    place = place if place.startswith("s3://") else str(Path(place).absolute())
    with bundle.local_copy(Storage(config.data.s3_endpoint), place) as folder:
        members = bundle.read_metadata(folder)["members"]
    if len(members) != 1:
        raise UsageError(f"The bundle {config.start_from} holds {len(members)} networks: start from one with a single network.")
    recipe = dataclasses.replace(config.recipe, model=ModelConfig.from_dict(members[0]["model"]))
    return dataclasses.replace(config, start_from=place, recipe=recipe)


def _request(config: TrainConfig) -> str:
    """What must be the same for a training to be gone on with."""
    return json.dumps({**config.to_dict(), "workers": None}, indent=2, sort_keys=True)


def _check_places(config: TrainConfig, output: Path, work: Path) -> None:
    if config.output.startswith("s3://"):
        raise UsageError("The output of a training is a folder that all machines see: copy the bundle to S3 afterwards.")
    if output.exists():
        raise UsageError(f"The output {config.output} exists already: name a new folder, or remove it.")
    if work.exists() and not config.resume:
        raise UsageError(f"A training into {config.output} was begun before: go on with --resume, or remove {work}.")
    if not config.resume:
        return
    try:
        begun = (work / REQUEST_FILE).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"There is no training into {config.output} to resume: leave --resume out.") from error
    if begun != _request(config):
        raise UsageError(f"The training into {config.output} was begun with other settings ({work / REQUEST_FILE}): use the same ones.")


def make_trainer(
    config: TrainConfig,
    storage: str,
    callbacks: tuple[Any, ...] = (),
    gpus_per_worker: float = 1.0,
    start: str = "",
    until: int | None = None,
) -> DataParallelTrainer:
    """The Ray Train job of a configuration; its checkpoints go to the folder `storage`.

    Without a checkpoint there, it goes on from the one in the folder `start`; it ends after the epoch `until`, or after all.

    Raises:
        UsageError: this machine is all there is, and lacks the CPUs or GPUs.
    """
    import ray.train
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    connect()
    os.environ.setdefault(REPORT_SECONDS, "0.5")  # Ray's 2 seconds would be the least that an epoch takes: it takes one report each time
    needed = config.workers * (config.cpus_per_worker or 1)
    if exceeds_this_machine(needed, config.workers * gpus_per_worker if config.use_gpu else 0):
        wanted = f"{needed:g} CPUs" + (f" and {config.workers * gpus_per_worker:g} GPUs" if config.use_gpu else "")
        raise UsageError(f"The training needs {wanted}, more than this machine has: lower --workers or leave --use-gpu out.")
    resources = {"CPU": config.cpus_per_worker or 1} | ({"GPU": gpus_per_worker} if config.use_gpu else {})
    threads = max(1, int(config.cpus_per_worker or cluster_cpus() // config.workers))
    part = {"start": start, "until": until}
    return DataParallelTrainer(
        train_loop_per_worker,
        train_loop_config={"config": config, "threads": threads, "storage": storage, **part},
        backend_config=CollectiveConfig(),
        scaling_config=ray.train.ScalingConfig(num_workers=config.workers, use_gpu=config.use_gpu, resources_per_worker=resources),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=storage,
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            callbacks=list(callbacks),
        ),
    )


def run_trainer(trainer: DataParallelTrainer, storage: str) -> Path:
    """Run the job; gives the folder of the last checkpoint.

    Raises:
        TrainingError: it failed, with the reason.
    """
    from ray.train.v2.api.exceptions import TrainingFailedError

    kept = f"{KEPT} {storage}"
    failure = Path(storage) / FAILURE_FILE
    failure.unlink(missing_ok=True)  # that of an earlier try
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        _raise_if_told(failure, kept)
        reason = " ".join(str(error).strip().splitlines()[-1].split())[:300]
        raise TrainingError(f"The training failed ({reason}): {kept}; --resume goes on from there.") from error
    _raise_if_told(failure, kept)
    if result.checkpoint is None:
        raise TrainingError(f"The training ended without a single epoch: see {storage}.")
    return Path(result.checkpoint.path)


def _raise_if_told(failure: Path, kept: str) -> None:
    if failure.exists():
        raise TrainingError(f"{failure.read_text(encoding='utf-8').rstrip('.')} ({kept}).")


def _finish(best: Path, work: Path, output: Path) -> None:
    """Put the bundle at the output in one step, with the log for TensorBoard, and remove the rest."""
    finished = work / "finished"
    shutil.rmtree(finished, ignore_errors=True)
    try:
        shutil.copytree(best, finished)
        if (work / TENSORBOARD).is_dir():
            shutil.copytree(work / TENSORBOARD, finished / TENSORBOARD)
        finished.rename(output)
    except OSError as error:
        raise TrainingError(f"The bundle cannot be written to {output} ({error.strerror}): it is in {best}.") from error
    shutil.rmtree(work)


def train_loop_per_worker(arguments: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train

    context, checkpoint = ray.train.get_context(), ray.train.get_checkpoint()
    begin = checkpoint.path if checkpoint else arguments["start"]
    failure = Path(arguments["storage"]) / FAILURE_FILE
    if failure.exists():
        return
    workers = _join(context.get_world_rank(), context.get_world_size(), arguments["threads"])
    try:
        _fit(arguments["config"], workers, Path(arguments["storage"]), begin, arguments["until"])
    except FerRayError as error:  # another try would end the same way
        failure.write_text(str(error), encoding="utf-8")
        if context.get_world_size() > 1:
            raise  # the others may be waiting for this one: Ray Train ends and restarts all, and finds what is written


def _join(rank: int, count: int, threads: int) -> Workers:
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1 if count == 1 else 2)
        share_gpus()
    elif count > 1:
        raise UsageError(f"Several workers need the TensorFlow backend of Keras, not {keras.backend.backend()}.")
    return CollectiveWorkers(rank, count) if count > 1 else SingleWorker()


def _fit(config: TrainConfig, workers: Workers, storage: Path, begin: str, until: int | None) -> None:
    model = config.recipe.model
    data = load_dataset(config.data, model.image_size, model.color)
    network, lineage = first_network(config, data)
    with tempfile.TemporaryDirectory(prefix="fer-ray-") as scratch:
        record = _Record(Path(scratch), data, config, lineage, storage if workers.rank == 0 else None)
        state = record.go_on_from(Path(begin)) if begin else None
        for epoch in train_epochs(data, config.recipe, network, state, workers, until):
            record.report(epoch)


def first_network(config: TrainConfig, data: Dataset) -> tuple[keras.Model, dict[str, Any]]:
    """The network that is to be trained, with the weights it starts from, and what the bundle says about those."""
    network = make_network(config.recipe, len(data.classes), NO_WEIGHTS if config.start_from else config.weights)
    if not config.start_from:
        return network, {"initial_weights": Path(config.weights).name} if config.recipe.model.architecture in PRETRAINED else {}
    with bundle.local_copy(Storage(config.data.s3_endpoint), config.start_from) as folder:
        started = bundle.load(folder)
    source = started.members[0].network
    same_classes = started.classes == data.classes
    for layer, trained in zip(network.layers, source.layers, strict=True):
        if layer.name != LOGITS or same_classes:
            layer.set_weights(trained.get_weights())
    return network, {"started_from": started.model_version}


class _Record:
    """What a training leaves behind: the best bundle so far, the history, the logs, and a checkpoint for every epoch."""

    def __init__(self, scratch: Path, data: Dataset, config: TrainConfig, lineage: dict[str, Any], storage: Path | None) -> None:
        self.scratch, self.data, self.config, self.lineage, self.storage = scratch, data, config, lineage, storage
        self.history: list[dict[str, Any]] = []
        self.writer = _log_writer(storage / TENSORBOARD) if storage else None

    def go_on_from(self, checkpoint: Path) -> State:
        import pyarrow.parquet as pq

        shutil.copytree(checkpoint / BEST, self.scratch / BEST)
        self.history = pq.read_table(self.scratch / BEST / bundle.HISTORY_FILE).to_pylist()
        with np.load(checkpoint / STATE_FILE, allow_pickle=False) as stored:
            return dict(stored)

    def report(self, epoch: Epoch) -> None:
        import ray.train

        self.history.append({**epoch.row(), "finished_at": datetime.datetime.now(datetime.UTC)})
        if self.storage is None or self.writer is None:
            ray.train.report(epoch.row())
            return
        with (self.storage / PROGRESS_FILE).open("a", encoding="utf-8") as progress:
            progress.write(progress_line(epoch, self.config.recipe.optimization.epochs) + "\n")
        for name, value in epoch.row().items():
            self.writer.add_scalar(name, value, epoch.number)
        self.writer.flush()
        if epoch.improved:
            save_epoch(epoch, self.data, self.config, self.lineage, self.scratch / BEST)
        _write_history(self.history, self.scratch / BEST)
        checkpoint = self.scratch / "checkpoint"
        shutil.rmtree(checkpoint, ignore_errors=True)
        shutil.copytree(self.scratch / BEST, checkpoint / BEST)
        np.savez(checkpoint / STATE_FILE, **epoch.state)  # type: ignore[arg-type]  # numpy's stub reads the keys as its own options
        ray.train.report(epoch.row(), checkpoint=ray.train.Checkpoint.from_directory(checkpoint))


def _log_writer(folder: Path) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder))


def _write_history(rows: list[dict[str, Any]], folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table: pa.Table = pa.Table.from_pylist(rows)
    pq.write_table(table, folder / bundle.HISTORY_FILE)


def progress_line(epoch: Epoch, epochs: int) -> str:
    """One epoch in one line."""
    return (
        f"epoch {epoch.number}/{epochs}  loss {epoch.train_loss:.4f}  val_accuracy {epoch.figures['accuracy']:.4f}  "
        f"val_macro_f1 {epoch.figures['macro_f1']:.4f}  val_nll {epoch.figures['nll']:.4f}  lr {epoch.learning_rate:.2e}  "
        f"{epoch.seconds:.0f} s{'  best so far' if epoch.improved else ''}"
    )


def save_epoch(epoch: Epoch, data: Dataset, config: TrainConfig, lineage: dict[str, Any], folder: Path) -> None:
    """Save the model of this epoch as a bundle, calibrated on the validation split."""
    folder.mkdir(exist_ok=True)
    network = build(config.recipe.model, len(data.classes), NO_WEIGHTS)
    network.set_weights(epoch.weights)
    logits = bundle.predict_logits(network, data.validation.images)  # anew, as training may have used a coarser arithmetic
    temperature, figures = calibrate(logits, data.validation.labels)
    lineage = {
        "data_sha256": data.sha256,
        "train_counts": data.train.counts(data.classes),
        "validation_counts": data.validation.counts(data.classes),
        "findings": list(data.findings),
        "epoch": epoch.number,
        **lineage,
        "config": config.to_dict(),
    }
    members = [bundle.Member(network, config.recipe.model)]
    bundle.save(str(folder), members, bundle.Description(data.classes, temperature, figures, lineage))
