"""A training as a Ray Train job: the workers it needs, its checkpoints, and why it failed; trials of a search run the same way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_ray.cluster import cluster_cpus, connect, exceeds_this_machine, is_short_of_memory
from fer_ray.errors import TrainingError, UsageError
from fer_ray.train.collective import CollectiveConfig
from fer_ray.train.worker import FAILURE_FILE, TrainingRun, train_loop_per_worker

if TYPE_CHECKING:
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

CHECKPOINTS_FOLDER = "train"  # in the storage of a training
KEPT_CHECKPOINTS = 2  # the newest may be half written when a machine dies
KEPT = "finished checkpoints, if any, are kept in"  # begins the part of an error that differs from trial to trial
REPORT_INTERVAL = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
REPORT_SECONDS = "0.5"  # Ray takes one report each time: with its 2 seconds no epoch could be shorter
# A machine that is to be taken away announces it to a process of Ray Train; the last epoch is on disk without that.
NO_NOTICE = ("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


def run_training(run: TrainingRun, callbacks: Sequence[Any] = (), is_trial: bool = False) -> Path:
    """Run a training, or a part of it, from the last checkpoint in its storage.

    Args:
        run: What is trained and where its checkpoints go.
        callbacks: Callbacks of Ray Train, which hear of every epoch.
        is_trial: Whether a search may stop it while Ray runs on: a process of Ray Train then frees its CPUs.

    Returns:
        The folder of the last checkpoint.

    Raises:
        UsageError: this machine is all there is, and lacks the CPUs or GPUs.
        TrainingError: the training failed, with the reason.
    """
    from ray.exceptions import RayError
    from ray.train.v2.api.exceptions import TrainingFailedError

    trainer = _make_trainer(run, callbacks, is_trial)
    kept = f"{KEPT} {run.storage}"
    failure = Path(run.storage) / FAILURE_FILE
    failure.unlink(missing_ok=True)  # that of an earlier try
    try:
        result = trainer.fit()
    except (TrainingFailedError, RayError) as error:  # the second where the process died that looks after the workers
        _raise_recorded(failure, kept)
        if is_short_of_memory(error):
            remedy = "lower --batch-size or --workers, or use machines with more memory"
            raise TrainingError(f"A machine ran out of memory: {remedy} ({kept}; --resume continues from there).") from error
        reason = " ".join(str(error).strip().splitlines()[-1].split())[:300]
        raise TrainingError(f"The training failed ({reason}): {kept}; --resume continues from there.") from error
    _raise_recorded(failure, kept)
    if result.checkpoint is None:
        raise TrainingError(f"The training ended without a single epoch: see {run.storage}.")
    return Path(result.checkpoint.path)


def _raise_recorded(failure: Path, kept: str) -> None:
    """Raise what a worker has written down as the reason why the training cannot continue."""
    if failure.exists():
        raise TrainingError(f"{failure.read_text(encoding='utf-8').rstrip('.')} ({kept}).")


def _make_trainer(run: TrainingRun, callbacks: Sequence[Any], is_trial: bool) -> DataParallelTrainer:
    import ray.train
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    # Each starts a process. There is no data set of Ray Data here, and the CPUs of a training that dies are free once its job has ended.
    unneeded = (DatasetsCallback,) if is_trial else (DatasetsCallback, PlacementGroupCleanerCallback)

    class Trainer(DataParallelTrainer):  # type: ignore[misc]  # Ray has no types
        def _create_default_callbacks(self) -> list[Any]:
            return [one for one in super()._create_default_callbacks() if not isinstance(one, unneeded)]

    connect()
    os.environ.setdefault(REPORT_INTERVAL, REPORT_SECONDS)
    os.environ.setdefault(*NO_NOTICE)
    config = run.config
    cpus = config.cpus_per_worker or 1
    gpus = run.gpus_per_worker if config.use_gpu else 0
    _check_resources(config.workers * cpus, config.workers * gpus)
    threads = max(1, int(config.cpus_per_worker or cluster_cpus() // config.workers))
    resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    return Trainer(
        train_loop_per_worker,
        train_loop_config={"run": run, "threads": threads},
        backend_config=CollectiveConfig(),
        scaling_config=ray.train.ScalingConfig(num_workers=config.workers, use_gpu=config.use_gpu, resources_per_worker=resources),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS_FOLDER,
            storage_path=run.storage,
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures),
            callbacks=list(callbacks),
        ),
    )


def _check_resources(cpus: float, gpus: float) -> None:
    if exceeds_this_machine(cpus, gpus):
        needed = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        raise UsageError(f"The training needs {needed}, more than this machine has: lower --workers or leave --use-gpu out.")
