"""The search: Ray Tune chooses configurations and stops poor ones; each trial is the training job of `training`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.tune

from fer_ray.cluster import connect, may_grow
from fer_ray.config.ensemble import EnsembleConfig
from fer_ray.config.train import TrainConfig
from fer_ray.config.tune import TuneConfig
from fer_ray.errors import TrainingError, UsageError
from fer_ray.io.storage import Storage
from fer_ray.models.architectures import NO_WEIGHTS, build
from fer_ray.models.ensemble import combine
from fer_ray.models.flops import Cost, measure_cost, multiply_adds
from fer_ray.text import sanitize
from fer_ray.train.job import BEST, check_data, make_trainer, run_trainer, train
from fer_ray.tune.page import SearchSummary, write_report
from fer_ray.tune.results import FAILED, LeaderboardEntry, Trial, leaderboard, pareto_front, score, write_trials
from fer_ray.tune.searchers import (
    COMPARABLE,
    COST,
    EPOCH,
    SEED_INDEX,
    SETTINGS,
    listed_settings,
    make_scheduler,
    make_searcher,
    parse_proposed,
)
from fer_ray.tune.space.search_space import Settings, Space, parse_space, read_space, to_yaml
from fer_ray.tune.trial_dirs import SETTINGS_FILE, TRIALS_FOLDER, TUNE_FOLDER, best_bundle, collect, read_epochs, reason_of

REQUEST_FILE, SPACE_FILE, BEST_FILE = "search.json", "space.yaml", "best.yaml"
BEST_MODEL, FINAL_MODEL, ENSEMBLE, FRONT_FOLDER = "best_model", "trained_model", "ensemble", "front"
HEAD, LEAST_SHARE, MOST_AT_A_TIME = "node:__internal_head__", 0.001, 20
EQUAL_FAILURES, SNAPSHOT_SECONDS, CLASSES = 4, "3", 7


def tune(config: TuneConfig) -> dict[str, Any]:
    """Search, and leave `best.yaml`, the best trial's bundle, `trials.parquet` and a report; gives the summary.

    Raises:
        UsageError: the space, the data set or the output cannot be used, or no trial could ever fit.
        TrainingError: no trial gave a result.
    """
    output = Path(config.output).absolute()
    if config.resume and not (output / REQUEST_FILE).is_file():
        raise UsageError(f"There is no search in {config.output} to resume: leave --resume out.")
    space = read_space(str(output / SPACE_FILE) if config.resume else config.space)
    _check_places(config, output)
    check_data(trial_config(config, space, _first_settings(space), output / "none"))
    connect(dashboard=True)
    at_a_time = concurrent_trials(config)
    if not config.resume:
        _begin(config, output, space)
    started = time.monotonic()
    _run(config, space, output, at_a_time)
    trials = collect(output, run_trial, config.epochs)
    board = leaderboard(trials, config.objective)
    if not board:
        reasons = Counter(trial.error or "no epoch was finished" for trial in trials)
        raise TrainingError(f"None of {len(trials)} trials gave a result ({sanitize(reasons.most_common(1)[0][0])}): see {output}.")
    costs = _measure_costs(space, board)
    board = leaderboard(trials, config.objective, costs)  # now equals go to the cheaper
    _leave_results(config, space, output, trials, board, costs, time.monotonic() - started)
    best = board[0]
    return {
        "trials": len(trials),
        "completed": sum(trial.status != FAILED for trial in trials),
        "failed": sum(trial.status == FAILED for trial in trials),
        "best_trial": best.trial.trial_id,
        "best_value": best.value,
        "best_config": str(output / BEST_FILE),
        "output": config.output,
    }


def _check_places(config: TuneConfig, output: Path) -> None:
    """Refuse an output that holds something else, or another search than the one to go on with."""
    if config.resume and (output / REQUEST_FILE).read_text(encoding="utf-8") != _request(config):
        raise UsageError(f"The search in {config.output} was begun with other settings ({output / REQUEST_FILE}): use the same ones.")
    if output.exists() and not config.resume:
        raise UsageError(f"The output {config.output} exists already: go on with --resume, name a new folder, or remove it.")


def _request(config: TuneConfig) -> str:
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, default=list)


def _begin(config: TuneConfig, output: Path, space: Space) -> None:
    try:
        (output / TRIALS_FOLDER).mkdir(parents=True)
        (output / SPACE_FILE).write_text(space.text, encoding="utf-8")
        (output / REQUEST_FILE).write_text(_request(config), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"The output {config.output} cannot be written ({error.strerror}).") from error


def _first_settings(space: Space) -> dict[str, Any]:
    import numpy as np

    return space.random(np.random.default_rng(0))


def trial_config(config: TuneConfig, space: Space, settings: Mapping[str, Any], folder: Path) -> TrainConfig:
    """The training of one configuration: what a trial runs, for as many epochs as a trial has."""
    recipe = space.recipe(settings)
    recipe = replace(recipe, optimization=replace(recipe.optimization, epochs=config.epochs, patience=config.epochs))
    return TrainConfig(
        str(folder / "model"),
        weights=NO_WEIGHTS,
        workers=config.workers_per_trial,
        cpus_per_worker=config.cpus_per_worker or 1,
        use_gpu=config.use_gpu,
        max_failures=1,
        data=config.data,
        recipe=recipe,
    )


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
    fitting = min(int(resources.get(kind, 0) / amount) for kind, amount in needed.items() if amount)
    if fitting < 1:
        has = ", ".join(f"{resources.get(kind, 0):g} {kind}s" for kind, amount in needed.items() if amount)
        wants = ", ".join(f"{amount:g} {kind}s" for kind, amount in needed.items() if amount)
        if not may_grow():
            raise UsageError(f"A trial needs {wants}, this machine has {has}: lower --workers-per-trial or --cpus-per-worker.")
        print(f"note: a trial needs {wants}, the cluster has {has}: waiting for it to grow", flush=True)
    if config.max_concurrent and may_grow():
        return config.max_concurrent
    return min(config.max_concurrent or max(1, fitting), max(1, fitting))


def _run(config: TuneConfig, space: Space, output: Path, at_a_time: int) -> None:
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its table of the settings
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", SNAPSHOT_SECONDS)  # what a kill forgets: trials younger than that
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(run_trial, config=config, space_text=(space.file, space.text), output=str(output)),
        {"cpu": 0, HEAD: _head_share(config, at_a_time)},  # it only waits: a CPU would be taken from its own workers
    )
    place = output / TUNE_FOLDER
    if ray.tune.Tuner.can_restore(str(place)):
        tuner = ray.tune.Tuner.restore(str(place), trainable, resume_unfinished=True, restart_errored=True)
    else:
        listed = listed_settings(config, space)
        tuner = ray.tune.Tuner(
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
                checkpoint_config=ray.tune.CheckpointConfig(num_to_keep=3),
                callbacks=[_Progress(config, (len(listed) if listed else config.trials) * config.seeds)],
                verbose=0,
            ),
        )
    try:
        tuner.fit()
    except ray.tune.TuneError as error:  # what a callback raised, as text
        raise TrainingError(f"{reason_of(error).rstrip('.')}; see {output}.") from error


def _head_share(config: TuneConfig, at_a_time: int) -> float:
    """What a trial takes of the head's own resource, of which there is one.

    A population is compared as a whole, so all of it is there from the beginning; this share says how many run at a time, and
    leaves a little to the helpers of Ray Train, which need some of it too.
    """
    if config.scheduler != "pbt":
        return LEAST_SHARE
    return math.floor(1 / (min(at_a_time, MOST_AT_A_TIME) + 0.5) / LEAST_SHARE) * LEAST_SHARE


def _listed_space(config: TuneConfig, listed: list[Settings]) -> dict[str, Any]:
    texts = ray.tune.grid_search([json.dumps(settings) for settings in listed])
    return {SETTINGS: texts, SEED_INDEX: ray.tune.grid_search(list(range(config.seeds)))}


def run_trial(proposed: dict[str, Any], config: TuneConfig, space_text: tuple[str, str], output: str) -> None:
    """One trial, from its last checkpoint where it was begun before: its folder is named after it."""
    space, settings = parse_space(space_text[1], space_text[0]), parse_proposed(proposed)
    folder = Path(output) / TRIALS_FOLDER / ray.tune.get_context().get_trial_id()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS_FILE).write_text(json.dumps(settings), encoding="utf-8")
    training = trial_config(config, space, settings, folder)
    if config.scheduler == "pbt":
        _run_generations(config, training, folder)
        return
    cost = {COST: multiply_adds(build(training.recipe.model, CLASSES, NO_WEIGHTS))} if config.low_cost else {}
    best = best_bundle(folder)
    done = read_epochs(best) if best else []
    if len(done) >= config.epochs:  # all was done but told: Tune takes no trial that ends without a word
        ray.tune.report({**dataclasses.asdict(done[-1]), **cost})
        return
    run_trainer(make_trainer(training, str(folder), (_report_with(cost),), config.gpus_per_worker), str(folder))


def _report_with(more: dict[str, Any]) -> Any:
    """What tells Tune of every epoch, with further figures of the trial."""
    from ray.tune.integration.ray_train import TuneReportCallback

    class Report(TuneReportCallback):  # type: ignore[misc]  # Ray has no types
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            super().after_report(run_context, [{**metrics[0], **more}], checkpoint)

    return Report()


def _run_generations(config: TuneConfig, training: TrainConfig, folder: Path) -> None:
    """Population based training: between two comparisons lies a training, from the trial's own checkpoint or a better trial's."""
    begun = ray.tune.get_checkpoint()
    start = begun.path if begun else ""
    done = read_epochs(Path(start) / BEST) if start else []
    epoch = len(done)
    if epoch >= config.epochs:
        ray.tune.report({**dataclasses.asdict(done[-1]), COMPARABLE: epoch - 1})
    while epoch < config.epochs:
        begin, epoch = epoch, min(epoch + config.pbt_interval, config.epochs)
        origin = hashlib.sha256(f"{training.recipe}{start}".encode()).hexdigest()[:8]
        storage = str(folder / f"epoch_{begin:04d}_{origin}")
        start = str(run_trainer(make_trainer(training, storage, (), config.gpus_per_worker, start, epoch), storage))
        # There is nothing to compare after the last epoch: a trial that took over another's weights then would never use them.
        comparable = epoch if epoch < config.epochs else begin
        row = dataclasses.asdict(read_epochs(Path(start) / BEST)[-1])
        ray.tune.report({**row, COMPARABLE: comparable}, checkpoint=ray.tune.Checkpoint.from_directory(start))


class _Progress(ray.tune.Callback):  # type: ignore[misc]  # Ray has no types
    """Prints a line for every epoch of a trial with the best so far, and ends a search whose trials all fail alike."""

    def __init__(self, config: TuneConfig, expected: int) -> None:
        self.config, self.expected = config, expected
        self.began: tuple[float, int] | None = None  # when this process saw its first result, and how many trials had ended by then
        self.alike: tuple[str, int] = ("", 0)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        objective = self.config.objective
        latest = {**{t.trial_id: t.last_result for t in trials}, trial.trial_id: result}
        reported = [(score(objective, figures[objective]), name) for name, figures in latest.items() if figures.get(objective) is not None]
        value, leader = max(reported, default=(float("nan"), trial.trial_id))
        ended = sum(t.is_finished() for t in trials)
        print(
            f"trial {trial.trial_id} epoch {result.get(EPOCH)}: {objective} {result.get(objective, float('nan')):.4f}; "
            f"best {leader} {score(objective, value):.4f}; {ended} of {self.expected} ended{self._left(ended)}",
            flush=True,
        )

    def _left(self, ended: int) -> str:
        if self.began is None:
            self.began = (time.monotonic(), ended)
        started, before = self.began
        if ended == before:
            return ""
        minutes = (time.monotonic() - started) / 60 / (ended - before) * (self.expected - ended)
        return f", about {minutes:.0f} min left"

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.alike = ("", 0)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = reason_of(trial.get_error(), trial.trial_id)
        print(f"trial {trial.trial_id} failed: {sanitize(reason)}", flush=True)
        self.alike = (reason, self.alike[1] + 1 if self.alike[0] == reason else 1)
        if self.alike[1] >= EQUAL_FAILURES:
            raise TrainingError(f"{EQUAL_FAILURES} trials in a row failed in the same way ({sanitize(reason)}): the search was stopped")


def _leave_results(
    config: TuneConfig,
    space: Space,
    output: Path,
    trials: list[Trial],
    board: list[LeaderboardEntry],
    costs: dict[str, Cost],
    seconds: float,
) -> None:
    storage, best = Storage(), board[0].trial
    write_trials(storage, str(output), [row for trial in trials for row in trial.rows()])
    (output / BEST_FILE).write_text(to_yaml(best.settings), encoding="utf-8")
    shutil.rmtree(output / BEST_MODEL, ignore_errors=True)
    shutil.copytree(_bundle_of(output, best), output / BEST_MODEL)
    facts = {"searcher": config.searcher, "scheduler": config.scheduler, "data set": config.data.dataset, "space": config.space}
    summary = SearchSummary(Path(config.output).name, config.objective, best=best.trial_id, seconds=seconds, facts=facts)
    write_report(storage, str(output), summary, trials, costs)
    if config.low_cost:
        _leave_front(output, board, costs)
    if config.ensemble and not (output / ENSEMBLE).exists():
        members = tuple(str(_bundle_of(output, entry.trial)) for entry in board[: config.ensemble])
        combine(EnsembleConfig(members, str(output / ENSEMBLE), data=config.data))
    if config.train_best and not (output / FINAL_MODEL).exists():
        full = trial_config(replace(config, epochs=config.train_best), space, best.settings, output)
        begun = (output / f"{FINAL_MODEL}.training").exists()
        train(replace(full, output=str(output / FINAL_MODEL), cpus_per_worker=None, resume=begun))


def _measure_costs(space: Space, board: list[LeaderboardEntry]) -> dict[str, Cost]:
    """What the networks of the leaderboard cost, one after the other on one machine of the cluster."""
    models = {entry.trial.trial_id: space.recipe(entry.trial.settings).model for entry in board}

    def measure() -> dict[str, Cost]:
        return {name: measure_cost(build(model, CLASSES, NO_WEIGHTS)) for name, model in models.items()}

    costs: dict[str, Cost] = ray.get(ray.remote(num_cpus=1)(measure).remote())
    return costs


def _leave_front(output: Path, board: list[LeaderboardEntry], costs: dict[str, Cost]) -> None:
    """The settings of every trial that none beats in both, the cheapest first."""
    folder = output / FRONT_FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    places = [(costs[entry.trial.trial_id].multiply_adds, score(entry.objective, entry.value)) for entry in board]
    for number, index in enumerate(pareto_front(places), start=1):
        entry = board[index]
        about = f"# {entry.objective} {entry.value:.4f} at {places[index][0]:,} multiply-adds: trial {entry.trial.trial_id}\n"
        (folder / f"{number:02d}.yaml").write_text(about + to_yaml(entry.trial.settings), encoding="utf-8")


def _bundle_of(output: Path, trial: Trial) -> Path:
    found = best_bundle(output / TRIALS_FOLDER / trial.trial_id)
    if found is None:
        raise TrainingError(f"The checkpoints of trial {trial.trial_id} are gone from {output / TRIALS_FOLDER}.")
    return found
