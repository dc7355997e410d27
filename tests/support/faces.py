"""Drawn faces: discs that smile or frown, which a small network learns to tell apart in seconds."""

from pathlib import Path

import cv2
import numpy as np

from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.recipe import ModelConfig
from fer_ray.data.dataset import Dataset, load_dataset

TINY = ModelConfig(stem=8, widths=(16, 32), depths=(1, 1), dropout=0.1)


def draw_face(folder: Path, happy: bool, generator: np.random.Generator, number: int) -> None:
    """A disc with two eyes and a mouth that is bent up or down."""
    face = np.full((48, 48), generator.integers(20, 90), np.uint8)
    x, y = (int(v) for v in generator.integers(20, 28, 2))
    cv2.circle(face, (x, y), 18, int(generator.integers(150, 230)), cv2.FILLED)
    for side in (-7, 7):
        cv2.circle(face, (x + side, y - 6), 2, 30, cv2.FILLED)
    cv2.ellipse(face, (x, y + (6 if happy else 12)), (8, 5), 0, 0 if happy else 180, 180 if happy else 360, 30, 2)
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / f"{number}.png"), face)


def draw_faces(root: Path, train: int = 160, validation: int = 60) -> Path:
    """A data set of two classes with so many faces of each."""
    generator = np.random.default_rng(0)
    for split, count in (("Training", train), ("val", validation)):
        for number in range(count):
            draw_face(root / split / "Happiness", True, generator, number)
            draw_face(root / split / "sad", False, generator, number)
    return root


def pixel_csv(root: Path) -> bytes:
    """The drawn data set as one file, in the form of fer2013.csv."""
    lines = ["emotion,pixels,Usage"]
    for usage, split in (("Training", "Training"), ("PublicTest", "val")):
        for number, name in ((3, "Happiness"), (4, "sad")):
            for file in sorted((root / split / name).iterdir()):
                pixels = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
                lines.append(f"{number},{' '.join(map(str, np.ravel(np.asarray(pixels))))},{usage}")
    return "\n".join(lines).encode()


def dataset_of(root: Path) -> Dataset:
    return load_dataset(DatasetConfig(str(root), keep_duplicates=True), 48)
