"""The search: Ray Tune chooses configurations and stops poor ones; each trial is a training of `fer_ray.train`."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import ray.tune
from ray.tune.search import Searcher

from fer_ray.cluster import connect, may_grow, waiting_told
from fer_ray.config.jobs.tune import TuneConfig
from fer_ray.config.recipe import OptimizationConfig
from fer_ray.data.layouts.find import with_absolute_paths
from fer_ray.errors import AccessError, OutageError, TrainingError, UsageError
from fer_ray.io.storage import Storage, absolute, join, new_folder
from fer_ray.models.architectures import NO_WEIGHTS, build
from fer_ray.models.flops import Cost, measure_cost
from fer_ray.reporting.progress import LogProgress, Progress
from fer_ray.text import sanitize
from fer_ray.train.filesystem import ray_storage
from fer_ray.train.job import check_dataset, read_request
from fer_ray.train.recorder import has_checkpoints
from fer_ray.train.tracking import Tracker
from fer_ray.train.worker import FAILURE_FILE
from fer_ray.tune.outputs import BEST_FILE, SearchOutcome, remove_outdated, write_outputs
from fer_ray.tune.page import PAGE_FILE
from fer_ray.tune.progress import SearchProgress, show_on
from fer_ray.tune.results import FAILED, LeaderboardEntry, Trial, leaderboard, read_trials
from fer_ray.tune.searchers import SEED_INDEX, SETTINGS, MoreTrials, listed_settings, make_scheduler, make_searcher
from fer_ray.tune.space.search_space import Settings, Space, parse_space, read_space
from fer_ray.tune.study import StudyLog, TrackedTrials
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
    storage, output = Storage.of(config.data), new_folder(config.output)
    given = config.data.dataset
    config = replace(config, data=with_absolute_paths(config.data))
    try:
        begun = has_checkpoints(storage, join(output, TRIALS_FOLDER))
        _check_places(storage, config, output, begun)
    except OutageError:
        raise
    except AccessError as error:
        raise UsageError(str(error)) from error
    space = _begun_space(storage, output) if begun else read_space(config.space)
    _check_dataset(config, space, output)
    progress = progress or LogProgress()
    progress.start("starting Ray")
    connect(dashboard=True)
    at_a_time = concurrent_trials(config)
    if not begun:
        _begin(storage, config, output, space)
    started = time.monotonic()
    study, tracker = StudyLog(storage, output, config, space), Tracker(config.track, output)
    show_on(progress, study, TrackedTrials(tracker, output.rpartition("/")[2]))
    try:
        with waiting_told({"CPU": config.cpus_per_worker or 1, "GPU": config.gpus_per_worker * config.use_gpu}):
            _search(config, space, output, at_a_time)
    finally:
        progress.close()
        study.close()
        tracker.close()
    outcome = _collect(config, space, output, started)
    write_outputs(outcome, progress)
    train = f"fer-ray train --config {config.output}/{BEST_FILE} --dataset {given} --output MODEL"
    LOGGER.info("Next: open %s, then train the best settings in full: %s", sanitize(join(output, PAGE_FILE)), sanitize(train))
    failed = sum(trial.status == FAILED for trial in outcome.trials)
    return {
        "trials": len(outcome.trials),
        "completed": len(outcome.trials) - failed,
        "failed": failed,
        "best_trial": outcome.best.trial.trial_id,
        "best_value": round(outcome.best.value, DIGITS),
        "best_config": join(output, BEST_FILE),
        "output": config.output,
    }


def _check_places(storage: Storage, config: TuneConfig, output: str, begun: bool) -> None:
    """Refuse an output that holds something else, or another search than the one to resume.

    What a try without a single finished epoch has left is in nobody's way.
    """
    request = read_request(storage, join(output, REQUEST_FILE))
    if config.resume and request is None:
        raise UsageError(f"There is no search in {config.output} to resume: leave --resume out.")
    if begun and config.resume and request is not None:
        _check_request(config, json.loads(request), join(output, REQUEST_FILE))
    if (begun and not config.resume) or (request is None and storage.exists(output)):
        remedy = "resume the search with --resume, " if begun else ""
        raise UsageError(f"The output {config.output} exists already: {remedy}name a new folder, or remove it.")


def _check_request(config: TuneConfig, begun: dict[str, Any], file: str) -> None:
    """Refuse to resume a search with other settings, or with fewer trials."""
    same = json.loads(_request(config)) | {"trials": begun["trials"]} == begun
    if not same:
        raise UsageError(f"The search in {config.output} was begun with other settings ({file}): use the same ones.")
    listed = config.searcher == "grid" or config.scheduler == "pbt"
    if config.trials < begun["trials"] or (listed and config.trials != begun["trials"]):
        more = "the same" if listed else "as many or more"
        raise UsageError(f"The search in {config.output} was begun with --trials {begun['trials']}: give {more}.")


def _request(config: TuneConfig) -> str:
    """What must be the same for a search to be resumed, but for the number of trials, which may grow."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, default=list)


def _begun_space(storage: Storage, output: str) -> Space:
    """The space that a search was begun with."""
    file = join(output, SPACE_FILE)
    return parse_space(storage.read(file).decode(), file)


def _check_dataset(config: TuneConfig, space: Space, output: str) -> None:
    """Check the data set with one of the configurations, and with the largest batch of all."""
    sizes = [size for parameter in space.parameters if parameter.setting == "batch_size" for size in parameter.bounds()]
    settings = {**space.random(np.random.default_rng(0)), "batch_size": max(sizes, default=OptimizationConfig().batch_size)}
    check_dataset(trial_config(config, space, settings, output), "search smaller values of batch_size")


def _begin(storage: Storage, config: TuneConfig, output: str, space: Space) -> None:
    """Make the folder of the search, without what a try that finished no epoch has left there."""
    try:
        for name in (TRIALS_FOLDER, TUNE_FOLDER):
            storage.remove_folder(join(output, name))
        storage.write(join(output, SPACE_FILE), space.text.encode())
        storage.write(join(output, REQUEST_FILE), _request(config).encode())
    except AccessError as error:
        raise UsageError(f"The output {config.output} cannot be written ({error.reason}).") from error


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


def _search(config: TuneConfig, space: Space, output: str, at_a_time: int) -> None:
    """Run the trials, those that an interrupted search has left included."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its table of the settings
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", SNAPSHOT_SECONDS)
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(run_trial, config=config, space_text=(space.file, space.text), output=output),
        {"cpu": 0, HEAD_RESOURCE: _head_share(config, at_a_time)},  # it only waits: a CPU would be taken from its own workers
    )
    storage = Storage.of(config.data)
    left = [entry.image_uri for entry in storage.list_files(join(output, TRIALS_FOLDER)) if entry.image_uri.endswith(f"/{FAILURE_FILE}")]
    storage.remove(*left)  # a search that is resumed tries again
    place = ray_storage(storage, join(output, TUNE_FOLDER))
    known: dict[str, Any] = {"path": place["storage_path"], "storage_filesystem": place["storage_filesystem"]}
    try:
        if ray.tune.Tuner.can_restore(**known):
            tuner = ray.tune.Tuner.restore(**known, trainable=trainable, resume_unfinished=True, restart_errored=True)
            _extend(tuner, config, at_a_time)
            if read_request(storage, join(output, REQUEST_FILE)) != _request(config):
                remove_outdated(storage, output)
                storage.write(join(output, REQUEST_FILE), _request(config).encode())
        else:
            tuner = _make_tuner(config, space, output, at_a_time, trainable)
        tuner.fit()
    except (ImportError, AttributeError, pickle.UnpicklingError) as error:
        remedy = f"finish it with that version, or name a new folder; the models of its trials stay in {join(output, TRIALS_FOLDER)}"
        raise UsageError(f"The search in {config.output} was begun by another version of fer_ray: {remedy}.") from error
    except ray.tune.TuneError as error:  # what a callback raised, as text
        raise TrainingError(f"{reason_of(error).rstrip('.')}; see {output}.") from error


def _extend(tuner: ray.tune.Tuner, config: TuneConfig, at_a_time: int) -> None:
    """Have a restored search go on to as many trials as are wanted now; Tune itself knows those alone that it was begun with."""
    inner, total = tuner._local_tuner, config.trials * config.seeds
    if isinstance(inner._tune_config.search_alg, Searcher):
        inner._tune_config.search_alg = MoreTrials(inner._tune_config.search_alg, at_a_time, total)
        inner._tune_config.max_concurrent_trials = None  # the limiter inside counts
        for callback in inner._run_config.callbacks:
            if isinstance(callback, SearchProgress):
                callback.expected = total


def _make_tuner(config: TuneConfig, space: Space, output: str, at_a_time: int, trainable: Any) -> ray.tune.Tuner:
    listed = listed_settings(config, space)
    return ray.tune.Tuner(
        trainable,
        param_space=_listed_space(config, listed) if listed else {},
        tune_config=ray.tune.TuneConfig(
            search_alg=None if listed else make_searcher(config, space, _earlier_trials(config)),
            scheduler=make_scheduler(config, space),
            num_samples=1 if listed else config.trials * config.seeds,
            max_concurrent_trials=None if config.scheduler == "pbt" else at_a_time,
            time_budget_s=config.seconds(),
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=ray.tune.RunConfig(
            name=TUNE_FOLDER,
            **ray_storage(Storage.of(config.data), output),
            failure_config=ray.tune.FailureConfig(max_failures=1),
            checkpoint_config=ray.tune.CheckpointConfig(num_to_keep=KEPT_CHECKPOINTS),
            callbacks=[SearchProgress(config, output, (len(listed) if listed else config.trials) * config.seeds)],
            verbose=0,
        ),
    )


def _earlier_trials(config: TuneConfig) -> list[Trial]:
    """Those of the search to learn from."""
    return read_trials(Storage.of(config.data), absolute(config.warm_start, "earlier search")) if config.warm_start else []


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


def _collect(config: TuneConfig, space: Space, output: str, started: float) -> SearchOutcome:
    """What the trials have come to.

    Raises:
        TrainingError: none of them gave a result.
    """
    trials = collect(Storage.of(config.data), output, run_trial, config.epochs)
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
