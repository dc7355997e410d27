"""What runs leave for later ones to compare with: a small file of sums each."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


@dataclass(frozen=True)
class RunAggregates:
    """The sums of one run: images by status, faces by emotion, and the latter by folder (its whole address)."""

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


def emotions_by_folder(earlier: Iterable[RunAggregates], summary: RunSummary) -> dict[str, Counter[str]]:
    """Faces of earlier runs by emotion, for each folder of `summary`.

    An earlier run may have counted at other levels: what cannot be told apart there is left out.
    """
    sums: dict[str, Counter[str]] = {name: Counter() for name in summary.folders if name != OTHERS}
    for record in earlier:
        for address, counts in record.folders.items():
            if not address.startswith(summary.base):
                continue
            below = address[len(summary.base) :]
            as_fine = record.base == summary.base and record.levels >= summary.levels
            name = cut(below, summary.levels)
            if name in sums and (as_fine or below.count("/") >= summary.levels):
                sums[name].update(counts)
    return sums


def add_up(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    """The sums of several counts by name."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return total
