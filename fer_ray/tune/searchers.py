"""How a search chooses configurations and stops poor trials: Ray Tune's searchers and schedulers, set up for the spaces of this project."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.tune.search import Repeater, SearchGenerator
from ray.tune.search.repeater import TRIAL_INDEX

from fer_ray.config.jobs.tune import TuneConfig
from fer_ray.config.recipe import AugmentationConfig, OptimizationConfig
from fer_ray.errors import UsageError
from fer_ray.models.metrics import LESS_IS_BETTER
from fer_ray.text import sanitize
from fer_ray.train.worker import COST
from fer_ray.tune.results import FAILED

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher

    from fer_ray.tune.results import Trial
    from fer_ray.tune.space.search_space import Settings, Space

LOGGER = logging.getLogger(__name__)
SETTINGS = "settings_json"  # a key of what Tune calls a configuration
SEED_INDEX = TRIAL_INDEX  # another
EPOCH = "epoch"
COMPARABLE = "comparable_epoch"  # what population based training goes by: the epoch, but for the last one
# After two epochs, with the learning rate still rising, slow starters that end best are stopped, and TPE learns from it to avoid them.
GRACE_EPOCHS = 3
REDUCTION = 3  # of three trials, the best one goes on
RANDOM_TRIALS = 7  # before TPE proposes
# What may change in the middle of a training: the weights and the optimizer's state go on fitting.
CHANGEABLE = {
    *AugmentationConfig.__dataclass_fields__,
    "learning_rate",
    "weight_decay",
    "label_smoothing",
    "mixup",
    "class_weights",
    "dropout",
}


def mode(config: TuneConfig) -> str:
    """`min` or `max`: which values of the objective are better."""
    return "min" if config.objective in LESS_IS_BETTER else "max"


def listed_settings(config: TuneConfig, space: Space) -> list[Settings] | None:
    """The configurations of a search that knows them all before it starts; None where a searcher finds them.

    Raises:
        UsageError: a grid has more of them than trials are wanted.
    """
    if config.scheduler == "pbt":
        generator = np.random.default_rng(config.search_seed)
        return [space.random(generator) for _ in range(config.trials)]
    if config.searcher != "grid":
        return None
    size = space.grid_size(config.grid_points)
    if size > config.trials:
        raise UsageError(f"The grid has {size:,} combinations, more than --trials {config.trials}: shorten the space, or raise --trials.")
    return list(space.grid(config.grid_points))


def make_searcher(config: TuneConfig, space: Space, earlier: Sequence[Trial] = ()) -> Searcher:
    """Optuna's TPE, or draws at random; with a cost to be kept low, a search for the Pareto front of both.

    Args:
        config: The search.
        space: What it searches.
        earlier: Trials of another search that TPE learns from, as far as the space holds them.

    Raises:
        UsageError: it holds none of them.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    guided = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=config.search_seed)
    sampler = guided if config.searcher == "tpe" else optuna.samplers.RandomSampler(seed=config.search_seed)
    metrics, modes = ([config.objective, COST], [mode(config), "min"]) if config.low_cost else (config.objective, mode(config))
    searcher = OptunaSearch(_Proposer(space), metric=metrics, mode=modes, sampler=sampler)
    if earlier:
        _teach(searcher._ot_study, config, space, earlier)
    return _Seeds(searcher, config.seeds) if config.seeds > 1 else searcher


def _teach(study: Any, config: TuneConfig, space: Space, earlier: Sequence[Trial]) -> None:
    """Put the trials of another search into a study, each with the value of its last epoch, which is what a study is told of trials."""
    from optuna.trial import FixedTrial, create_trial

    taught = 0
    for trial in earlier:
        params, value = space.proposed(trial.settings), trial.epochs[-1].value(config.objective) if trial.epochs else None
        if params is None or value is None or trial.status == FAILED:
            continue
        asked = FixedTrial(params)
        space.suggest(asked)  # which notes what each of them may be
        study.add_trial(create_trial(value=value, params=params, distributions=asked.distributions))
        taught += 1
    if not taught:
        raise UsageError(f"None of the {len(earlier)} trials in {config.warm_start} lies in this space: leave --warm-start out.")
    LOGGER.info("learning from %d of %d trials in %s", taught, len(earlier), sanitize(config.warm_start))


class MoreTrials(SearchGenerator):  # type: ignore[misc]  # Ray has no types
    """A restored search that goes on beyond the trials that it was begun with."""

    def __init__(self, searcher: Searcher, at_a_time: int, total: int) -> None:
        from ray.tune.search import ConcurrencyLimiter

        super().__init__(ConcurrencyLimiter(searcher, at_a_time))
        self.total = total

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state({**state, "total_samples": self.total})


@dataclass(frozen=True)
class _Proposer:
    """What Optuna asks for a configuration; Tune pickles it with the state of the search."""

    space: Space

    def __call__(self, trial: Any) -> dict[str, Any]:
        return {SETTINGS: json.dumps(self.space.suggest(trial))}


class _Seeds(Repeater):  # type: ignore[misc]  # Ray has no types
    """Trains each configuration several times and tells the searcher the mean; Tune's own forgets who repeats whom in an interruption."""

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(pickle.dumps(self.__dict__))

    def restore(self, checkpoint_path: str) -> None:
        self.__dict__.update(pickle.loads(Path(checkpoint_path).read_bytes()))  # noqa: S301  # the search wrote it, like all state of Tune


def make_scheduler(config: TuneConfig, space: Space) -> TrialScheduler:
    """What stops poor trials, or has them go on from better ones."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler, PopulationBasedTraining

    aim: dict[str, Any] = {"time_attr": EPOCH, "metric": config.objective, "mode": mode(config)}
    # One more epoch than a trial has: who gets through all of them ends by itself, and Ray Train tidies up behind it.
    most = config.epochs + 1
    if config.scheduler == "asha":
        return ASHAScheduler(**aim, max_t=most, grace_period=min(GRACE_EPOCHS, config.epochs), reduction_factor=REDUCTION)
    if config.scheduler == "hyperband":
        return HyperBandScheduler(**aim, max_t=most)
    if config.scheduler == "pbt":
        explorer = Explorer(space, np.random.default_rng(config.search_seed))
        aim["time_attr"] = COMPARABLE
        return PopulationBasedTraining(**aim, perturbation_interval=config.pbt_interval, custom_explore_fn=explorer, synch=True)
    return FIFOScheduler()


@dataclass(frozen=True)
class Explorer:
    """How population based training varies the settings of a good trial: those that may change, within the space.

    Called with what Tune calls a configuration; gives another one.
    """

    space: Space
    generator: np.random.Generator

    def __call__(self, proposed: dict[str, Any]) -> dict[str, Any]:
        settings = json.loads(proposed[SETTINGS])
        return {**proposed, SETTINGS: json.dumps(self.space.vary(settings, CHANGEABLE, self.generator))}


def seed_of(settings: Mapping[str, Any]) -> int:
    """The seed that a training of these settings has."""
    return int(settings.get("seed", OptimizationConfig().seed))


def parse_proposed(proposed: dict[str, Any]) -> Settings:
    """The settings of what Tune calls a configuration; the seeds of its repetitions are counted up from its own."""
    settings: Settings = json.loads(proposed[SETTINGS])
    index = proposed.get(SEED_INDEX, 0)
    return {**settings, "seed": seed_of(settings) + index} if index else settings
