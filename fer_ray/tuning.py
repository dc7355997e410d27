"""The search: Ray Tune chooses configurations and stops poor ones; each trial is the training job of `training`."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import ray
import ray.tune

from fer_ray import bundle
from fer_ray.cluster import connect
from fer_ray.config import EnsembleConfig, TrainConfig, TuneConfig
from fer_ray.cost import Cost, measure_cost
from fer_ray.ensemble import combine
from fer_ray.errors import TrainingError, UsageError
from fer_ray.models import NO_WEIGHTS, build
from fer_ray.printing import printable
from fer_ray.recipe import OptimizationConfig
from fer_ray.search_page import SearchSummary, write_report
from fer_ray.space import Space, parse_space, read_space, to_yaml
from fer_ray.storage import Storage
from fer_ray.training import BEST, check_data, make_trainer, run_trainer, train
from fer_ray.trials import COMPLETED, FAILED, LESS_IS_BETTER, STOPPED, Standing, Trial, TrialEpoch, leaderboard, write_trials

REQUEST_FILE, SPACE_FILE, BEST_FILE, SETTINGS_FILE = "search.json", "space.yaml", "best.yaml", "settings.json"
TRIALS_FOLDER, TUNE_FOLDER, BEST_MODEL, FINAL_MODEL, ENSEMBLE = "trials", "tune", "best_model", "trained_model", "ensemble"
EQUAL_FAILURES = 4
TRAIN_FOLDER = "train"


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
    trials = collect(output, config.epochs)
    board = leaderboard(trials, config.objective)
    if not board:
        reasons = Counter(trial.error or "no epoch was finished" for trial in trials)
        raise TrainingError(f"None of {len(trials)} trials gave a result ({printable(reasons.most_common(1)[0][0])}): see {output}.")
    _leave_results(config, space, output, trials, board, time.monotonic() - started)
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
        use_gpu=config.gpus_per_worker > 0,
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
    needed = {"CPU": config.workers_per_trial * (config.cpus_per_worker or 1), "GPU": config.workers_per_trial * config.gpus_per_worker}
    fitting = min(int(resources.get(kind, 0) / amount) for kind, amount in needed.items() if amount)
    if fitting < 1:
        has = ", ".join(f"{resources.get(kind, 0):g} {kind}s" for kind, amount in needed.items() if amount)
        wants = ", ".join(f"{amount:g} {kind}s" for kind, amount in needed.items() if amount)
        if not os.environ.get("RAY_ADDRESS"):
            raise UsageError(f"A trial needs {wants}, this machine has {has}: lower --workers-per-trial or --cpus-per-worker.")
        print(f"note: a trial needs {wants}, the cluster has {has}: waiting for it to grow", flush=True)
    return min(config.max_concurrent or max(1, fitting), max(1, fitting))


def _run(config: TuneConfig, space: Space, output: Path, at_a_time: int) -> None:
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(run_trial, config=config, space_text=(space.file, space.text), output=str(output)),
        {"cpu": 0, "node:__internal_head__": 0.001},  # it only waits: a CPU would be taken from its own workers
    )
    place = output / TUNE_FOLDER
    if ray.tune.Tuner.can_restore(str(place)):
        tuner = ray.tune.Tuner.restore(str(place), trainable, resume_unfinished=True, restart_errored=True)
    else:
        tuner = ray.tune.Tuner(
            trainable,
            param_space=_grid(space, config) if config.searcher == "grid" else {},
            tune_config=_tune_config(config, space, at_a_time),
            run_config=ray.tune.RunConfig(
                name=TUNE_FOLDER,
                storage_path=str(output),
                failure_config=ray.tune.FailureConfig(max_failures=1),
                callbacks=[_Progress(config)],
                verbose=0,
            ),
        )
    tuner.fit()


def _grid(space: Space, config: TuneConfig) -> dict[str, Any]:
    size = space.grid_size(config.grid_points)
    if size > config.trials:
        raise UsageError(f"The grid has {size:,} combinations, more than --trials {config.trials}: shorten the space, or raise --trials.")
    return {"settings_json": ray.tune.grid_search([json.dumps(settings) for settings in space.grid(config.grid_points)])}


def _tune_config(config: TuneConfig, space: Space, at_a_time: int) -> ray.tune.TuneConfig:
    mode = "min" if config.objective in LESS_IS_BETTER else "max"
    return ray.tune.TuneConfig(
        metric=config.objective,
        mode=mode,
        search_alg=None if config.searcher == "grid" else _searcher(config, space, mode),
        scheduler=_scheduler(config),
        num_samples=1 if config.searcher == "grid" else config.trials,
        max_concurrent_trials=at_a_time,
        time_budget_s=config.seconds(),
        trial_dirname_creator=lambda trial: trial.trial_id,
    )


def _searcher(config: TuneConfig, space: Space, mode: str) -> Any:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}

    return OptunaSearch(_Proposer(space), metric=config.objective, mode=mode, sampler=samplers[config.searcher](seed=config.search_seed))


@dataclass(frozen=True)
class _Proposer:
    """What Optuna asks for a configuration; Tune pickles it with the state of the search."""

    space: Space

    def __call__(self, trial: Any) -> dict[str, Any]:
        return {"settings_json": json.dumps(self.space.suggest(trial))}


def _scheduler(config: TuneConfig) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler

    # One more than a trial has: who gets through all its epochs ends by itself, and Ray Train tidies up behind it.
    if config.scheduler == "asha":
        return ASHAScheduler(time_attr="epoch", max_t=config.epochs + 1, grace_period=min(2, config.epochs), reduction_factor=3)
    if config.scheduler == "hyperband":
        return HyperBandScheduler(time_attr="epoch", max_t=config.epochs + 1)
    return FIFOScheduler()


def run_trial(proposed: dict[str, Any], config: TuneConfig, space_text: tuple[str, str], output: str) -> None:
    """One trial, from its last checkpoint where it was begun before: its folder is named after it."""
    from ray.tune.integration.ray_train import TuneReportCallback

    space, settings = parse_space(space_text[1], space_text[0]), json.loads(proposed["settings_json"])
    folder = Path(output) / TRIALS_FOLDER / ray.tune.get_context().get_trial_id()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS_FILE).write_text(json.dumps(settings), encoding="utf-8")
    trainer = make_trainer(trial_config(config, space, settings, folder), str(folder), (TuneReportCallback(),), config.gpus_per_worker)
    run_trainer(trainer, str(folder))


class _Progress(ray.tune.Callback):  # type: ignore[misc]  # Ray has no types
    """Prints a line for every epoch of a trial with the best so far, and ends a search whose trials all fail alike."""

    def __init__(self, config: TuneConfig) -> None:
        self.config, self.started = config, time.monotonic()
        self.failures: Counter[str] = Counter()

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        objective = self.config.objective
        sign = -1 if objective in LESS_IS_BETTER else 1
        latest = {**{t.trial_id: t.last_result for t in trials}, trial.trial_id: result}
        reported = [(sign * figures[objective], name) for name, figures in latest.items() if figures.get(objective) is not None]
        value, leader = max(reported, default=(float("nan"), trial.trial_id))
        ended = sum(t.is_finished() for t in trials)
        print(
            f"trial {trial.trial_id} epoch {result.get('epoch')}: {objective} {result.get(objective, float('nan')):.4f}; "
            f"best {leader} {sign * value:.4f}; {ended} of {self.config.trials} ended{self._left(ended)}",
            flush=True,
        )

    def _left(self, ended: int) -> str:
        if not ended:
            return ""
        minutes = (time.monotonic() - self.started) / 60 / ended * (self.config.trials - ended)
        return f", about {minutes:.0f} min left"

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = _reason(trial.get_error())
        print(f"trial {trial.trial_id} failed: {printable(reason)}", flush=True)
        self.failures[reason] += 1
        if self.failures[reason] >= EQUAL_FAILURES and not any(t.last_result.get(self.config.objective) for t in trials):
            raise TrainingError(f"{EQUAL_FAILURES} trials failed in the same way ({printable(reason)}): the search was stopped.")


def _reason(error: BaseException | None) -> str:
    lines = [line for line in str(error or "").strip().splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else type(error).__name__


def collect(output: Path, epochs: int) -> list[Trial]:
    """What the trials' folders hold: settings, epochs from the last checkpoints, and how each ended.

    A trial without an error and with fewer epochs than it might have had was stopped by the scheduler.
    """
    endings = _endings(output)
    folders = sorted(folder for folder in (output / TRIALS_FOLDER).iterdir() if (folder / SETTINGS_FILE).is_file())
    trials = [_trial(folder, *endings.get(folder.name, (STOPPED, None))) for folder in folders]
    return [replace(trial, status=STOPPED) if trial.status == COMPLETED and len(trial.epochs) < epochs else trial for trial in trials]


def _endings(output: Path) -> dict[str, tuple[str, str | None]]:
    grid = ray.tune.Tuner.restore(str(output / TUNE_FOLDER), run_trial).get_results()
    endings: dict[str, tuple[str, str | None]] = {}
    for result in grid:
        trial_id = Path(result.path).name
        endings[trial_id] = (FAILED, _reason(result.error)) if result.error else (COMPLETED, None)
    return endings


def _trial(folder: Path, status: str, error: str | None) -> Trial:
    settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    best, epochs = best_bundle(folder), []
    if best is not None:
        import pyarrow.parquet as pq

        names = {field.name for field in fields(TrialEpoch)}
        rows = pq.read_table(best / bundle.HISTORY_FILE).to_pylist()
        epochs = [TrialEpoch(**{name: value for name, value in row.items() if name in names}) for row in rows]
    return Trial(folder.name, status, settings, tuple(epochs), error, settings.get("seed", OptimizationConfig().seed))


def best_bundle(folder: Path) -> Path | None:
    """The bundle of the trial's best epoch, in its last checkpoint."""
    checkpoints = sorted((folder / TRAIN_FOLDER).glob(f"checkpoint_*/{BEST}/{bundle.METADATA_FILE}"))
    return checkpoints[-1].parent if checkpoints else None


def _leave_results(config: TuneConfig, space: Space, output: Path, trials: list[Trial], board: list[Standing], seconds: float) -> None:
    storage, best = Storage(), board[0].trial
    write_trials(storage, str(output), [row for trial in trials for row in trial.rows()])
    (output / BEST_FILE).write_text(to_yaml(best.settings), encoding="utf-8")
    shutil.rmtree(output / BEST_MODEL, ignore_errors=True)
    shutil.copytree(best_bundle(output / TRIALS_FOLDER / best.trial_id) or output, output / BEST_MODEL)
    facts = {"searcher": config.searcher, "scheduler": config.scheduler, "data set": config.data.dataset, "space": config.space}
    summary = SearchSummary(Path(config.output).name, config.objective, best=best.trial_id, seconds=seconds, facts=facts)
    write_report(storage, str(output), summary, trials, {trial.trial_id: _cost(space, trial) for trial in trials})
    if config.ensemble:
        members = tuple(str(best_bundle(output / TRIALS_FOLDER / standing.trial.trial_id)) for standing in board[: config.ensemble])
        combine(EnsembleConfig(members, str(output / ENSEMBLE), data=config.data))
    if config.train_best:
        full = trial_config(replace(config, epochs=config.train_best), space, best.settings, output)
        train(replace(full, output=str(output / FINAL_MODEL), resume=(output / f"{FINAL_MODEL}.training").exists()))


def _cost(space: Space, trial: Trial) -> Cost:
    model = space.recipe(trial.settings).model
    return measure_cost(build(model, 7, NO_WEIGHTS))
