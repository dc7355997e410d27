"""A training as a Ray Train job: the workers it needs, its checkpoints, and why it failed; trials of a search run the same way."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from fer_ray.cluster import cluster_cpus, connect, describe_resources, exceeds_this_machine, is_short_of_memory
from fer_ray.config.options import seconds_of
from fer_ray.errors import TrainingError, UsageError
from fer_ray.io.storage import join
from fer_ray.text import sanitize
from fer_ray.train.collective import CollectiveConfig
from fer_ray.train.filesystem import address_of, ray_storage
from fer_ray.train.recorder import newest_checkpoint
from fer_ray.train.worker import FAILURE_FILE, TrainingRun, train_loop_per_worker

if TYPE_CHECKING:
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

LOGGER = logging.getLogger(__name__)
CHECKPOINTS_FOLDER = "train"  # in the storage of a training
SNAPSHOT_FILE = "checkpoint_manager_snapshot.json"  # in that folder: which of the checkpoints Ray knows
KEPT_CHECKPOINTS = 2  # the newest may be half written when a machine dies
KEPT = "finished checkpoints, if any, are kept in"  # begins the part of an error that differs from trial to trial
START_LIMIT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"  # after which Ray counts a failure and waits on for the workers
START_SECONDS = 60.0
REPORT_INTERVAL = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
REPORT_SECONDS = "0.5"  # Ray takes one report each time: with its 2 seconds no epoch could be shorter
# A machine that is to be taken away announces it to a process of Ray Train; the last epoch is on disk without that.
NO_NOTICE = ("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


def run_training(run: TrainingRun, callbacks: Sequence[Any] = (), is_trial: bool = False) -> str:
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
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import TrainingFailedError

    mend_snapshot(run)
    trainer = _make_trainer(run, callbacks, is_trial)
    kept = f"{KEPT} {run.storage}"
    run.stores.remove(join(run.storage, FAILURE_FILE))  # that of an earlier try
    try:
        result = trainer.fit()
    except (TrainingFailedError, RayError) as error:  # the second where the process died that looks after the workers
        _raise_recorded(run, kept)
        if isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
            waited = f"The training waited {run.config.wait_for_machines} for its workers, and {describe_resources()}"
            raise TrainingError(f"{waited}: add machines, or raise --wait-for-machines ({kept}; --resume continues from there).") from error
        if is_short_of_memory(error):
            remedy = "lower --batch-size or --workers, or use machines with more memory"
            raise TrainingError(f"A machine ran out of memory: {remedy} ({kept}; --resume continues from there).") from error
        reason = " ".join(str(error).strip().splitlines()[-1].split())[:300]
        raise TrainingError(f"The training failed ({reason}): {kept}; --resume continues from there.") from error
    _raise_recorded(run, kept)
    if result.checkpoint is None:
        raise TrainingError(f"The training ended without a single epoch: see {run.storage}.")
    return address_of(result.checkpoint)


def mend_snapshot(run: TrainingRun) -> None:
    """Have Ray know the newest whole checkpoint of a training that was killed while Ray wrote down which ones there are.

    Ray writes that file in place, and refuses to go on with one that was cut off.
    """
    folder = join(run.storage, CHECKPOINTS_FOLDER)
    snapshot = join(folder, SNAPSHOT_FILE)
    try:
        json.loads(run.stores.read(snapshot))
        return
    except FileNotFoundError:
        return
    except ValueError:  # no JSON, or no text
        newest = newest_checkpoint(run.stores, folder)
    LOGGER.warning("The file %s was cut off: resuming from %s.", sanitize(snapshot), sanitize(newest or "the start"))
    if newest is None:
        run.stores.remove(snapshot)
        return
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState, _TrainingResultState

    result = _TrainingResultState(checkpoint_dir_name=newest.rpartition("/")[2], metrics={})
    state = _CheckpointManagerState(
        checkpoint_results=[result],
        checkpoint_report_indices=[0],
        latest_checkpoint_result=result,
        pending_training_results=[],
        pending_validation_specs=[],
        current_report_index=1,
        validated_checkpoint_dir_names=[],
        timed_out_validation_checkpoint_dir_names=[],
        failed_validation_checkpoint_dir_names=[],
    )
    run.stores.write(snapshot, state.json().encode())


def _raise_recorded(run: TrainingRun, kept: str) -> None:
    """Raise what a worker has written down as the reason why the training cannot continue."""
    with suppress(FileNotFoundError):
        reason = run.stores.read(join(run.storage, FAILURE_FILE)).decode()
        raise TrainingError(f"{reason.rstrip('.')} ({kept}).")


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
    os.environ.setdefault(START_LIMIT, str(START_SECONDS))
    config, resources = run.config, run.resources_per_worker
    _check_resources(*(config.workers * resources.get(name, 0) for name in ("CPU", "GPU")))
    threads = max(1, int(config.cpus_per_worker or cluster_cpus() // config.workers))
    tries = math.ceil(seconds_of("time", config.wait_for_machines) / float(os.environ[START_LIMIT]))
    return Trainer(
        train_loop_per_worker,
        train_loop_config={"run": run, "threads": threads},
        backend_config=CollectiveConfig(),
        scaling_config=ray.train.ScalingConfig(num_workers=config.workers, use_gpu=config.use_gpu, resources_per_worker=resources),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS_FOLDER,
            **ray_storage(run.stores, run.storage),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
            failure_config=ray.train.FailureConfig(max_failures=config.max_failures, controller_failure_limit=tries),
            callbacks=list(callbacks),
        ),
    )


def _check_resources(cpus: float, gpus: float) -> None:
    if exceeds_this_machine(cpus, gpus):
        needed = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        raise UsageError(f"The training needs {needed}, more than this machine has: lower --workers or leave --use-gpu out.")
