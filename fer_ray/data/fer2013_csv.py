"""fer2013.csv and its relatives: one face a row, as the gray levels of a square picture in text."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fer_ray.emotions import emotion_of
from fer_ray.errors import DatasetError
from fer_ray.io.storage import Storage
from fer_ray.typing import UInt8Array

# The order of the numbers in fer2013.csv (Goodfellow et al. 2013, arXiv 1307.0414).
EMOTION_NUMBERS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the CSV, counted from 0 after the header; `pixels` (side, side) uint8, None where they do not read."""

    number: int
    emotion: str
    usage: str | None
    pixels: UInt8Array | None


def read_pixel_csv(storage: Storage, uri: str) -> Iterator[Row]:
    """Every row, in the order of the file; `usage` is None where there is no such column.

    Raises:
        DatasetError: it does not read, lacks a column, or has an unknown emotion.
    """
    try:
        with io.TextIOWrapper(storage.open(uri), encoding="utf-8-sig", newline="") as text:
            rows = csv.reader(text)
            columns = {name.strip().lower(): position for position, name in enumerate(next(rows, []))}
            missing = {"emotion", "pixels"} - set(columns)
            if missing:
                raise DatasetError(f"The CSV {uri} has no column {' or '.join(sorted(missing))}: it must look like fer2013.csv.")
            for number, cells in enumerate(row for row in rows if row):
                yield _read_row(uri, number, cells, columns)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"The CSV {uri} does not read ({' '.join(str(error).split())[:200]}): give a whole fer2013.csv.") from error


def _read_row(uri: str, number: int, cells: list[str], columns: dict[str, int]) -> Row:
    cell = {name: cells[position].strip() if position < len(cells) else "" for name, position in columns.items()}
    emotion = dict(zip("0123456", EMOTION_NUMBERS, strict=True)).get(cell["emotion"]) or emotion_of(cell["emotion"])
    if emotion is None:
        raise DatasetError(f"Row {number} of {uri} has the emotion {cell['emotion'][:40]!r}: it must be a number from 0 to 6.")
    return Row(number, emotion, cell.get("usage"), _pixels(cell["pixels"]))


def _pixels(text: str) -> UInt8Array | None:
    try:
        levels = np.fromstring(text, np.int64, sep=" ")
    except (ValueError, DeprecationWarning):  # which of the two it is for text that is no number depends on NumPy's version
        return None
    side = math.isqrt(levels.size)
    if side == 0 or side * side != levels.size or levels.min() < 0 or levels.max() > 255:
        return None
    return levels.astype(np.uint8).reshape(side, side)
