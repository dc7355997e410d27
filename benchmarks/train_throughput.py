"""How much faster two workers train than one: images per second of the training loop, rounds in turn (1 2 1 2 ...).

    .venv/bin/python benchmarks/train_throughput.py [--images 3840] [--rounds 2] [--batch-size 128] [--stem 32 --widths 48 96 192]

One worker has one core; two workers have one core each and share every batch, with synchronised gradients. The images are noise,
which costs as much to train on as faces. The first epoch of each training, which prepares TensorFlow, is left out.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq

from fer_ray import bundle
from fer_ray.config import TrainConfig
from fer_ray.recipe import ARCHITECTURES, DatasetConfig, ModelConfig, OptimizationConfig, Recipe
from fer_ray.training import train

VALIDATION_IMAGES = 16  # of each class: an epoch's time is nearly all training


def draw_noise(folder: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    for split, images in (("train", count // 2), ("validation", VALIDATION_IMAGES)):
        for emotion in ("happy", "sad"):
            (folder / split / emotion).mkdir(parents=True)
            for number in range(images):
                noise = generator.integers(0, 256, (48, 48)).astype(np.uint8)
                cv2.imwrite(str(folder / split / emotion / f"{number}.png"), noise)


def images_per_second(data: Path, output: Path, workers: int, images: int, model: ModelConfig, batch: int) -> float:
    settings = OptimizationConfig(epochs=4, patience=4, batch_size=batch)
    recipe = Recipe(model, optimization=settings)
    train(TrainConfig(str(output), workers=workers, cpus_per_worker=1, data=DatasetConfig(str(data)), recipe=recipe))
    seconds = pq.read_table(output / bundle.HISTORY_FILE)["seconds"].to_pylist()[1:]
    return images // settings.batch_size * settings.batch_size / float(np.median(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3840)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--architecture", default="residual", choices=tuple(ARCHITECTURES))
    parser.add_argument("--stem", type=int, default=0)
    parser.add_argument("--widths", type=int, nargs="+", default=[])
    arguments = parser.parse_args()
    model = ModelConfig(architecture=arguments.architecture, stem=arguments.stem, widths=tuple(arguments.widths))
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="fer-ray-") as scratch:
        draw_noise(Path(scratch) / "data", arguments.images)
        for number in range(arguments.rounds):
            for workers, measured in rates.items():
                output = Path(scratch) / f"model-{number}-{workers}"
                measured.append(images_per_second(Path(scratch) / "data", output, workers, arguments.images, model, arguments.batch_size))
                print(f"round {number + 1}: {workers} worker(s) {measured[-1]:.0f} images/s", flush=True)
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    print(f"two workers / one worker: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()
