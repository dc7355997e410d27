"""What the search for hyperparameters can be told."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any

from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.options import check, check_part, check_positive, option
from fer_ray.errors import UsageError

SEARCHERS = ("tpe", "random", "grid")
SCHEDULERS = ("asha", "hyperband", "pbt", "none")
OBJECTIVES = ("accuracy", "macro_f1", "nll")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smh])")
_NOT_OF_THE_SEARCH = ("output", "resume", "max_concurrent", "time_budget", "train_best", "ensemble")


@dataclass(frozen=True)
class TuneConfig:
    """What `jobs/tune.py` can be told."""

    output: str = option("", "folder for the trials, the report, best.yaml and the best bundle (required)")
    space: str = option("compact", "search space: compact, classic, or a YAML file")
    trials: int = option(24, "how many configurations are tried")
    epochs: int = option(8, "epochs of a trial at most")
    time_budget: str = option("", "stop the search after this time, such as 90m or 2h")
    searcher: str = option("tpe", "how configurations are chosen: Optuna's TPE, at random, or every one of a grid", SEARCHERS)
    scheduler: str = option(
        "asha", "what becomes of poor trials: ASHA or HyperBand stop them, with pbt they go on from better ones", SCHEDULERS
    )
    objective: str = option("accuracy", "what is to be best on validation", OBJECTIVES)
    low_cost: bool = option(False, "look for networks of few multiply-adds too, and leave the front of both (TPE)")
    seeds: int = option(1, "trainings of each configuration, which stands with their mean")
    grid_points: int = option(3, "values of each range in a grid")
    pbt_interval: int = option(2, "epochs until the trials of pbt are compared")
    max_concurrent: int | None = option(None, "trials at a time; a cluster may grow for them (default: as many as it has room for)")
    workers_per_trial: int = option(1, "Ray Train workers of each trial")
    cpus_per_worker: float | None = option(None, "CPUs reserved for each worker (default: one); a fraction shares one")
    use_gpu: bool = option(False, "train on GPUs")
    gpus_per_worker: float = option(1.0, "GPUs of each worker with --use-gpu; a fraction shares one")
    search_seed: int = option(0, "seed of the searcher")
    resume: bool = option(False, "go on with a search into the same output that was ended")
    train_best: int = option(0, "train the best configuration for so many epochs in the end")
    ensemble: int = option(0, "make one bundle of the best K trials in the end")
    data: DatasetConfig = field(default_factory=DatasetConfig)

    def __post_init__(self) -> None:
        check(bool(self.output), "Where to? Give --output FOLDER for the trials and the report.")
        check_positive(self, "trials", "epochs", "grid_points", "workers_per_trial", "seeds", "pbt_interval")
        check(self.max_concurrent is None or self.max_concurrent > 0, "The setting max_concurrent must be above 0.")
        check_part(self, "cpus_per_worker", "gpus_per_worker")
        single = self.searcher == "tpe" and self.seeds == 1 and self.scheduler != "pbt"
        check(single or not self.low_cost, "The setting low_cost needs the searcher tpe, one seed, and another scheduler than pbt.")
        check(self.scheduler != "pbt" or self.seeds == 1, "The scheduler pbt compares single trainings: leave --seeds out.")
        check(min(self.train_best, self.ensemble) >= 0, "The settings train_best and ensemble must not be negative.")
        self.seconds()

    def seconds(self) -> float | None:
        """The time budget in seconds."""
        if not self.time_budget:
            return None
        match = _DURATION.fullmatch(self.time_budget)
        if match is None or not float(match[1]):
            raise UsageError(f"The time budget {self.time_budget!r} must be a number with s, m or h, such as 90m.")
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values: what must be the same for a search to be gone on with."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in _NOT_OF_THE_SEARCH}
