"""What a search leaves: its table and page, the best settings and bundle, and what else was asked for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fer_ray.config.ensemble import EnsembleConfig
from fer_ray.config.tune import TuneConfig
from fer_ray.errors import TrainingError
from fer_ray.io.storage import Storage
from fer_ray.models.conversion import add_onnx
from fer_ray.models.ensemble import combine
from fer_ray.models.flops import Cost
from fer_ray.reporting.progress import Progress
from fer_ray.train.job import WORK_SUFFIX, train_bundle
from fer_ray.train.recorder import has_checkpoints
from fer_ray.tune.page import SearchSummary, write_report
from fer_ray.tune.results import LeaderboardEntry, Trial, pareto_front, score, write_trials
from fer_ray.tune.space.search_space import Space, to_yaml
from fer_ray.tune.trial import trial_config
from fer_ray.tune.trial_dirs import TRIALS_FOLDER, best_bundle

BEST_FILE = "best.yaml"  # the best settings, as `train --config` takes them
BEST_MODEL = "best_model"  # the best trial's bundle
FINAL_MODEL = "trained_model"  # the best settings, trained for as many epochs as --train-best says
ENSEMBLE = "ensemble"  # the bundle of the best trials
FRONT_FOLDER = "front"  # the settings of every trial that none beats in both objective and cost


@dataclass(frozen=True)
class SearchOutcome:
    """A finished search: its leaderboard, best first and never empty, the costs by trial, and how long it took."""

    config: TuneConfig
    space: Space
    output: Path
    trials: Sequence[Trial]
    board: Sequence[LeaderboardEntry]
    costs: Mapping[str, Cost]
    seconds: float

    @property
    def best(self) -> LeaderboardEntry:
        """The first of the leaderboard."""
        return self.board[0]

    def bundle_of(self, trial: Trial) -> Path:
        """The bundle of a trial's best epoch.

        Raises:
            TrainingError: it is gone.
        """
        found = best_bundle(self.output / TRIALS_FOLDER / trial.trial_id)
        if found is None:
            raise TrainingError(f"The checkpoints of trial {trial.trial_id} are gone from {self.output / TRIALS_FOLDER}.")
        return found


def write_outputs(outcome: SearchOutcome, progress: Progress) -> None:
    """Write everything, in an order that a resumed search can continue: what takes long comes last and is not done twice."""
    config, output, best = outcome.config, outcome.output, outcome.best.trial
    storage = Storage()
    write_trials(storage, str(output), [row for trial in outcome.trials for row in trial.rows()])
    (output / BEST_FILE).write_text(to_yaml(best.settings), encoding="utf-8")
    shutil.rmtree(output / BEST_MODEL, ignore_errors=True)
    shutil.copytree(outcome.bundle_of(best), output / BEST_MODEL)
    add_onnx(str(output / BEST_MODEL))
    facts = {"searcher": config.searcher, "scheduler": config.scheduler, "data set": config.data.dataset, "space": config.space}
    summary = SearchSummary(Path(config.output).name, config.objective, best=best.trial_id, seconds=outcome.seconds, facts=facts)
    write_report(storage, str(output), summary, outcome.trials, outcome.costs)
    if config.low_cost:
        _write_front(outcome)
    if config.ensemble and not (output / ENSEMBLE).exists():
        members = tuple(str(outcome.bundle_of(entry.trial)) for entry in outcome.board[: config.ensemble])
        combine(EnsembleConfig(members, str(output / ENSEMBLE), data=config.data))
    if config.train_best and not (output / FINAL_MODEL).exists():
        full = trial_config(replace(config, epochs=config.train_best), outcome.space, best.settings, output)
        begun = has_checkpoints(output / f"{FINAL_MODEL}{WORK_SUFFIX}")
        train_bundle(replace(full, output=str(output / FINAL_MODEL), cpus_per_worker=None, resume=begun), progress)


def _write_front(outcome: SearchOutcome) -> None:
    """The settings of every trial that none beats in both, the cheapest first."""
    folder = outcome.output / FRONT_FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    points = [(outcome.costs[entry.trial.trial_id].multiply_adds, score(entry.objective, entry.value)) for entry in outcome.board]
    for number, index in enumerate(pareto_front(points), start=1):
        entry = outcome.board[index]
        about = f"# {entry.objective} {entry.value:.4f} at {points[index][0]:,} multiply-adds: trial {entry.trial.trial_id}\n"
        (folder / f"{number:02d}.yaml").write_text(about + to_yaml(entry.trial.settings), encoding="utf-8")
