"""Sums up a run: its tables are read once, in batches, and the memory that this takes does not grow with their rows."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fer_ray.label.publish import table_file
from fer_ray.label.report.summary import (
    BINS,
    LABELS,
    MAX_LEVELS,
    OTHERS,
    STATUSES,
    FailureGroup,
    FolderCounts,
    RunSummary,
    cut,
    keep_largest,
    merge_failures,
)
from fer_ray.label.run import Run
from fer_ray.typing import Float64Array, Int64Array

ROWS_PER_BATCH = 1 << 16
MAX_FOLDERS_KEPT = 500  # in the summary, each with its faces by confidence
MAX_FOLDERS_COUNTED = 20_000  # while images are counted: five numbers each
MAX_FAILURE_GROUPS = 4000
MAX_TIMES = 50_000  # seconds in which images were labeled, before steps become longer
MAX_REASON_LENGTH = 300
CANDIDATES_PER_EMOTION = 16  # for 6 that are shown: images may be gone by then
UNCERTAIN_CANDIDATES = 32  # for 12
CANDIDATES_PER_CELL = 3  # of one emotion in one folder, for 1
IMAGE_COLUMNS = ("image_uri", "status", "error", "labeled_at")
FACE_COLUMNS = ("image_uri", "bbox_x", "bbox_y", "bbox_width", "bbox_height", "emotion", "confidence", "labeled_at")

_NO_IMAGES: Int64Array = np.zeros(len(STATUSES), np.int64)


def summarize(run: Run, bases: Iterable[str] = ()) -> RunSummary:
    """Read both tables of a published run.

    Args:
        run: A run whose tables are published.
        bases: Folders of earlier runs. The names of this run's folders begin where all of these and its own images lie, so that
            the same folder has the same name.

    Returns:
        The sums, with rows of faces that may be shown.
    """
    images = _ImageCounter(common_folder([_own_base(run), *bases]))
    for batch in read_batches(run, "images", IMAGE_COLUMNS):
        images.add(batch)
    summary = images.finish()
    faces = _FaceCounter(summary)
    for batch in read_batches(run, "faces", FACE_COLUMNS):
        faces.add(batch)
    faces.finish()
    return summary


def common_folder(addresses: Iterable[str]) -> str:
    """The deepest folder that all lie in, with its slash; empty where there is none."""
    shared = os.path.commonprefix(list(addresses))  # noqa: RUF071 - of characters, cut at a slash: addresses are no paths
    return shared[: shared.rfind("/") + 1]


def read_batches(run: Run, table: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows of one of the run's tables, in the order of their files."""
    for file in _files(run, table):
        for group in range(file.num_row_groups):
            yield from file.iter_batches(ROWS_PER_BATCH, row_groups=[group], columns=list(columns))


def _files(run: Run, table: str) -> Iterator[pq.ParquetFile]:
    for number in itertools.count():
        file = table_file(run, table, number)
        if run.storage.stat(file) is None:
            return
        with run.storage.open(file) as opened:
            yield pq.ParquetFile(opened)


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


class _ImageCounter:
    """Counts the rows of `images`. Where there are too many folders, it counts fewer levels and then the largest folders only."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.levels = MAX_LEVELS
        self.time_step = 1
        self.statuses: dict[str, Int64Array] = {}
        self.failures: dict[tuple[str, str, str], tuple[int, str]] = {}
        self.times: Counter[int] = Counter()

    def add(self, batch: pa.RecordBatch) -> None:
        codes, names = _folders_of(batch["image_uri"], self.base, self.levels)
        statuses = np.asarray(pc.index_in(batch["status"], pa.array(STATUSES)).fill_null(0), np.int64)
        counts = np.bincount(codes * len(STATUSES) + statuses, minlength=len(names) * len(STATUSES)).reshape(-1, len(STATUSES))
        for name, row in zip(names, counts, strict=True):
            self.statuses[name] = self.statuses.get(name, _NO_IMAGES) + row
        self._add_failures(batch, codes, names)
        self._add_times(batch["labeled_at"])
        self._limit_folders()
        self._limit_failures()
        self._limit_times()

    def _add_failures(self, batch: pa.RecordBatch, codes: Int64Array, names: list[str]) -> None:
        failed = pc.is_valid(batch["error"])
        if not pc.any(failed).as_py():
            return
        reasons = pc.replace_substring_regex(batch["error"].filter(failed), "[0-9]+([.,][0-9]+)*", "#")
        rows = pa.table(
            {
                "folder": pa.array(codes).filter(failed),
                "status": batch["status"].filter(failed),
                "reason": pc.utf8_slice_codeunits(reasons, 0, MAX_REASON_LENGTH),
                "image_uri": batch["image_uri"].filter(failed),
            }
        )
        keys = ["folder", "status", "reason"]
        groups = rows.group_by(keys, use_threads=False).aggregate([("image_uri", "count"), ("image_uri", "first")])
        for row in groups.to_pylist():
            key = (names[row["folder"]], row["status"], row["reason"])
            count, example = self.failures.get(key, (0, row["image_uri_first"]))
            self.failures[key] = count + row["image_uri_count"], example

    def _add_times(self, labeled_at: pa.Array) -> None:
        seconds = np.asarray(labeled_at.cast(pa.int64()), np.int64) // (1_000_000 * self.time_step) * self.time_step
        self.times.update(dict(zip(*(part.tolist() for part in np.unique(seconds, return_counts=True)), strict=True)))

    def _limit_folders(self) -> None:
        if self.levels > 1 and len(self.statuses) > MAX_FOLDERS_KEPT:
            self.levels = 1
            statuses: dict[str, Int64Array] = {}
            for name, row in self.statuses.items():
                statuses[cut(name, 1)] = statuses.get(cut(name, 1), _NO_IMAGES) + row
            self.statuses = statuses
        if len(self.statuses) > MAX_FOLDERS_COUNTED:
            # The rows are sorted by address: a folder that is over gets no more images, and none of the largest is lost.
            names = sorted((name for name in self.statuses if name != OTHERS), key=lambda name: -int(self.statuses[name].sum()))
            for name in names[MAX_FOLDERS_COUNTED // 2 :]:
                self.statuses[OTHERS] = self.statuses.get(OTHERS, _NO_IMAGES) + self.statuses.pop(name)

    def _limit_failures(self) -> None:
        """Keep the half that counts most; the rest is one group for each status."""
        if len(self.failures) <= MAX_FAILURE_GROUPS:
            return
        ordered = sorted(self.failures.items(), key=lambda item: -item[1][0])
        self.failures = dict(ordered[: MAX_FAILURE_GROUPS // 2])
        for (_, status, _), (count, example) in ordered[MAX_FAILURE_GROUPS // 2 :]:
            key = (OTHERS, status, "other reasons")
            known, first_example = self.failures.get(key, (0, example))
            self.failures[key] = known + count, first_example

    def _limit_times(self) -> None:
        if len(self.times) > MAX_TIMES:
            self.time_step *= 10
            times: Counter[int] = Counter()
            for second, count in self.times.items():
                times[second // self.time_step * self.time_step] += count
            self.times = times

    def finish(self) -> RunSummary:
        folders = keep_largest({name: FolderCounts(row) for name, row in self.statuses.items()}, MAX_FOLDERS_KEPT)
        groups = [FailureGroup(*key, *value) for key, value in self.failures.items()]
        return RunSummary(self.base, self.levels, folders, merge_failures(groups, folders, self.levels), self.times, self.time_step)


class _FaceCounter:
    """Counts the rows of `faces` into the folders that have images, and picks faces to show."""

    def __init__(self, summary: RunSummary) -> None:
        self.summary = summary
        self.slots = {name: slot for slot, name in enumerate(summary.folders)}
        self.counts = np.zeros((len(self.slots) + 1, len(LABELS), BINS), np.int64)
        self.best: dict[str, list[tuple[float, dict[str, Any]]]] = {}
        self.of_cells: dict[int, list[tuple[float, dict[str, Any]]]] = {}
        self.limits = np.full((len(self.slots) + 1) * len(LABELS), np.inf)  # draws that are not below change nothing
        self.generator = np.random.default_rng(0)

    def add(self, batch: pa.RecordBatch) -> None:
        codes, names = _folders_of(batch["image_uri"], self.summary.base, self.summary.levels)
        rest = self.slots.get(OTHERS, len(self.slots))
        slots = np.array([self.slots.get(name, rest) for name in names], np.int64)[codes]
        emotions = np.asarray(pc.index_in(batch["emotion"], pa.array(LABELS)).fill_null(len(LABELS) - 1), np.int64)
        confidences = np.nan_to_num(np.asarray(batch["confidence"], np.float64))
        bins = np.clip((confidences * BINS).astype(np.int64), 0, BINS - 1)
        places = (slots * len(LABELS) + emotions) * BINS + bins
        self.counts += np.bincount(places, minlength=self.counts.size).reshape(self.counts.shape)
        draws = self.generator.random(len(batch))
        for code in np.unique(emotions).tolist():
            self._pick(LABELS[code], np.where(emotions == code, draws, np.inf), batch, CANDIDATES_PER_EMOTION)
        self._pick("", confidences, batch, UNCERTAIN_CANDIDATES)
        self._pick_of_cells(slots * len(LABELS) + emotions, draws, batch)

    def _pick_of_cells(self, cells: Int64Array, draws: Float64Array, batch: pa.RecordBatch) -> None:
        """Keep the rows of the smallest draws for each emotion of each folder."""
        order = np.lexsort((draws, cells))
        order = order[draws[order] < self.limits[cells[order]]]
        ordered = cells[order]
        ranks = np.arange(len(order)) - np.searchsorted(ordered, ordered)
        places = order[ranks < CANDIDATES_PER_CELL]
        for cell, draw, row in zip(cells[places].tolist(), draws[places].tolist(), batch.take(pa.array(places)).to_pylist(), strict=True):
            best = self.of_cells.setdefault(cell, [])
            best.append((draw, row))
            best.sort(key=lambda pair: pair[0])
            del best[CANDIDATES_PER_CELL:]
            if len(best) == CANDIDATES_PER_CELL:
                self.limits[cell] = best[-1][0]

    def _pick(self, group: str, keys: Float64Array, batch: pa.RecordBatch, limit: int) -> None:
        """Keep the rows of the smallest keys, one an image."""
        best = self.best.setdefault(group, [])
        places = np.flatnonzero(keys < (best[-1][0] if len(best) == limit else np.inf))
        if len(places) > limit:
            places = places[np.argpartition(keys[places], limit)[:limit]]
        if not len(places):
            return
        best += zip(keys[places].tolist(), batch.take(pa.array(places)).to_pylist(), strict=True)
        best.sort(key=lambda pair: pair[0])
        alone = {row["image_uri"]: (key, row) for key, row in reversed(best)}
        self.best[group] = sorted(alone.values(), key=lambda pair: pair[0])[:limit]

    def finish(self) -> None:
        for name, slot in self.slots.items():
            self.summary.folders[name].faces += self.counts[slot]
        if self.counts[len(self.slots)].any():
            self.summary.folders.setdefault(OTHERS, FolderCounts()).faces += self.counts[len(self.slots)]
        self.summary.candidates = {group: [row for _, row in best] for group, best in self.best.items()}
        self.summary.others = [row for _, best in sorted(self.of_cells.items()) for _, row in best]
