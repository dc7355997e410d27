"""One trial of a search: a training of one configuration, or of its parts between the comparisons of population based training."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray.tune

from fer_ray.config.jobs.train import TrainConfig
from fer_ray.config.jobs.tune import TuneConfig
from fer_ray.errors import TrainingError
from fer_ray.io.storage import Storage, join
from fer_ray.models.architectures import NO_WEIGHTS, build
from fer_ray.models.flops import multiply_adds
from fer_ray.train.filesystem import address_of, ray_checkpoint, wait_out
from fer_ray.train.recorder import BEST_FOLDER
from fer_ray.train.trainer import run_training
from fer_ray.train.worker import COST, FAILURE_FILE, TrainingRun
from fer_ray.tune.searchers import COMPARABLE, parse_proposed
from fer_ray.tune.space.search_space import Space, parse_space
from fer_ray.tune.trial_dirs import SETTINGS_FILE, TRIALS_FOLDER, best_bundle, read_epochs

CLASSES = 7  # of the networks whose cost is measured; that of the last layer hardly counts


def trial_config(config: TuneConfig, space: Space, settings: Mapping[str, Any], folder: str) -> TrainConfig:
    """The training of one configuration: what a trial runs, for as many epochs as a trial has."""
    recipe = space.recipe(settings)
    recipe = replace(recipe, optimization=replace(recipe.optimization, epochs=config.epochs, patience=config.epochs))
    return TrainConfig(
        join(folder, "model"),
        weights=NO_WEIGHTS,
        workers=config.workers_per_trial,
        cpus_per_worker=config.cpus_per_worker or 1,
        use_gpu=config.use_gpu,
        max_failures=1,
        wait_for_machines=config.wait_for_machines,
        data=config.data,
        recipe=recipe,
    )


def run_trial(proposed: dict[str, Any], config: TuneConfig, space_text: tuple[str, str], output: str) -> None:
    """What Ray Tune calls for each trial; it resumes from the trial's last checkpoint where there is one.

    Args:
        proposed: What Tune calls a configuration.
        config: The search.
        space_text: The name and the text of the file of the search space.
        output: The folder of the search, or its address; the trial's own folder in it is named after the trial.
    """
    space, settings = parse_space(space_text[1], space_text[0]), parse_proposed(proposed)
    storage, folder = Storage.of(config.data), join(output, TRIALS_FOLDER, ray.tune.get_context().get_trial_id())
    failure = join(folder, FAILURE_FILE)
    if wait_out(lambda: storage.stat(failure)):  # Tune tries again, for machines that die; what failed for a reason would only fail again
        raise TrainingError(storage.read(failure).decode())
    wait_out(lambda: storage.write(join(folder, SETTINGS_FILE), json.dumps(settings).encode()))
    training = trial_config(config, space, settings, folder)
    if config.scheduler == "pbt":
        _run_generations(config, training, folder)
    else:
        _run_epochs(config, training, folder)


def _run_epochs(config: TuneConfig, training: TrainConfig, folder: str) -> None:
    """The whole training at a stretch, from the trial's last checkpoint where there is one."""
    from ray.tune.integration.ray_train import TuneReportCallback

    storage = Storage.of(config.data)
    best = best_bundle(storage, folder)
    finished = read_epochs(storage, best) if best else []
    if len(finished) >= config.epochs:  # it was killed before its last report: Tune takes no trial that ends without one
        cost = multiply_adds(build(training.recipe.model, CLASSES, NO_WEIGHTS)) if config.low_cost else 0
        ray.tune.report({**dataclasses.asdict(finished[-1]), COST: cost})
        return
    run = TrainingRun(training, folder, gpus_per_worker=config.gpus_per_worker)
    run_training(run, [TuneReportCallback()], is_trial=True)


def _run_generations(config: TuneConfig, training: TrainConfig, folder: str) -> None:
    """Population based training: between two comparisons lies a training, from the trial's own checkpoint or a better trial's."""
    storage, checkpoint = Storage.of(config.data), ray.tune.get_checkpoint()
    start = address_of(checkpoint) if checkpoint else ""
    finished = read_epochs(storage, join(start, BEST_FOLDER)) if start else []
    epoch = len(finished)
    if epoch >= config.epochs:
        ray.tune.report({**dataclasses.asdict(finished[-1]), COMPARABLE: epoch - 1})
    while epoch < config.epochs:
        first, epoch = epoch, min(epoch + config.pbt_interval, config.epochs)
        origin = hashlib.sha256(f"{training.recipe}{start}".encode()).hexdigest()[:8]
        place = join(folder, f"epoch_{first:04d}_{origin}")
        start = run_training(TrainingRun(training, place, start, epoch, config.gpus_per_worker), is_trial=True)
        # There is nothing to compare after the last epoch: a trial that took over another's weights then would never use them.
        comparable = epoch if epoch < config.epochs else first
        row = dataclasses.asdict(read_epochs(storage, join(start, BEST_FOLDER))[-1])
        ray.tune.report({**row, COMPARABLE: comparable}, checkpoint=ray_checkpoint(storage, start, ray.tune.Checkpoint))
