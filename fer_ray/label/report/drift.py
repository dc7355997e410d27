"""What runs leave for later ones to compare with: a small file of sums each, and how far emotions moved since."""

from __future__ import annotations

import datetime
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from scipy import special

from fer_ray.errors import StorageError
from fer_ray.io.storage import join
from fer_ray.label.plan import Run
from fer_ray.label.report.summary import LABELS, OTHERS, STATUSES, RunFigures, cut

AGGREGATES_FILE = "aggregates.json"
FORMAT_VERSION = 1
MOST_RUNS, MOST_BYTES, READERS = 90, 4 << 20, 8
NOTABLE, LARGE = 0.1, 0.2
LEAST_FACES = 200
MOVED, WATCHED = "moved", "watched"
_SMOOTHING = 0.5
BY_CHANCE = 1e-3  # how often runs alike differ by more than what counts as a move


@dataclass(frozen=True)
class Drift:
    """A stability index, None with too few faces, and MOVED, WATCHED or nothing."""

    index: float | None
    level: str


@dataclass(frozen=True)
class RunRecord:
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
    def from_json(cls, content: bytes) -> RunRecord:
        """The record as it was written.

        Raises:
            ValueError: it is none, or one of a later version.
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
            raise ValueError(f"it does not read as sums of a run ({type(error).__name__} {error})") from error


def _counts(values: Any, names: Sequence[str]) -> dict[str, int]:
    counts = {name: int(values[name]) for name in names if name in values}
    if min(counts.values(), default=0) < 0:
        raise ValueError("a count is negative")
    return counts


def record_of(run: Run, row: Mapping[str, Any], figures: RunFigures) -> RunRecord:
    """What later runs will read of this one."""
    total = figures.total
    return RunRecord(
        run_id=run.run_id,
        run_date=row["run_date"],
        finished_at=row["finished_at"],
        model_version=row["model_version"],
        detector_version=row["detector_version"],
        input_uri=row["input_uri"],
        base=figures.base,
        levels=figures.levels,
        statuses={name: int(n) for name, n in zip(STATUSES, total.statuses, strict=True) if n},
        emotions=total.emotions,
        folders={figures.base + name: one.emotions for name, one in figures.folders.items() if name != OTHERS and one.emotions},
    )


def write_record(run: Run, record: RunRecord) -> None:
    """Leave the sums beside the report."""
    run.storage.write(join(run.output, "reports", run.run_id, AGGREGATES_FILE), record.to_json())


def earlier_runs(run: Run, row: Mapping[str, Any]) -> list[RunRecord]:
    """The committed runs of the same model that were finished before this one, the oldest first.

    Of the newest reports only, and only runs that left their sums: those that were committed before there were reports
    do not count.
    """
    committed = {PurePosixPath(entry.image_uri).stem for entry in run.storage.walk(join(run.output, "runs"))} - {run.run_id}
    found = [
        (entry.modified_at.timestamp() if entry.modified_at else 0.0, entry.image_uri)
        for entry in run.storage.walk(join(run.output, "reports"))
        if PurePosixPath(entry.image_uri).name == AGGREGATES_FILE and PurePosixPath(entry.image_uri).parent.name in committed
    ]
    newest = [uri for _, uri in sorted(found, reverse=True)[:MOST_RUNS]]
    with ThreadPoolExecutor(READERS) as pool:
        records = [record for record in pool.map(lambda uri: _read(run, uri), newest) if record]
    records = [one for one in records if one.model_version == row["model_version"] and one.finished_at < row["finished_at"]]
    return sorted(records, key=lambda one: (one.finished_at, one.run_id))


def _read(run: Run, uri: str) -> RunRecord | None:
    """None where the file is gone or broken: a comparison can do without one run."""
    try:
        return RunRecord.from_json(run.storage.read(uri, MOST_BYTES))
    except (FileNotFoundError, StorageError, ValueError):
        return None


def emotions_by_folder(earlier: Iterable[RunRecord], figures: RunFigures) -> dict[str, Counter[str]]:
    """Faces of earlier runs by emotion, for each folder of `figures`.

    An earlier run may have counted at other levels: what cannot be told apart there is left out.
    """
    sums: dict[str, Counter[str]] = {name: Counter() for name in figures.folders if name != OTHERS}
    for record in earlier:
        for address, counts in record.folders.items():
            if not address.startswith(figures.base):
                continue
            below = address[len(figures.base) :]
            as_fine = record.base == figures.base and record.levels >= figures.levels
            name = cut(below, figures.levels)
            if name in sums and (as_fine or below.count("/") >= figures.levels):
                sums[name].update(counts)
    return sums


def stability_index(now: Mapping[str, int], before: Mapping[str, int]) -> float | None:
    """Population stability index of two sets of counts, sum of (p - q) ln(p / q); None where either has too few faces.

    Half a face is added to every count, so that an emotion that is missing on one side has a share (Jeffreys' prior). Below
    0.1 is called stable and above 0.2 moved (Siddiqi, Credit Risk Scorecards, 2006).
    """
    faces, faces_before = sum(now.values()), sum(before.values())
    if min(faces, faces_before) < LEAST_FACES:
        return None
    names = [name for name in LABELS if now.get(name) or before.get(name)]
    extra = _SMOOTHING * len(names)
    shares = [
        ((now.get(name, 0) + _SMOOTHING) / (faces + extra), (before.get(name, 0) + _SMOOTHING) / (faces_before + extra)) for name in names
    ]
    return sum((p - q) * math.log(p / q) for p, q in shares)


def drift_of(now: Mapping[str, int], before: Mapping[str, int]) -> Drift:
    """How far the shares moved, and whether that is to be looked at.

    By chance alone the index is about (1/n + 1/m) chi-squared with one degree of freedom less than there are emotions
    (Yurdakul, Statistical Properties of Population Stability Index, 2018); what that reaches once in a thousand times counts
    as none.
    """
    index = stability_index(now, before)
    if index is None:
        return Drift(None, "")
    freedom = max(1, sum(1 for name in LABELS if now.get(name) or before.get(name)) - 1)
    by_chance = (1 / sum(now.values()) + 1 / sum(before.values())) * float(
        special.chdtri(freedom, BY_CHANCE)
    )  # the value that chi-squared exceeds so often
    level = MOVED if index > LARGE else WATCHED if index > NOTABLE else ""
    return Drift(index, level if index > by_chance else "")


def pooled(records: Iterable[RunRecord], what: str = "emotions") -> Counter[str]:
    """The sum over several runs of their `emotions` or `statuses`."""
    total: Counter[str] = Counter()
    for record in records:
        total.update(getattr(record, what))
    return total
