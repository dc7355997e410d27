"""What runs leave for later ones to compare with: a small file of sums each."""

from __future__ import annotations

import datetime
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from fer_ray.errors import StorageError
from fer_ray.io.storage import join
from fer_ray.label.report.summary import LABELS, OTHERS, STATUSES, RunSummary, cut
from fer_ray.label.run import Run

AGGREGATES_FILE = "aggregates.json"
FORMAT_VERSION = 1
MAX_RUNS = 90  # newest reports that a run is compared with: a quarter of a year of nights
MAX_FILE_BYTES = 4 << 20
READER_THREADS = 8
MIN_NIGHTS = 5  # of a folder, before what is usual there is known
_NUMBER = re.compile("[0-9]+")


@dataclass
class FolderNight:
    """What one run found in a folder: faces by emotion, and the images that it looked at, 0 where that is not known."""

    emotions: Counter[str] = field(default_factory=Counter)
    images: int = 0

    def add(self, other: FolderNight) -> None:
        self.emotions.update(other.emotions)
        self.images += other.images


@dataclass(frozen=True)
class RunAggregates:
    """The sums of one run: images by status, faces by emotion, and the latter by folder (its whole address).

    `images` counts those that were looked at, by folder; it is empty in sums that 0.1 left.
    """

    run_id: str
    run_date: datetime.date
    finished_at: datetime.datetime
    model_version: str
    detector_version: str
    input_uri: str
    base: str
    levels: int
    statuses: dict[str, int]
    emotions: dict[str, int]
    folders: dict[str, dict[str, int]]
    images: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> bytes:
        content = {**vars(self), "format_version": FORMAT_VERSION}
        content |= {"run_date": self.run_date.isoformat(), "finished_at": self.finished_at.isoformat()}
        return (json.dumps(content, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> RunAggregates:
        """The sums as they were written.

        Raises:
            ValueError: the file is broken, or of a later version.
        """
        try:
            read = json.loads(content)
            if read["format_version"] != FORMAT_VERSION:
                raise ValueError(f"its format is {read['format_version']}")
            return cls(
                str(read["run_id"]),
                datetime.date.fromisoformat(read["run_date"]),
                datetime.datetime.fromisoformat(read["finished_at"]).astimezone(datetime.UTC),
                str(read["model_version"]),
                str(read["detector_version"]),
                str(read["input_uri"]),
                str(read["base"]),
                int(read["levels"]),
                _counts(read["statuses"], STATUSES),
                _counts(read["emotions"], LABELS),
                {str(folder): _counts(counts, LABELS) for folder, counts in read["folders"].items()},
                {str(folder): int(images) for folder, images in read.get("images", {}).items()},
            )
        except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise ValueError(f"it does not hold the sums of a run ({type(error).__name__} {error})") from error


def _counts(values: Any, names: Sequence[str]) -> dict[str, int]:
    counts = {name: int(values[name]) for name in names if name in values}
    if min(counts.values(), default=0) < 0:
        raise ValueError("a count is negative")
    return counts


def aggregate(run: Run, row: Mapping[str, Any], summary: RunSummary) -> RunAggregates:
    """What later runs will read of this one."""
    total = summary.total
    return RunAggregates(
        run_id=run.run_id,
        run_date=row["run_date"],
        finished_at=row["finished_at"],
        model_version=row["model_version"],
        detector_version=row["detector_version"],
        input_uri=row["input_uri"],
        base=summary.base,
        levels=summary.levels,
        statuses={name: int(n) for name, n in zip(STATUSES, total.statuses, strict=True) if n},
        emotions=total.emotions,
        folders={summary.base + name: one.emotions for name, one in summary.folders.items() if name != OTHERS and one.emotions},
        images={summary.base + name: one.looked_at for name, one in summary.folders.items() if name != OTHERS and one.looked_at},
    )


def write_aggregates(run: Run, aggregates: RunAggregates) -> None:
    """Leave the sums beside the report."""
    run.storage.write(join(run.output, "reports", run.run_id, AGGREGATES_FILE), aggregates.to_json())


def read_earlier_runs(run: Run, row: Mapping[str, Any]) -> list[RunAggregates]:
    """The committed runs of the same model that were finished before this one, the oldest first.

    Of the newest reports only, and only runs that left their sums: those that were committed before there were reports
    do not count.
    """
    committed = {PurePosixPath(entry.image_uri).stem for entry in run.storage.list_files(join(run.output, "runs"))} - {run.run_id}
    found = [
        (entry.modified_at.timestamp() if entry.modified_at else 0.0, entry.image_uri)
        for entry in run.storage.list_files(join(run.output, "reports"))
        if PurePosixPath(entry.image_uri).name == AGGREGATES_FILE and PurePosixPath(entry.image_uri).parent.name in committed
    ]
    newest = [uri for _, uri in sorted(found, reverse=True)[:MAX_RUNS]]
    with ThreadPoolExecutor(READER_THREADS) as pool:
        records = [record for record in pool.map(lambda uri: _read(run, uri), newest) if record]
    records = [one for one in records if one.model_version == row["model_version"] and one.finished_at < row["finished_at"]]
    return sorted(records, key=lambda one: (one.finished_at, one.run_id))


def _read(run: Run, uri: str) -> RunAggregates | None:
    """None where the file is gone or broken: a comparison can do without one run."""
    try:
        return RunAggregates.from_json(run.storage.read(uri, MAX_FILE_BYTES))
    except (FileNotFoundError, StorageError, ValueError):
        return None


def history_by_folder(earlier: Iterable[RunAggregates], summary: RunSummary) -> dict[str, list[FolderNight]]:
    """What earlier runs found in each folder of `summary`, a night for each run that had it.

    An earlier run may have counted at other levels: what cannot be told apart there is left out.
    """
    nights: dict[str, list[FolderNight]] = {name: [] for name in summary.folders if name != OTHERS}
    for record in earlier:
        for name, night in _nights(record, summary).items():
            if name in nights:
                nights[name].append(night)
    return nights


def history_of_the_like(earlier: Sequence[RunAggregates], summary: RunSummary) -> dict[str, list[FolderNight]]:
    """The same, where folders that few runs had are compared with those whose names differ from theirs in numbers alone.

    So a folder of today, `2026/12/01`, has the days before as its history.
    """
    histories = history_by_folder(earlier, summary)
    patterns = {name: _NUMBER.sub("#", name) for name, nights in histories.items() if len(nights) < MIN_NIGHTS}
    alike: dict[str, list[FolderNight]] = {pattern: [] for name, pattern in patterns.items() if pattern != name}
    for record in earlier if alike else ():
        found: dict[str, FolderNight] = {}
        for name, night in _nights(record, summary).items():
            pattern = _NUMBER.sub("#", name)
            if pattern in alike:
                found.setdefault(pattern, FolderNight()).add(night)
        for pattern, night in found.items():
            alike[pattern].append(night)
    return {name: alike.get(patterns.get(name, ""), nights) for name, nights in histories.items()}


def _nights(record: RunAggregates, summary: RunSummary) -> dict[str, FolderNight]:
    """What an earlier run found, under the names that folders have in `summary`."""
    nights: dict[str, FolderNight] = {}
    as_fine = record.base == summary.base and record.levels >= summary.levels
    for address in {**record.folders, **record.images}:
        below = address[len(summary.base) :]
        if address.startswith(summary.base) and (as_fine or below.count("/") >= summary.levels):
            night = FolderNight(Counter(record.folders.get(address, {})), record.images.get(address, 0))
            nights.setdefault(cut(below, summary.levels), FolderNight()).add(night)
    return nights


def add_up(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    """The sums of several counts by name."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return total
