"""How soon a search with ASHA and TPE finds what random search finds: searches replayed over a table of recorded trainings.

    .venv/bin/python benchmarks/search_efficiency.py [--seeds 300]
    .venv/bin/python benchmarks/search_efficiency.py --record FER2013_FOLDER    # makes the table; goes on where it was interrupted

The table (`recorded_search`) holds every combination of a small space, each trained once for 9 epochs by the product's own loop: small
networks on a part of FER-2013. A replayed search asks the searcher and scheduler of `fer_ray.tune.searchers` as Ray Tune would, two trials
at a time, and looks up what a trial reports after each epoch; an epoch takes one unit of time, whatever the network. What is proposed
twice is paid twice.

For every seed, random search trains 24 configurations to the end (216 epochs). Its best value, in whichever epoch, is what another
search, begun with another seed, has to reach in any epoch of any trial. The ratio is the epochs which that took, over all trials, to
those of random search; a search that has not got there after twice the epochs of random search counts as 2. ASHA with TPE is to have
a median of at most 0.5; the goal is 0.3. Such a table says how searches compare, not how far the winner gets on the whole data set.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ray.tune.result import TRAINING_ITERATION
from ray.tune.schedulers import TrialScheduler

from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.jobs.tune import TuneConfig
from fer_ray.data.dataset import load_dataset
from fer_ray.io.storage import Storage
from fer_ray.train.loop import train_epochs
from fer_ray.tune.results import COMPLETED, TRIALS_FILE, Trial, TrialEpoch, read_trials, write_trials
from fer_ray.tune.searchers import EPOCH, make_scheduler, make_searcher, parse_proposed
from fer_ray.tune.space.search_space import Settings, Space, read_space
from fer_ray.tune.trial import trial_config

TABLE = Path(__file__).parent / "recorded_search"
CLASSES, IMAGES, SIDE = ("happy", "neutral", "sad", "surprise"), 500, 24  # images of each class and split: an epoch takes half a second
EPOCHS, RANDOM_TRIALS, AT_A_TIME, CENSORED = 9, 24, 2, 2
BUDGET = RANDOM_TRIALS * EPOCHS
OTHER_SEEDS = 1_000_000  # TPE begins with draws at random: with the same seed they would be those of random search
FLOOR, GOAL = 0.5, 0.3

Curves = dict[str, list[float]]


def record(dataset: str, space: Space) -> None:
    """Train, on one core, every combination of the space that the table lacks."""
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    storage, config = Storage(), TuneConfig("unused", epochs=EPOCHS, data=DatasetConfig(dataset, classes=CLASSES, limit=IMAGES))
    trials = read_trials(storage, str(TABLE)) if (TABLE / TRIALS_FILE).exists() else []
    known = {trial.configuration for trial in trials}
    data = load_dataset(config.data, SIDE)
    for number, settings in enumerate(space.grid(1)):
        if configuration(settings) in known:
            continue
        keras.backend.clear_session()
        started, epochs = time.monotonic(), []
        recipe = trial_config(config, space, settings, "unused").recipe
        for epoch in train_epochs(data, recipe):
            figures = {name: value for name, value in epoch.row().items() if name != "improved"}
            epochs.append(TrialEpoch(**figures, finished_at=datetime.datetime.now(datetime.UTC)))
        trials.append(Trial(f"{number:03d}", COMPLETED, settings, tuple(epochs), seed=recipe.optimization.seed))
        write_trials(storage, str(TABLE), [row for trial in trials for row in trial.rows()])
        print(f"combination {number}: accuracy {epochs[-1].accuracy:.3f}, {time.monotonic() - started:.0f} s", flush=True)


def read_curves() -> Curves:
    """What each configuration reports epoch by epoch."""
    trials = read_trials(Storage(), str(TABLE))
    return {trial.configuration: [epoch.value(TuneConfig.objective) or 0.0 for epoch in trial.epochs] for trial in trials}


def configuration(settings: Settings) -> str:
    """The settings as `Trial.configuration` has them."""
    return Trial("", COMPLETED, settings).configuration


@dataclass
class ReplayedTrial:
    """What a scheduler knows of one of Tune's trials, and the values that it has yet to report."""

    trial_id: str
    values: Iterator[float]
    epoch: int = 0


def search(config: TuneConfig, space: Space, curves: Curves) -> Iterator[float]:
    """The best value so far after every epoch of a search that goes on for ever."""
    searcher, scheduler = make_searcher(config, space), make_scheduler(config, space)
    names, running, best = itertools.count(), list[ReplayedTrial](), 0.0
    while True:
        while len(running) < AT_A_TIME:
            name = f"{next(names):04d}"
            settings = parse_proposed(searcher.suggest(name))
            running.append(ReplayedTrial(name, iter(curves[configuration(settings)])))
            scheduler.on_trial_add(None, running[-1])
        trial = running.pop(0)
        trial.epoch += 1
        result = {config.objective: next(trial.values), EPOCH: trial.epoch, TRAINING_ITERATION: trial.epoch}
        stopped = scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP
        if not stopped:
            searcher.on_trial_result(trial.trial_id, result)
        if stopped or trial.epoch == config.epochs:
            scheduler.on_trial_complete(None, trial, result)
            searcher.on_trial_complete(trial.trial_id, result)
        else:
            running.append(trial)
        best = max(best, result[config.objective])
        yield best


@dataclass(frozen=True)
class Comparison:
    """One search beside one random search: the epochs of each until it had random's best, and how much was missing after as many epochs."""

    epochs: int
    random_epochs: int
    reached: bool
    regret: float


def compare(config: TuneConfig, random: Sequence[float], space: Space, curves: Curves) -> Comparison:
    """`random` is the best value so far after every epoch of random search."""
    goal, budget = random[-1], len(random)
    bests: list[float] = []
    for best in itertools.islice(search(config, space, curves), CENSORED * budget):
        bests.append(best)
        if best >= goal and len(bests) >= budget:
            break
    reached = bests[-1] >= goal
    epochs = next(number for number, best in enumerate(bests, start=1) if best >= goal) if reached else CENSORED * budget
    return Comparison(epochs, list(random).index(goal) + 1, reached, best_of(curves) - bests[budget - 1])


def best_of(curves: Curves) -> float:
    return max(map(max, curves.values()))


def replay(seeds: range, space: Space, curves: Curves) -> None:
    """Print what every kind of search needs beside random search, and what ASHA with TPE comes to."""
    config = TuneConfig("unused", epochs=EPOCHS, searcher="random", scheduler="none", data=DatasetConfig("recorded"))
    randoms = [list(itertools.islice(search(replace(config, search_seed=seed), space, curves), BUDGET)) for seed in seeds]
    mean = statistics.fmean(random[-1] for random in randoms)
    print(f"table: {len(curves)} combinations, {config.objective} {best_of(curves):.4f} at best")
    print(f"random search: {RANDOM_TRIALS} trials of {EPOCHS} epochs, {config.objective} {mean:.4f} in the mean of {len(seeds)} seeds")
    print(f"epochs until a search has random's best, as a ratio to random's {BUDGET} (to those until random had it itself)")
    print(f"{'':16}{'median':>10}{'mean':>10}{'(median)':>10}{'reached':>10}   regret after {BUDGET} epochs")
    medians = {}
    for name in ("tpe, asha", "random, asha", "tpe, none", "random, none"):
        searcher, scheduler = name.split(", ")
        configs = [replace(config, searcher=searcher, scheduler=scheduler, search_seed=OTHER_SEEDS + seed) for seed in seeds]
        pairs = [compare(other, random, space, curves) for other, random in zip(configs, randoms, strict=True)]
        ratios = [pair.epochs / BUDGET for pair in pairs]
        medians[name] = statistics.median(ratios)
        own = statistics.median(pair.epochs / pair.random_epochs for pair in pairs)
        reached, regret = (statistics.fmean(values) for values in ([pair.reached for pair in pairs], [pair.regret for pair in pairs]))
        print(f"{name:16}{medians[name]:10.2f}{statistics.fmean(ratios):10.2f}{own:10.2f}{reached:10.0%}{regret:10.4f}", flush=True)
    print(f"ASHA with TPE: {medians['tpe, asha']:.2f} of random's epochs in the median (at most {FLOOR}; goal {GOAL})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", metavar="DATASET", help="make the table, from a copy of FER-2013")
    parser.add_argument("--seeds", type=int, default=300)
    arguments = parser.parse_args()
    space = read_space(str(TABLE / "space.yaml"))
    if arguments.record:
        record(arguments.record, space)
        return
    replay(range(arguments.seeds), space, read_curves())


if __name__ == "__main__":
    main()
