"""What a search leaves: its table and page, the best settings and bundle, and what else was asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fer_ray.config.jobs.ensemble import EnsembleConfig
from fer_ray.config.jobs.tune import TuneConfig
from fer_ray.errors import TrainingError
from fer_ray.io.storage import Storage, join
from fer_ray.models import bundle
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
    output: str
    trials: Sequence[Trial]
    board: Sequence[LeaderboardEntry]
    costs: Mapping[str, Cost]
    seconds: float

    @property
    def storage(self) -> Storage:
        """How to get at its folder."""
        return Storage.of(self.config.data)

    @property
    def best(self) -> LeaderboardEntry:
        """The first of the leaderboard."""
        return self.board[0]

    def bundle_of(self, trial: Trial) -> str:
        """The bundle of a trial's best epoch.

        Raises:
            TrainingError: it is gone.
        """
        trials = join(self.output, TRIALS_FOLDER)
        found = best_bundle(self.storage, join(trials, trial.trial_id))
        if found is None:
            raise TrainingError(f"The checkpoints of trial {trial.trial_id} are gone from {trials}.")
        return found


def write_outputs(outcome: SearchOutcome, progress: Progress) -> None:
    """Write everything, in an order that a resumed search can continue: what takes long comes last and is not done twice."""
    config, output, best = outcome.config, outcome.output, outcome.best.trial
    storage = outcome.storage
    write_trials(storage, output, [row for trial in outcome.trials for row in trial.rows()])
    storage.write(join(output, BEST_FILE), to_yaml(best.settings).encode())
    _write_best_model(outcome)
    facts = {"searcher": config.searcher, "scheduler": config.scheduler, "data set": config.data.dataset, "space": config.space}
    summary = SearchSummary(Path(config.output).name, config.objective, best=best.trial_id, seconds=outcome.seconds, facts=facts)
    write_report(storage, output, summary, outcome.trials, outcome.costs)
    if config.low_cost:
        _write_front(outcome)
    if config.ensemble and not _has_bundle(outcome, ENSEMBLE):
        members = tuple(outcome.bundle_of(entry.trial) for entry in outcome.board[: config.ensemble])
        combine(EnsembleConfig(members, join(output, ENSEMBLE), data=config.data))
    if config.train_best and not _has_bundle(outcome, FINAL_MODEL):
        full = trial_config(replace(config, epochs=config.train_best), outcome.space, best.settings, output)
        begun = has_checkpoints(storage, join(output, f"{FINAL_MODEL}{WORK_SUFFIX}"))
        train_bundle(replace(full, output=join(output, FINAL_MODEL), cpus_per_worker=None, resume=begun), progress)


def remove_outdated(storage: Storage, output: str) -> None:
    """Remove what was made of the best trials so far, where more are to come."""
    for name in (ENSEMBLE, FINAL_MODEL, f"{FINAL_MODEL}{WORK_SUFFIX}"):
        storage.remove_folder(join(output, name))


def _has_bundle(outcome: SearchOutcome, name: str) -> bool:
    return outcome.storage.stat(join(outcome.output, name, bundle.METADATA_FILE)) is not None


def _write_best_model(outcome: SearchOutcome) -> None:
    """The bundle of the best trial, complete with its ONNX network."""
    storage, target = outcome.storage, join(outcome.output, BEST_MODEL)
    with tempfile.TemporaryDirectory(prefix="fer-ray-") as copy:
        storage.get_folder(outcome.bundle_of(outcome.best.trial), Path(copy))
        add_onnx(copy)
        storage.remove_folder(target)
        storage.put_folder(Path(copy), target, last=bundle.METADATA_FILE)


def _write_front(outcome: SearchOutcome) -> None:
    """The settings of every trial that none beats in both, the cheapest first."""
    folder = join(outcome.output, FRONT_FOLDER)
    outcome.storage.remove_folder(folder)
    points = [(outcome.costs[entry.trial.trial_id].multiply_adds, score(entry.objective, entry.value)) for entry in outcome.board]
    for number, index in enumerate(pareto_front(points), start=1):
        entry = outcome.board[index]
        about = f"# {entry.objective} {entry.value:.4f} at {points[index][0]:,} multiply-adds: trial {entry.trial.trial_id}\n"
        outcome.storage.write(join(folder, f"{number:02d}.yaml"), (about + to_yaml(entry.trial.settings)).encode())
