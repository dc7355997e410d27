"""FER+: what ten people saw in each face of FER-2013, and the labels made of it (Barsoum et al. 2016, arXiv 1608.01041)."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from fer_ray.data.sample import Row, Sample
from fer_ray.emotions import EMOTIONS, emotion_of
from fer_ray.errors import AccessError, DatasetError, TooLargeError
from fer_ray.io.storage import Storage
from fer_ray.typing import Float32Array, Int64Array

NO_LABEL = -1
_REST = ("unknown", "nf")
# The columns of label.csv, which Microsoft's generate_training_data.py writes beside the images, without a header.
_GENERATED = ("image", "box", "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", *_REST)
_USAGES = {"train": "training", "validation": "publictest", "test": "privatetest"}


@dataclass
class Votes:
    """The votes (10,) of each image: one for each of EMOTIONS, then unknown and not a face.

    `by_name` has them by the image's name without folder and suffix; `by_row` by the row of fer2013.csv, with its Usage, where
    the file is Microsoft's. The two count differently, since some rows have no name: fer0000059.png is row 60.
    """

    by_name: dict[str, list[int]] = field(default_factory=dict)
    by_row: list[tuple[str, list[int]]] = field(default_factory=list)


def read_votes(storage: Storage, uris: tuple[str, ...]) -> Votes:
    """The votes of all these files together.

    Raises:
        DatasetError: a file does not read as votes, or two rows are about the same image.
    """
    votes = Votes()
    for uri in uris:
        try:
            text = storage.read(uri).decode("utf-8-sig")
            rows: Iterator[list[str]] = csv.reader(io.StringIO(text, newline=""))
            first = next(rows, [])
            header = [name.strip().lower() for name in first]
            if len(first) == len(_GENERATED) and all(cell.strip().isdecimal() for cell in first[2:]):
                rows, header = itertools.chain([first], rows), list(_GENERATED)
            for number, cells in enumerate(row for row in rows if row):
                _add(votes, uri, number, dict(zip(header, (cell.strip() for cell in cells), strict=False)), header)
        except (FileNotFoundError, AccessError, TooLargeError, UnicodeDecodeError, csv.Error) as error:
            raise DatasetError(f"The FER+ votes {uri} cannot be read ({' '.join(str(error).split())[:200]}): check --ferplus.") from error
    return votes


def _add(votes: Votes, uri: str, number: int, row: dict[str, str], header: list[str]) -> None:
    columns = {emotion_of(name) or name: name for name in header}
    name_column = columns.get("image") or columns.get("image name")
    if name_column is None or not set(EMOTIONS) | set(_REST) <= set(columns):
        raise DatasetError(f"The file {uri} holds no FER+ votes: it needs the columns image, {', '.join(EMOTIONS)}, unknown and NF.")
    counts = [row.get(columns[name], "") for name in (*EMOTIONS, *_REST)]
    if not all(count.isdecimal() and len(count) < 6 for count in counts):
        raise DatasetError(f"Row {number} of the FER+ votes {uri} has a count that is no number: repair or remove it.")
    numbers, name = [int(count) for count in counts], row[name_column]
    if "usage" in columns:
        votes.by_row.append((row["usage"].lower(), numbers))
    if name:
        stem = name.replace("\\", "/").rpartition("/")[2].rpartition(".")[0]
        if stem in votes.by_name:
            raise DatasetError(f"The FER+ votes name the image {name} twice: give --ferplus every file once.")
        votes.by_name[stem] = numbers


def match_votes(votes: Votes, samples: tuple[Sample, ...]) -> list[list[int] | None]:
    """The votes of each sample, None where there are none: by the file's name, or by the row of fer2013.csv.

    Raises:
        DatasetError: they cannot be told apart, or belong to other images.
    """
    rows = [sample.row for sample in samples if sample.row is not None]
    if rows:
        return _match_rows(votes, samples, rows)
    stems: dict[str, str] = {}
    for sample in samples:
        if sample.stem in votes.by_name and stems.setdefault(sample.stem, sample.name) != sample.name:
            raise DatasetError(f"FER+ cannot tell {stems[sample.stem]} and {sample.name} apart: name the images as FER+ does, once each.")
    if not stems:
        raise DatasetError("None of the images has FER+ votes: they must be named as FER+ names them, fer0000000.png and so on.")
    return [votes.by_name.get(sample.stem) for sample in samples]


def _match_rows(votes: Votes, samples: tuple[Sample, ...], rows: list[Row]) -> list[list[int] | None]:
    if len(votes.by_row) <= max(row.number for row in rows):
        given = f"these votes have {len(votes.by_row):,} rows" if votes.by_row else "these votes do not say which row they are about"
        raise DatasetError(f"A CSV of pixels needs Microsoft's fer2013new.csv, row for row, but {given}: give --ferplus fer2013new.csv.")
    for sample in samples:
        if sample.row and votes.by_row[sample.row.number][0] != _USAGES.get(sample.split, votes.by_row[sample.row.number][0]):
            raise DatasetError(f"{sample.name} and its row of FER+ votes are of different splits: the two files must have the same order.")
    return [votes.by_row[sample.row.number][1] if sample.row else None for sample in samples]


def distributions(votes: Int64Array) -> Float32Array:
    """The eight emotions' shares (n, 8) of votes (n, 10), single votes taken for outliers; rows that are all 0 give all 0."""
    emotions = _without_outliers(votes)[:, : len(EMOTIONS)]
    return np.asarray(emotions / np.maximum(emotions.sum(axis=1, keepdims=True), 1), np.float32)


def soft_labels(votes: Int64Array) -> Int64Array:
    """The likeliest of EMOTIONS (n,), the first of equals; -1 where emotions do not hold more than half of the remaining votes."""
    kept = _without_outliers(votes)
    emotions = kept[:, : len(EMOTIONS)]
    return np.where(2 * emotions.sum(axis=1) > kept.sum(axis=1), emotions.argmax(axis=1), NO_LABEL)


def majority_labels(votes: Int64Array) -> Int64Array:
    """The one of EMOTIONS (n,) with more than half of the remaining votes; -1 where there is none, or it is unknown or not a face."""
    kept = _without_outliers(votes)
    winner = kept.argmax(axis=1)
    clear = (2 * kept.max(axis=1) > kept.sum(axis=1)) & (winner < len(EMOTIONS))
    return np.where(clear, winner, NO_LABEL)


def _without_outliers(votes: Int64Array) -> Int64Array:
    return np.where(votes > 1, votes, 0)
