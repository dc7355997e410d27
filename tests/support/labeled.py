"""Small data sets of drawn pictures, and what is read of them."""

import zlib
from pathlib import Path

import cv2
import numpy as np

from fer_ray.config.dataset import DatasetConfig
from fer_ray.data.dataset import Dataset, load_dataset
from fer_ray.typing import UInt8Array


def drawn(name: str, shape: tuple[int, ...] = (24, 24)) -> UInt8Array:
    """A picture of its own for every name."""
    return np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, shape).astype(np.uint8)


def write_image(path: Path, pixels: UInt8Array | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = cv2.imencode(path.suffix, drawn(str(path)) if pixels is None else pixels)[1]
    path.write_bytes(encoded.tobytes())


def fill(root: Path, *folders: str, count: int = 5) -> None:
    for folder in folders:
        for number in range(count):
            write_image(root / folder / f"{number}.png")


def load(root: Path | str, *splits: str, size: int = 24, color: str = "gray", **settings: object) -> Dataset:
    config = DatasetConfig(str(root), **settings)  # type: ignore[arg-type]
    return load_dataset(config, size, color, splits or ("train", "validation"))


def counts(data: Dataset) -> dict[str, int]:
    return {name: len(split) for name, split in data.splits.items()}
