"""How much faster two workers on two cores train than one on one: images per second of the training loop, rounds in turn (1 2 1 2 ...).

    .venv/bin/python benchmarks/train_throughput.py [--images 3840] [--rounds 2] [--batch-size 128] [--stem 32 --widths 48 96 192]

Every training is a jobs/train.py that is bound to as many cores as it has workers, Ray's own processes included. With `--free`, the one
worker's job may use both cores, so that Ray's processes have one for themselves. Two workers share every batch, with synchronised
gradients. The images are noise, which costs as much to train on as faces. The first epoch of each training, which prepares TensorFlow, is
left out.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq

from fer_ray.config.recipe import ARCHITECTURES
from fer_ray.models import bundle

ROOT = Path(__file__).parents[1]
EPOCHS = 5
VALIDATION_IMAGES = 16  # of each class: an epoch's time is nearly all training


def draw_noise(folder: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    for split, images in (("train", count // 2), ("validation", VALIDATION_IMAGES)):
        for emotion in ("happy", "sad"):
            (folder / split / emotion).mkdir(parents=True)
            for number in range(images):
                noise = generator.integers(0, 256, (48, 48)).astype(np.uint8)
                cv2.imwrite(str(folder / split / emotion / f"{number}.png"), noise)


def images_per_second(data: Path, output: Path, workers: int, cores: int, network: list[str], batch: int) -> float:
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), "--dataset", str(data), "--output", str(output), *network]
    command += ["--workers", str(workers), "--cpus-per-worker", "1", "--batch-size", str(batch), "--epochs", str(EPOCHS)]
    bind = functools.partial(os.sched_setaffinity, 0, sorted(os.sched_getaffinity(0))[:cores])
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=bind)
    seconds = pq.read_table(output / bundle.HISTORY_FILE)["seconds"].to_pylist()[1:]
    images = len(list((data / "train").glob("*/*")))
    return images // batch * batch / float(np.median(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3840)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--architecture", default="residual", choices=tuple(ARCHITECTURES))
    parser.add_argument("--stem", type=int, default=0)
    parser.add_argument("--widths", type=int, nargs="+", default=[])
    parser.add_argument("--free", action="store_true", help="one worker's job may use both cores")
    arguments = parser.parse_args()
    network = ["--architecture", arguments.architecture] + (["--stem", str(arguments.stem)] if arguments.stem else [])
    network += ["--widths", *map(str, arguments.widths)] if arguments.widths else []
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="fer-ray-") as scratch:
        draw_noise(Path(scratch) / "data", arguments.images)
        for number in range(arguments.rounds):
            for workers, measured in rates.items():
                cores = 2 if arguments.free else workers
                output = Path(scratch) / f"model-{number}-{workers}"
                measured.append(images_per_second(Path(scratch) / "data", output, workers, cores, network, arguments.batch_size))
                print(f"round {number + 1}: {workers} worker(s) {measured[-1]:.0f} images/s", flush=True)
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    print(f"two workers / one worker: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()
