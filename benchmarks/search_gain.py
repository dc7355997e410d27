"""What a search gained: its best settings against the recipe's defaults, same epochs on all images, several seeds.

    .venv/bin/python benchmarks/search_gain.py --best SEARCH/best.yaml --dataset DIR --output DIR [--epochs 5] [--seeds 3]

Both are trained by `jobs/tune.py` as a grid of two without early stopping, so the trials' own time is measured too: what of it, from the
moment when a trial's process is there to its last file, was not spent in epochs (the start of its workers, reporting, checkpoints).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from fer_ray.config.flat import build
from fer_ray.config.recipe import Recipe
from fer_ray.io.storage import Storage
from fer_ray.tune.results import leaderboard, read_trials

ROOT = Path(__file__).parents[1]


def flat(recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe by the names of their flags."""
    return {name: value for part in dataclasses.asdict(recipe).values() for name, value in part.items()}


def space_of_two(best: dict[str, Any]) -> dict[str, Any]:
    """A space whose grid has two combinations: the best settings, and the defaults, told apart by the first setting that differs."""
    defaults = flat(build(Recipe, {}))
    differing = [name for name, value in best.items() if json.dumps(value) != json.dumps(defaults[name])]
    first = differing[0]
    telling = {"when": {first: best[first]}}
    rest = {name: {"choice": [best[name]], **telling} for name in best if name != first}
    return {first: {"choice": [best[first], defaults[first]]}, **rest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--best", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--epochs", default="5")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-a-time", type=int, default=2)
    arguments = parser.parse_args()
    best = yaml.safe_load(Path(arguments.best).read_text())
    output = Path(arguments.output)
    space = output.with_name(output.name + ".space.yaml")
    space.write_text(yaml.safe_dump(space_of_two(best), sort_keys=False))
    command = [sys.executable, str(ROOT / "jobs" / "tune.py"), "--dataset", arguments.dataset, "--output", arguments.output]
    command += ["--space", str(space), "--searcher", "grid", "--scheduler", "none", "--trials", "2", "--epochs", arguments.epochs]
    command += ["--seeds", str(arguments.seeds), "--max-concurrent", str(arguments.at_a_time)]
    subprocess.run(command, check=True)
    trials = read_trials(Storage(), arguments.output)
    for entry in leaderboard(trials, "accuracy"):
        values = sorted(
            trial.epochs[-1].accuracy or 0.0 for trial in trials if trial.configuration == entry.trial.configuration and trial.epochs
        )
        name = "searched" if len(entry.trial.settings) > 2 else "default"
        seconds = statistics.mean(epoch.seconds or 0.0 for epoch in entry.trial.epochs)
        spread = f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        print(f"{name}: {statistics.mean(values):.4f}{spread} ({values}), {seconds:.0f} s an epoch")
    taken = sum(seconds_taken(folder) for folder in output.glob("trials/*"))
    print(f"beyond the epochs: {1 - sum(trial.seconds for trial in trials) / taken:.1%} of the trials' {taken:.0f} s")


def seconds_taken(trial: Path) -> float:
    """From the settings, a trial's first file, to its last one."""
    return max(file.stat().st_mtime for file in trial.rglob("*")) - (trial / "settings.json").stat().st_mtime


if __name__ == "__main__":
    main()
