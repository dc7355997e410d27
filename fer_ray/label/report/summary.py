"""What a run found, summed up: its tables are read once, in batches, and what is kept does not grow with their rows."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fer_ray.emotions import EMOTIONS
from fer_ray.label.plan import Run
from fer_ray.label.publish import table_file
from fer_ray.schema import Status
from fer_ray.typing import Float64Array, Int64Array

STATUSES = tuple(status.value for status in Status)
LABELS = (*EMOTIONS, "unknown")
OTHERS = "others"  # no folder is called so: theirs end in a slash, and the input's own is empty
BINS, LEVELS = 20, 2
ROWS_PER_BATCH = 1 << 16
MOST_KEPT, MOST_COUNTED, MOST_ERRORS, MOST_TIMES = 500, 20_000, 4000, 50_000
ERROR_LENGTH = 300
CANDIDATES, DOUBTFUL = 16, 32
IMAGE_COLUMNS = ("image_uri", "status", "error", "labeled_at")
FACE_COLUMNS = ("image_uri", "bbox_x", "bbox_y", "bbox_width", "bbox_height", "emotion", "confidence", "labeled_at")

_NO_IMAGES: Int64Array = np.zeros(len(STATUSES), np.int64)
Rows = list[dict[str, Any]]


@dataclass
class FolderFigures:
    """`statuses` (5,) counts images in the order of STATUSES, `faces` (9, 20) faces by LABELS and confidence."""

    statuses: Int64Array = field(default_factory=lambda: np.zeros(len(STATUSES), np.int64))
    faces: Int64Array = field(default_factory=lambda: np.zeros((len(LABELS), BINS), np.int64))

    def add(self, other: FolderFigures) -> None:
        self.statuses += other.statuses
        self.faces += other.faces

    @property
    def images(self) -> int:
        return int(self.statuses.sum())

    @property
    def failed(self) -> int:
        return sum(int(n) for status, n in zip(Status, self.statuses, strict=True) if status.is_failure)

    @property
    def emotions(self) -> dict[str, int]:
        return {name: int(n) for name, n in zip(LABELS, self.faces.sum(axis=1), strict=True) if n}


@dataclass(frozen=True)
class ErrorGroup:
    """Images of one folder that failed for the same reason; numbers in it are `#`. `example` is one of their addresses."""

    folder: str
    status: str
    sentence: str
    images: int
    example: str


@dataclass
class RunFigures:
    """What a run found. Folders are named by their path below `base`, at most `levels` deep; `OTHERS` holds what has no own entry.

    `times` counts images by the second, rounded down to `time_step`, in which they were labeled. `candidates` are rows of faces
    to show: for each emotion some at random, one an image, and under an empty name those of the lowest confidence.
    """

    base: str
    levels: int = LEVELS
    folders: dict[str, FolderFigures] = field(default_factory=dict)
    errors: list[ErrorGroup] = field(default_factory=list)
    times: Counter[int] = field(default_factory=Counter)
    time_step: int = 1
    candidates: dict[str, Rows] = field(default_factory=dict)

    @property
    def total(self) -> FolderFigures:
        whole = FolderFigures()
        for one in self.folders.values():
            whole.add(one)
        return whole

    def reduced(self, most: int) -> RunFigures:
        """The same with at most so many folders and `OTHERS`: one level less where there are more, and then the largest."""
        levels = self.levels
        if levels > 1 and len(self.folders) - (OTHERS in self.folders) > most:
            levels = 1
        folders: dict[str, FolderFigures] = {}
        for name, one in self.folders.items():
            folders.setdefault(cut(name, levels), FolderFigures()).add(one)
        folders = _largest(folders, most)
        errors = _merged([(_kept(cut(e.folder, levels), folders), e) for e in self.errors])
        return RunFigures(self.base, levels, folders, errors, self.times, self.time_step, self.candidates)

    def folder_of(self, image_uri: str) -> str:
        """The entry of `folders` that an image of this run counts in."""
        return _kept(cut(image_uri[len(self.base) :], self.levels), self.folders)


def measure(run: Run, bases: Iterable[str] = ()) -> RunFigures:
    """Read both tables of a published run. `bases` are folders that the names of this run's folders shall be comparable with."""
    images = _ImageCounts(common_folder([_own_base(run), *bases]))
    for batch in batches(run, "images", IMAGE_COLUMNS):
        images.add(batch)
    found = images.finish()
    faces = _FaceCounts(found)
    for batch in batches(run, "faces", FACE_COLUMNS):
        faces.add(batch)
    faces.finish()
    return found


def common_folder(addresses: Iterable[str]) -> str:
    """The deepest folder that all lie in, with its slash; empty where there is none."""
    shared = os.path.commonprefix(list(addresses))  # noqa: RUF071 - of characters, cut at a slash: addresses are no paths
    return shared[: shared.rfind("/") + 1]


def cut(folder: str, levels: int) -> str:
    """The first levels of a path, each with its slash; what follows the last slash is no level."""
    end = 0
    for _ in range(levels):
        end = folder.find("/", end) + 1 or end
    return folder[:end] if folder != OTHERS else OTHERS


def _kept(folder: str, folders: dict[str, FolderFigures]) -> str:
    return folder if folder in folders else OTHERS


def _largest(folders: dict[str, FolderFigures], most: int) -> dict[str, FolderFigures]:
    """The largest ones in the order of their names, and the sum of the rest."""
    names = sorted((name for name in folders if name != OTHERS), key=lambda name: (-folders[name].images, name))
    kept = {name: folders[name] for name in sorted(names[:most])}
    rest = [folders[name] for name in folders if name not in kept]
    if rest:
        kept[OTHERS] = FolderFigures()
        for one in rest:
            kept[OTHERS].add(one)
    return kept


def _merged(errors: Iterable[tuple[str, ErrorGroup]]) -> list[ErrorGroup]:
    """One group for each folder, status and sentence, the largest first."""
    groups: dict[tuple[str, str, str], ErrorGroup] = {}
    for folder, one in errors:
        key = (folder, one.status, one.sentence)
        known = groups.get(key)
        groups[key] = ErrorGroup(*key, one.images + (known.images if known else 0), known.example if known else one.example)
    return sorted(groups.values(), key=lambda one: (-one.images, one.folder, one.status, one.sentence))


def _files(run: Run, table: str) -> Iterator[pq.ParquetFile]:
    for number in itertools.count():
        file = table_file(run, table, number)
        if run.storage.find(file) is None:
            return
        with run.storage.open(file) as opened:
            yield pq.ParquetFile(opened)


def batches(run: Run, table: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of one of the run's tables, in the order of their files."""
    for file in _files(run, table):
        for group in range(file.num_row_groups):
            yield from file.iter_batches(ROWS_PER_BATCH, row_groups=[group], columns=list(columns))


def _own_base(run: Run) -> str:
    """The folder that all images of the run lie in, from the least and the greatest address of each row group."""
    addresses = []
    for file in _files(run, "images"):
        for group in range(file.num_row_groups):
            column = file.metadata.row_group(group).column(file.schema_arrow.get_field_index("image_uri"))
            known = column.statistics if column.is_stats_set and column.statistics.has_min_max else None
            addresses += [known.min, known.max] if known else [""]
    return common_folder(addresses)


def _folders_of(image_uris: pa.Array, base: str, levels: int) -> tuple[Int64Array, list[str]]:
    """For each row the position of its folder in a list of names."""
    below = pc.utf8_slice_codeunits(image_uris, len(base))
    names = pc.struct_field(pc.extract_regex(below, f"^(?P<folder>(?:[^/]*/){{0,{levels}}})"), "folder").dictionary_encode()
    return np.asarray(names.indices, np.int64), names.dictionary.to_pylist()


class _ImageCounts:
    """Counts the rows of `images`, with fewer levels and then without the smallest folders where there are too many."""

    def __init__(self, base: str) -> None:
        self.base, self.levels, self.time_step = base, LEVELS, 1
        self.statuses: dict[str, Int64Array] = {}
        self.errors: dict[tuple[str, str, str], tuple[int, str]] = {}
        self.times: Counter[int] = Counter()

    def add(self, batch: pa.RecordBatch) -> None:
        codes, names = _folders_of(batch["image_uri"], self.base, self.levels)
        statuses = np.asarray(pc.index_in(batch["status"], pa.array(STATUSES)).fill_null(0), np.int64)
        counts = np.bincount(codes * len(STATUSES) + statuses, minlength=len(names) * len(STATUSES)).reshape(-1, len(STATUSES))
        for name, row in zip(names, counts, strict=True):
            self.statuses[name] = self.statuses.get(name, _NO_IMAGES) + row
        self._add_errors(batch, codes, names)
        self._add_times(batch["labeled_at"])
        self._make_room()

    def _add_errors(self, batch: pa.RecordBatch, codes: Int64Array, names: list[str]) -> None:
        failed = pc.is_valid(batch["error"])
        if not pc.any(failed).as_py():
            return
        sentences = pc.replace_substring_regex(batch["error"].filter(failed), "[0-9]+([.,][0-9]+)*", "#")
        rows = pa.table(
            {
                "folder": pa.array(codes).filter(failed),
                "status": batch["status"].filter(failed),
                "error": pc.utf8_slice_codeunits(sentences, 0, ERROR_LENGTH),
                "image_uri": batch["image_uri"].filter(failed),
            }
        )
        groups = rows.group_by(["folder", "status", "error"], use_threads=False).aggregate([("image_uri", "count"), ("image_uri", "first")])
        for row in groups.to_pylist():
            key = (names[row["folder"]], row["status"], row["error"])
            count, example = self.errors.get(key, (0, row["image_uri_first"]))
            self.errors[key] = count + row["image_uri_count"], example

    def _add_times(self, labeled_at: pa.Array) -> None:
        seconds = np.asarray(labeled_at.cast(pa.int64()), np.int64) // (1_000_000 * self.time_step) * self.time_step
        self.times.update(dict(zip(*(part.tolist() for part in np.unique(seconds, return_counts=True)), strict=True)))

    def _make_room(self) -> None:
        if self.levels > 1 and len(self.statuses) > MOST_KEPT:
            self.levels = 1
            statuses: dict[str, Int64Array] = {}
            for name, row in self.statuses.items():
                statuses[cut(name, 1)] = statuses.get(cut(name, 1), _NO_IMAGES) + row
            self.statuses = statuses
        if len(self.statuses) > MOST_COUNTED:
            # The rows are sorted by address: a folder that is over gets no more images, and none of the largest is lost.
            names = sorted((name for name in self.statuses if name != OTHERS), key=lambda name: -int(self.statuses[name].sum()))
            for name in names[MOST_COUNTED // 2 :]:
                self.statuses[OTHERS] = self.statuses.get(OTHERS, _NO_IMAGES) + self.statuses.pop(name)
        if len(self.errors) > MOST_ERRORS:
            self._drop_rare_errors()
        if len(self.times) > MOST_TIMES:
            self.time_step *= 10
            times: Counter[int] = Counter()
            for second, count in self.times.items():
                times[second // self.time_step * self.time_step] += count
            self.times = times

    def _drop_rare_errors(self) -> None:
        """Keep the half that counts most; the rest is one group for each status."""
        ordered = sorted(self.errors.items(), key=lambda item: -item[1][0])
        self.errors = dict(ordered[: MOST_ERRORS // 2])
        for (_, status, _), (count, example) in ordered[MOST_ERRORS // 2 :]:
            key = (OTHERS, status, "other reasons")
            self.errors[key] = self.errors.get(key, (0, example))[0] + count, self.errors.get(key, (0, example))[1]

    def finish(self) -> RunFigures:
        folders = _largest({name: FolderFigures(row) for name, row in self.statuses.items()}, MOST_KEPT)
        groups = [ErrorGroup(*key, *value) for key, value in self.errors.items()]
        errors = _merged([(_kept(cut(one.folder, self.levels), folders), one) for one in groups])
        return RunFigures(self.base, self.levels, folders, errors, self.times, self.time_step)


class _FaceCounts:
    """Counts the rows of `faces` into the folders that the images gave, and picks faces to show."""

    def __init__(self, figures: RunFigures) -> None:
        self.figures = figures
        self.slots = {name: slot for slot, name in enumerate(figures.folders)}
        self.counts = np.zeros((len(self.slots) + 1, len(LABELS), BINS), np.int64)
        self.best: dict[str, list[tuple[float, dict[str, Any]]]] = {}
        self.generator = np.random.default_rng(0)

    def add(self, batch: pa.RecordBatch) -> None:
        codes, names = _folders_of(batch["image_uri"], self.figures.base, self.figures.levels)
        rest = self.slots.get(OTHERS, len(self.slots))
        slots = np.array([self.slots.get(name, rest) for name in names], np.int64)[codes]
        emotions = np.asarray(pc.index_in(batch["emotion"], pa.array(LABELS)).fill_null(len(LABELS) - 1), np.int64)
        confidences = np.nan_to_num(np.asarray(batch["confidence"], np.float64))
        bins = np.clip((confidences * BINS).astype(np.int64), 0, BINS - 1)
        places = (slots * len(LABELS) + emotions) * BINS + bins
        self.counts += np.bincount(places, minlength=self.counts.size).reshape(self.counts.shape)
        draws = self.generator.random(len(batch))
        for code in np.unique(emotions).tolist():
            self._pick(LABELS[code], np.where(emotions == code, draws, np.inf), batch, CANDIDATES)
        self._pick("", confidences, batch, DOUBTFUL)

    def _pick(self, group: str, keys: Float64Array, batch: pa.RecordBatch, most: int) -> None:
        """Keep the rows of the smallest keys, one an image."""
        best = self.best.setdefault(group, [])
        places = np.flatnonzero(keys < (best[-1][0] if len(best) == most else np.inf))
        if len(places) > most:
            places = places[np.argpartition(keys[places], most)[:most]]
        if not len(places):
            return
        best += zip(keys[places].tolist(), batch.take(pa.array(places)).to_pylist(), strict=True)
        best.sort(key=lambda pair: pair[0])
        alone = {row["image_uri"]: (key, row) for key, row in reversed(best)}
        self.best[group] = sorted(alone.values(), key=lambda pair: pair[0])[:most]

    def finish(self) -> None:
        for name, slot in self.slots.items():
            self.figures.folders[name].faces += self.counts[slot]
        if self.counts[len(self.slots)].any():
            self.figures.folders.setdefault(OTHERS, FolderFigures()).faces += self.counts[len(self.slots)]
        self.figures.candidates = {group: [row for _, row in best] for group, best in self.best.items()}
