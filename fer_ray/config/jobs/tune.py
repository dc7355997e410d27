"""What the search for hyperparameters can be told."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Any

from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.options import PathText, check, check_part, check_tracker, config, option, seconds_of
from fer_ray.config.stores import STORE_OPTIONS

SEARCHERS = ("tpe", "random", "grid")
SCHEDULERS = ("asha", "hyperband", "pbt", "none")
OBJECTIVES = ("accuracy", "macro_f1", "nll")
_NOT_OF_THE_SEARCH = ("output", "resume", "max_concurrent", "time_budget", "train_best", "ensemble", "wait_for_machines", "track")


@config("The search")
class TuneConfig:
    """What `jobs/tune.py` can be told."""

    output: PathText = option(
        default="",
        help="folder, s3://, gs:// or az:// address for trials, report and best bundle (required)",
        metavar="DIR",
    )
    space: PathText = option(default="compact", help="search space: compact, classic, or a YAML file", metavar="NAME|FILE")
    trials: int = option(default=24, help="how many configurations are tried; with --resume also more than before", metavar="N", gt=0)
    warm_start: PathText = option(
        default="", help="an earlier search, in a folder or store, whose trials TPE learns from before its first", metavar="DIR"
    )
    epochs: int = option(default=8, help="epochs of a trial at most", metavar="N", gt=0)
    time_budget: str = option(default="", help="stop the search after this time, such as 90m or 2h", metavar="TIME")
    searcher: str = option(
        default="tpe", help="how configurations are chosen: Optuna's TPE, at random, or every one of a grid", choices=SEARCHERS
    )
    scheduler: str = option(
        default="asha",
        help="what becomes of poor trials: ASHA or HyperBand stop them, with pbt they go on from better ones",
        choices=SCHEDULERS,
    )
    objective: str = option(default="accuracy", help="what is to be best on validation", choices=OBJECTIVES)
    low_cost: bool = option(default=False, help="look for networks of few multiply-adds too, and leave the front of both (TPE)")
    seeds: int = option(default=1, help="trainings of each configuration, which stands with their mean", metavar="N", gt=0)
    grid_points: int = option(default=3, help="values of each range in a grid", metavar="N", gt=0)
    pbt_interval: int = option(default=2, help="epochs until the trials of pbt are compared", metavar="N", gt=0)
    track: str = option(
        default="",
        help="send the figures of every epoch to mlflow:URI (a server, sqlite:///FILE or a folder) or wandb:PROJECT",
        metavar="SYSTEM:PLACE",
    )
    max_concurrent: int | None = option(
        default=None,
        help="trials at a time; a cluster may grow for them (default: as many as it has room for)",
        metavar="N",
        gt=0,
        group="Resources",
    )
    workers_per_trial: int = option(default=1, help="Ray Train workers of each trial", metavar="N", gt=0, group="Resources")
    cpus_per_worker: float | None = option(
        default=None, help="CPUs reserved for each worker (default: one); a fraction shares one", metavar="N", group="Resources"
    )
    use_gpu: bool = option(default=False, help="train on GPUs", group="Resources")
    gpus_per_worker: float = option(
        default=1.0, help="GPUs of each worker with --use-gpu; a fraction shares one", metavar="N", group="Resources"
    )
    wait_for_machines: str = option(
        default="1h",
        help="end with an error after waiting so long for CPUs or GPUs that never come, such as 30m",
        metavar="TIME",
        group="Resources",
    )
    search_seed: int = option(default=0, help="seed of the searcher", metavar="N", ge=0)
    resume: bool = option(default=False, help="go on with a search into the same output that was ended")
    train_best: int = option(default=0, help="train the best configuration for so many epochs in the end", metavar="EPOCHS", ge=0)
    ensemble: int = option(default=0, help="make one bundle of the best K trials in the end", metavar="K", ge=0)
    data: DatasetConfig = field(default_factory=DatasetConfig)

    def __post_init__(self) -> None:
        check(bool(self.output), "Where to? Give --output FOLDER for the trials and the report.")
        check_part(self, "cpus_per_worker", "gpus_per_worker")
        single = self.searcher == "tpe" and self.seeds == 1 and self.scheduler != "pbt"
        check(single or not self.low_cost, "The setting low_cost needs the searcher tpe, one seed, and another scheduler than pbt.")
        guided = self.searcher == "tpe" and self.scheduler != "pbt" and not self.low_cost
        check(guided or not self.warm_start, "The setting warm_start needs the searcher tpe, without pbt and low_cost.")
        check(self.scheduler != "pbt" or self.seeds == 1, "The scheduler pbt compares single trainings: leave --seeds out.")
        self.seconds()
        check_tracker(self.track)
        seconds_of("setting wait_for_machines", self.wait_for_machines)

    def seconds(self) -> float | None:
        """The time budget in seconds."""
        return seconds_of("time budget", self.time_budget) if self.time_budget else None

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values: what must be the same for a search to be gone on with."""
        values = {**dataclasses.asdict(self), "data": self.data.to_dict()}
        for name in STORE_OPTIONS[1:]:  # searches of version 0.1 know the first alone
            del values["data"][name]
        if not self.warm_start:  # which they do not know either
            del values["warm_start"]
        return {name: value for name, value in values.items() if name not in _NOT_OF_THE_SEARCH}
