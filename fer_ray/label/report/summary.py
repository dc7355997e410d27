"""What a run found, in numbers whose size does not grow with the run: images and faces by folder, reasons of failures, times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fer_ray.emotions import EMOTIONS
from fer_ray.schema import Status
from fer_ray.typing import Int64Array

STATUSES = tuple(status.value for status in Status)
LABELS = (*EMOTIONS, "unknown")
OTHERS = "others"  # no folder is called so: theirs end in a slash, and the input's own is empty
BINS = 20  # of confidence, each 5 percentage points wide
MAX_LEVELS = 2  # of folders below the one that all images lie in
CandidateRows = list[dict[str, Any]]


@dataclass
class FolderCounts:
    """`statuses` (6,) counts images in the order of STATUSES, `faces` (9, 20) faces by LABELS and confidence."""

    statuses: Int64Array = field(default_factory=lambda: np.zeros(len(STATUSES), np.int64))
    faces: Int64Array = field(default_factory=lambda: np.zeros((len(LABELS), BINS), np.int64))

    def add(self, other: FolderCounts) -> None:
        self.statuses += other.statuses
        self.faces += other.faces

    @property
    def images(self) -> int:
        return int(self.statuses.sum())

    @property
    def failed(self) -> int:
        return sum(int(n) for status, n in zip(Status, self.statuses, strict=True) if status.is_failure)

    @property
    def looked_at(self) -> int:
        """Images that were decoded and searched for faces."""
        return int(self.statuses[STATUSES.index(Status.OK)] + self.statuses[STATUSES.index(Status.NO_FACE)])

    @property
    def emotions(self) -> dict[str, int]:
        return {name: int(n) for name, n in zip(LABELS, self.faces.sum(axis=1), strict=True) if n}


@dataclass(frozen=True)
class FailureGroup:
    """Images of one folder that failed for the same reason; numbers in it are `#`. `example` is one of their addresses."""

    folder: str
    status: str
    reason: str
    images: int
    example: str


@dataclass
class RunSummary:
    """What a run found. Folders are named by their path below `base`, at most `levels` deep; `OTHERS` holds what has no own entry.

    `times` counts images by the second, rounded down to `time_step`, in which they were labeled. `candidates` are rows of faces
    to show: for each emotion some at random, one an image, and under an empty name those of the lowest confidence. `others` are a
    few of each emotion of each folder.
    """

    base: str
    levels: int = MAX_LEVELS
    folders: dict[str, FolderCounts] = field(default_factory=dict)
    failures: list[FailureGroup] = field(default_factory=list)
    times: Counter[int] = field(default_factory=Counter)
    time_step: int = 1
    candidates: dict[str, CandidateRows] = field(default_factory=dict)
    others: CandidateRows = field(default_factory=list)

    @property
    def total(self) -> FolderCounts:
        whole = FolderCounts()
        for counts in self.folders.values():
            whole.add(counts)
        return whole

    def limit_folders(self, limit: int) -> RunSummary:
        """The same with at most so many folders and `OTHERS`: one level less where there are more, and then the largest."""
        levels = self.levels
        if levels > 1 and len(self.folders) - (OTHERS in self.folders) > limit:
            levels = 1
        folders: dict[str, FolderCounts] = {}
        for name, counts in self.folders.items():
            folders.setdefault(cut(name, levels), FolderCounts()).add(counts)
        folders = keep_largest(folders, limit)
        failures = merge_failures(self.failures, folders, levels)
        return RunSummary(self.base, levels, folders, failures, self.times, self.time_step, self.candidates, self.others)

    def folder_of(self, image_uri: str) -> str:
        """The entry of `folders` that an image of this run counts in."""
        folder = cut(image_uri[len(self.base) :], self.levels)
        return folder if folder in self.folders else OTHERS


def cut(folder: str, levels: int) -> str:
    """The first levels of a path, each with its slash; what follows the last slash is no level.

    `cut("2026/01/21/a.jpg", 2)` is `2026/01/`, and `cut("a.jpg", 2)` is empty.
    """
    end = 0
    for _ in range(levels):
        end = folder.find("/", end) + 1 or end
    return folder[:end] if folder != OTHERS else OTHERS


def keep_largest(folders: dict[str, FolderCounts], limit: int) -> dict[str, FolderCounts]:
    """The folders with the most images, in the order of their names, and then the sum of the rest as `OTHERS`."""
    names = sorted((name for name in folders if name != OTHERS), key=lambda name: (-folders[name].images, name))
    kept = {name: folders[name] for name in sorted(names[:limit])}
    rest = [folders[name] for name in folders if name not in kept]
    if rest:
        kept[OTHERS] = FolderCounts()
        for counts in rest:
            kept[OTHERS].add(counts)
    return kept


def merge_failures(failures: Iterable[FailureGroup], folders: Iterable[str], levels: int) -> list[FailureGroup]:
    """One group for each of `folders` (else OTHERS), status and reason, the largest first."""
    groups: dict[tuple[str, str, str], FailureGroup] = {}
    for one in failures:
        folder = cut(one.folder, levels)
        key = (folder if folder in folders else OTHERS, one.status, one.reason)
        known = groups.get(key)
        groups[key] = FailureGroup(*key, one.images + (known.images if known else 0), known.example if known else one.example)
    return sorted(groups.values(), key=lambda one: (-one.images, one.folder, one.status, one.reason))
