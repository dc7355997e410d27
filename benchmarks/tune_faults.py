"""Kills a search at random moments and goes on with it: is every trial there once, with every epoch once, and none twice?

    .venv/bin/python benchmarks/tune_faults.py --dataset DIR [--kills 5] [--trials 8] [--epochs 6] [--seed 1]

Every kill is SIGKILL to the whole search, Ray included, at a moment drawn between its first trial and some epochs later.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
SPACE = "stem: {choice: [4, 8]}\nwidths: [8, 16]\ndepths: [1, 1]\nlearning_rate: {log: [1.0e-3, 1.0e-2]}\nbatch_size: 64\n"
CHECKPOINTS = "trials/*/train/checkpoint_*/state.npz"


def checkpoints(output: Path) -> set[str]:
    """The finished epochs that lie in checkpoints now, by trial and name."""
    return {str(file.parent.relative_to(output)) for file in output.glob(CHECKPOINTS)}


def kill_once(command: list[str], output: Path, wait: float) -> bool:
    """Start the search, wait for the first new trial or epoch and some seconds more, kill it; False when it ended before."""
    before = set(output.glob("trials/*")) | set(output.glob(CHECKPOINTS))
    search = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while search.poll() is None and not (set(output.glob("trials/*")) | set(output.glob(CHECKPOINTS))) - before:
        time.sleep(0.1)
    try:
        search.wait(wait)
    except subprocess.TimeoutExpired:
        os.killpg(search.pid, signal.SIGKILL)
        search.wait()
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", required=True, help="a data set as jobs/tune.py takes it")
    parser.add_argument("--limit", default="60", help="images of each class and split")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--trials", default="8")
    parser.add_argument("--epochs", default="6")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        output, space = Path(folder) / "search", Path(folder) / "space.yaml"
        space.write_text(SPACE)
        command = [sys.executable, str(ROOT / "jobs" / "tune.py"), "--dataset", arguments.dataset, "--limit", arguments.limit]
        command += ["--output", str(output), "--space", str(space), "--trials", arguments.trials, "--epochs", arguments.epochs]
        killed = 0
        for round_number in range(arguments.kills):
            resume = ["--resume"] if (output / "search.json").exists() else []
            wait = generator.uniform(0, 15)
            if not kill_once(command + resume, output, wait):
                print(f"round {round_number + 1}: the search ended before it could be killed", flush=True)
                break
            killed += 1
            print(
                f"round {round_number + 1}: killed {wait:.1f} s after something new, {len(checkpoints(output))} checkpoints there",
                flush=True,
            )
        ended = subprocess.run([*command, "--resume"], stdout=subprocess.PIPE, text=True, check=False)
        summary = json.loads(ended.stdout.splitlines()[-1])
        epochs: dict[str, list[int]] = {}
        for row in pq.read_table(output / "trials.parquet").to_pylist():
            epochs.setdefault(row["trial_id"], []).append(row["epoch"])
        twice = sum(count > 1 for numbers in epochs.values() for count in Counter(numbers).values())
        gaps = sum(numbers != list(range(1, len(numbers) + 1)) for numbers in epochs.values())
        lost = int(arguments.trials) - len(epochs)
        trained = sum(len(file.read_text().splitlines()) for file in output.glob("trials/*/progress.jsonl"))
        again = trained - sum(len(numbers) for numbers in epochs.values())
        found = {"kills": killed, "lost": lost, "epochs_twice": twice, "with_gaps": gaps, "epochs_done_again": again}
        print(json.dumps({**found, "exit_code": ended.returncode, **summary}))


if __name__ == "__main__":
    main()
