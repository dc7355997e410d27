"""The search: Ray Tune chooses configurations and stops poor ones; each trial is a training of `fer_ray.train`."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.tune

from fer_ray.cluster import connect, may_grow
from fer_ray.config.recipe import OptimizationConfig
from fer_ray.config.tune import TuneConfig
from fer_ray.data.layouts.find import with_absolute_paths
from fer_ray.errors import TrainingError, UsageError
from fer_ray.models.architectures import NO_WEIGHTS, build
from fer_ray.models.flops import Cost, measure_cost
from fer_ray.reporting.progress import LogProgress, Progress
from fer_ray.text import sanitize
from fer_ray.train.job import check_dataset
from fer_ray.train.recorder import has_checkpoints
from fer_ray.train.worker import FAILURE_FILE
from fer_ray.tune.outputs import BEST_FILE, SearchOutcome, write_outputs
from fer_ray.tune.page import PAGE_FILE
from fer_ray.tune.progress import SearchProgress, show_on
from fer_ray.tune.results import FAILED, LeaderboardEntry, leaderboard
from fer_ray.tune.searchers import SEED_INDEX, SETTINGS, listed_settings, make_scheduler, make_searcher
from fer_ray.tune.space.search_space import Settings, Space, read_space
from fer_ray.tune.trial import CLASSES, run_trial, trial_config
from fer_ray.tune.trial_dirs import TRIALS_FOLDER, TUNE_FOLDER, collect, reason_of

LOGGER = logging.getLogger(__name__)
REQUEST_FILE = "search.json"  # in the output: the configuration that the search was begun with
SPACE_FILE = "space.yaml"  # in the output: the search space, which may change elsewhere
HEAD_RESOURCE = "node:__internal_head__"  # Ray gives one of it to the head alone
MIN_HEAD_SHARE = 0.001  # of the head's resource for one trial
MAX_PBT_TRIALS = 20  # at a time
SNAPSHOT_SECONDS = "3"  # a killed search forgets trials that are younger
KEPT_CHECKPOINTS = 3  # of each trial of population based training
DIGITS = 4  # of the best value in the summary


def tune(config: TuneConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Search, and leave `best.yaml`, the best trial's bundle, `trials.parquet` and a page.

    Args:
        config: The search; relative paths are those of this process.
        progress: What shows the epochs of all trials; by default the log.

    Returns:
        The summary: how many trials there were, and the best one.

    Raises:
        UsageError: the space, the data set or the output cannot be used, or no trial could ever fit.
        TrainingError: no trial gave a result.
    """
    output = Path(config.output).absolute()
    given = config.data.dataset
    config = replace(config, data=with_absolute_paths(config.data))
    begun = has_checkpoints(output / TRIALS_FOLDER)
    _check_places(config, output, begun)
    space = read_space(str(output / SPACE_FILE) if begun else config.space)
    _check_dataset(config, space, output)
    progress = progress or LogProgress()
    progress.start("starting Ray")
    connect(dashboard=True)
    at_a_time = concurrent_trials(config)
    if not begun:
        _begin(config, output, space)
    started = time.monotonic()
    show_on(progress)
    try:
        _search(config, space, output, at_a_time)
    finally:
        progress.close()
    outcome = _collect(config, space, output, started)
    write_outputs(outcome, progress)
    train = f"fer-ray train --config {config.output}/{BEST_FILE} --dataset {given} --output MODEL"
    LOGGER.info("Next: open %s, then train the best settings in full: %s", sanitize(str(output / PAGE_FILE)), sanitize(train))
    failed = sum(trial.status == FAILED for trial in outcome.trials)
    return {
        "trials": len(outcome.trials),
        "completed": len(outcome.trials) - failed,
        "failed": failed,
        "best_trial": outcome.best.trial.trial_id,
        "best_value": round(outcome.best.value, DIGITS),
        "best_config": str(output / BEST_FILE),
        "output": config.output,
    }


def _check_places(config: TuneConfig, output: Path, begun: bool) -> None:
    """Refuse an output that holds something else, or another search than the one to resume.

    What a try without a single finished epoch has left is in nobody's way.
    """
    request = output / REQUEST_FILE
    if config.resume and not request.is_file():
        raise UsageError(f"There is no search in {config.output} to resume: leave --resume out.")
    if begun and config.resume and request.read_text(encoding="utf-8") != _request(config):
        raise UsageError(f"The search in {config.output} was begun with other settings ({request}): use the same ones.")
    if (begun and not config.resume) or (output.exists() and not request.is_file()):
        remedy = "resume the search with --resume, " if begun else ""
        raise UsageError(f"The output {config.output} exists already: {remedy}name a new folder, or remove it.")


def _request(config: TuneConfig) -> str:
    """What must be the same for a search to be resumed."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, default=list)


def _check_dataset(config: TuneConfig, space: Space, output: Path) -> None:
    """Check the data set with one of the configurations, and with the largest batch of all."""
    sizes = [size for parameter in space.parameters if parameter.setting == "batch_size" for size in parameter.bounds()]
    settings = {**space.random(np.random.default_rng(0)), "batch_size": max(sizes, default=OptimizationConfig().batch_size)}
    check_dataset(trial_config(config, space, settings, output), "search smaller values of batch_size")


def _begin(config: TuneConfig, output: Path, space: Space) -> None:
    """Make the folder of the search, without what a try that finished no epoch has left there."""
    try:
        for folder in (output / TRIALS_FOLDER, output / TUNE_FOLDER):
            if folder.exists():
                shutil.rmtree(folder)
        (output / TRIALS_FOLDER).mkdir(parents=True)
        (output / SPACE_FILE).write_text(space.text, encoding="utf-8")
        (output / REQUEST_FILE).write_text(_request(config), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"The output {config.output} cannot be written ({error.strerror}).") from error


def concurrent_trials(config: TuneConfig) -> int:
    """How many trials may run at a time: as many as fit, so that none waits for CPUs or GPUs that others hold while they wait too.

    Raises:
        UsageError: not even one fits, and the cluster is this machine alone.
    """
    resources = ray.cluster_resources()
    needed = {
        "CPU": config.workers_per_trial * (config.cpus_per_worker or 1),
        "GPU": config.workers_per_trial * config.gpus_per_worker * config.use_gpu,
    }
    room = min(int(resources.get(kind, 0) / amount) for kind, amount in needed.items() if amount)
    if room < 1:
        has = ", ".join(f"{resources.get(kind, 0):g} {kind}s" for kind, amount in needed.items() if amount)
        wants = ", ".join(f"{amount:g} {kind}s" for kind, amount in needed.items() if amount)
        if not may_grow():
            raise UsageError(f"A trial needs {wants}, this machine has {has}: lower --workers-per-trial or --cpus-per-worker.")
        LOGGER.info("note: a trial needs %s, the cluster has %s: waiting for it to grow", wants, has)
    if config.max_concurrent and may_grow():
        return config.max_concurrent
    return min(config.max_concurrent or max(1, room), max(1, room))


def _search(config: TuneConfig, space: Space, output: Path, at_a_time: int) -> None:
    """Run the trials, those that an interrupted search has left included."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its table of the settings
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", SNAPSHOT_SECONDS)
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(run_trial, config=config, space_text=(space.file, space.text), output=str(output)),
        {"cpu": 0, HEAD_RESOURCE: _head_share(config, at_a_time)},  # it only waits: a CPU would be taken from its own workers
    )
    for failure in (output / TRIALS_FOLDER).glob(f"*/{FAILURE_FILE}"):
        failure.unlink()  # a search that is resumed tries again
    place = str(output / TUNE_FOLDER)
    try:
        if ray.tune.Tuner.can_restore(place):
            tuner = ray.tune.Tuner.restore(place, trainable, resume_unfinished=True, restart_errored=True)
        else:
            tuner = _make_tuner(config, space, output, at_a_time, trainable)
        tuner.fit()
    except (ImportError, AttributeError, pickle.UnpicklingError) as error:
        remedy = f"finish it with that version, or name a new folder; the models of its trials stay in {output / TRIALS_FOLDER}"
        raise UsageError(f"The search in {config.output} was begun by another version of fer_ray: {remedy}.") from error
    except ray.tune.TuneError as error:  # what a callback raised, as text
        raise TrainingError(f"{reason_of(error).rstrip('.')}; see {output}.") from error


def _make_tuner(config: TuneConfig, space: Space, output: Path, at_a_time: int, trainable: Any) -> ray.tune.Tuner:
    listed = listed_settings(config, space)
    return ray.tune.Tuner(
        trainable,
        param_space=_listed_space(config, listed) if listed else {},
        tune_config=ray.tune.TuneConfig(
            search_alg=None if listed else make_searcher(config, space),
            scheduler=make_scheduler(config, space),
            num_samples=1 if listed else config.trials * config.seeds,
            max_concurrent_trials=None if config.scheduler == "pbt" else at_a_time,
            time_budget_s=config.seconds(),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=ray.tune.RunConfig(
            name=TUNE_FOLDER,
            storage_path=str(output),
            failure_config=ray.tune.FailureConfig(max_failures=1),
            checkpoint_config=ray.tune.CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
            callbacks=[SearchProgress(config, str(output), (len(listed) if listed else config.trials) * config.seeds)],
            verbose=0,
        ),
    )


def _head_share(config: TuneConfig, at_a_time: int) -> float:
    """What a trial takes of the head's own resource, of which there is one.

    A population is compared as a whole, so all of it is there from the beginning; this share says how many run at a time, and
    leaves a little to the helpers of Ray Train, which need some of it too.
    """
    if config.scheduler != "pbt":
        return MIN_HEAD_SHARE
    return math.floor(1 / (min(at_a_time, MAX_PBT_TRIALS) + 0.5) / MIN_HEAD_SHARE) * MIN_HEAD_SHARE


def _listed_space(config: TuneConfig, listed: Sequence[Settings]) -> dict[str, Any]:
    texts = ray.tune.grid_search([json.dumps(settings) for settings in listed])
    return {SETTINGS: texts, SEED_INDEX: ray.tune.grid_search(list(range(config.seeds)))}


def _collect(config: TuneConfig, space: Space, output: Path, started: float) -> SearchOutcome:
    """What the trials have come to.

    Raises:
        TrainingError: none of them gave a result.
    """
    trials = collect(output, run_trial, config.epochs)
    board = leaderboard(trials, config.objective)
    if not board:
        reasons = Counter(trial.error or "no epoch was finished" for trial in trials)
        reason = sanitize(reasons.most_common(1)[0][0]) if reasons else "the time was up before the first began"
        raise TrainingError(f"None of {len(trials)} trials gave a result ({reason}): see {output}.")
    costs = _measure_costs(space, board)
    board = leaderboard(trials, config.objective, costs)  # of equals, the cheaper now comes first
    return SearchOutcome(config, space, output, trials, board, costs, time.monotonic() - started)


def _measure_costs(space: Space, board: Sequence[LeaderboardEntry]) -> dict[str, Cost]:
    """What the networks of the leaderboard cost, one after the other on this machine, which needs TensorFlow for the best bundle too."""
    models = {entry.trial.trial_id: space.recipe(entry.trial.settings).model for entry in board}
    return {name: measure_cost(build(model, CLASSES, NO_WEIGHTS)) for name, model in models.items()}
