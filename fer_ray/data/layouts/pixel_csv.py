"""fer2013.csv and its relatives: one face a row, as the gray levels of a square picture in text."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from fer_ray.config.label_names import LEFT_OUT, plain_label
from fer_ray.data.layouts.source import Labels, Source, left_out
from fer_ray.data.layouts.tree import split_of, split_of_path
from fer_ray.data.sample import Layout, Row, Sample
from fer_ray.errors import DatasetError
from fer_ray.io.storage import Storage
from fer_ray.text import sanitize
from fer_ray.typing import UInt8Array

SUFFIX = ".csv"
MAX_CELL = 16 << 20  # characters: the pixels of 2,048 x 2,048
_USUAL = ("fer2013.csv", "icml_face_data.csv")  # with all splits: what lies beside them repeats their rows
_PRESETS = {"ckextended.csv": "ckextended"}  # for all others, the numbers of FER-2013


def read_pixel_csvs(source: Source) -> Layout | None:
    """The samples of CSVs with a column of pixels: by the usual name, else all that there are; None where there are none.

    Raises:
        DatasetError: one does not read, lacks a column, or has an unknown emotion.
    """
    files = [file for file in source.tree.all_files() if file.path.lower().endswith(SUFFIX)]
    usual = [file for name in _USUAL for file in files if file.name.lower() == name]
    chosen = usual[:1] or files
    columns = {file.path: read_header(source.storage, file.entry.image_uri) for file in chosen}
    pixels = [file for file in chosen if "pixels" in columns[file.path]]
    if not pixels and len(chosen) == 1:
        raise DatasetError(f"The CSV {chosen[0].entry.image_uri} has no column pixels: it must look like fer2013.csv.")
    samples: list[Sample] = []
    findings, others = [], Counter[str]()
    for file in pixels:
        if "emotion" not in columns[file.path] and len(pixels) > 1:
            findings.append(f"The file {sanitize(file.path)} has no column emotion and was left out.")
            continue
        labels = source.labels.or_preset(_PRESETS.get(file.name.lower(), "fer2013"))
        samples += _samples(source.storage, file.entry.image_uri, file.path, labels, others)
    return Layout(tuple(sorted(samples, key=lambda sample: sample.key)), (*findings, *left_out(others))) if pixels else None


def _samples(storage: Storage, uri: str, path: str, labels: Labels, others: Counter[str]) -> Iterator[Sample]:
    name, number = sanitize(path.rpartition("/")[2]), -1
    for number, cell in enumerate(read_rows(storage, uri)):
        emotion = labels.emotion(cell["emotion"])
        if emotion is None:
            what = f"Row {number} of {uri} has the emotion {cell['emotion'][:40]!r}"
            raise labels.unknown(what, cell["emotion"])
        usage = cell.get("usage")
        split = split_of_path(path) if usage is None else split_of(usage)
        if split is None:
            raise DatasetError(f"Row {number} of {name} has the Usage {usage!r}: it must be Training, PublicTest or PrivateTest.")
        if emotion == LEFT_OUT:
            others[plain_label(cell["emotion"])] += 1
            continue
        row = Row(number, emotion, usage, _pixels(cell["pixels"]))
        yield Sample(f"{name}#{number:07d}", f"{split}/{emotion}/{number:07d}.csv", split, emotion, row=row)
    if number < 0:
        raise DatasetError(f"The CSV {uri} has no rows: give a whole fer2013.csv.")


def read_header(storage: Storage, uri: str) -> dict[str, int]:
    """The places of a CSV's columns, by their names in small letters."""
    with _opened(storage, uri) as rows:
        return _columns(next(rows, []))


def read_rows(storage: Storage, uri: str) -> Iterator[dict[str, str]]:
    """Every row after the header as its cells by column, in the order of the file; empty lines are none.

    Raises:
        DatasetError: it does not read, or lacks a column.
    """
    with _opened(storage, uri) as rows:
        columns = _columns(next(rows, []))
        missing = {"emotion", "pixels"} - set(columns)
        if missing:
            raise DatasetError(f"The CSV {uri} has no column {' or '.join(sorted(missing))}: it must look like fer2013.csv.")
        for cells in rows:
            if cells:
                yield {name: cells[place].strip() if place < len(cells) else "" for name, place in columns.items()}


def _columns(header: list[str]) -> dict[str, int]:
    return {name.strip().lower(): place for place, name in enumerate(header)}


@contextmanager
def _opened(storage: Storage, uri: str) -> Iterator[Iterator[list[str]]]:
    csv.field_size_limit(MAX_CELL)  # of this process; the default of 131,072 is less than 224 x 224 pixels
    try:
        with io.TextIOWrapper(storage.open(uri), encoding="utf-8-sig", newline="") as text:
            yield csv.reader(text)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"The CSV {uri} does not read ({' '.join(str(error).split())[:200]}): give a whole fer2013.csv.") from error


def _pixels(text: str) -> UInt8Array | None:
    try:
        levels = np.fromstring(text, np.int64, sep=" ")
    except (ValueError, DeprecationWarning):  # which of the two it is for text that is no number depends on NumPy's version
        return None
    side = math.isqrt(levels.size)
    if side == 0 or side * side != levels.size or levels.min() < 0 or levels.max() > 255:
        return None
    return levels.astype(np.uint8).reshape(side, side)
