"""What the page about a labeling run shows, worked out as plain values for its template."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fer_ray.io.archives import names_inside
from fer_ray.label.report.aggregates import RunAggregates, add_up, history_by_folder
from fer_ray.label.report.drift import MIN_FACES, MOVED, PSI_MOVED, PSI_WATCH, Comparison
from fer_ray.label.report.samples import FaceSample
from fer_ray.label.report.summary import BINS, LABELS, OTHERS, STATUSES, FailureGroup, FolderCounts, RunSummary
from fer_ray.reporting.html import link
from fer_ray.text import NO_BREAK_SPACE

MAX_FOLDERS = 50
MAX_DAYS = 40
MAX_FAILURE_ROWS = 200
MAX_NAMED_MOVES = 6
MAX_NAMED_FOLDERS = 6  # of one reason
MAX_BARS = 120
MIN_BARS = 4  # fewer steps show no course
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)  # seconds


@dataclass(frozen=True)
class RunReport:
    """What the page shows: the run's row in `runs`, its sums, the earlier runs of the same model, and pictures of faces.

    `samples` holds those of each emotion, under an empty name the least certain ones, and under OTHERS those of folders whose
    emotions have none among these; None where none were wanted.
    `alarm` says why the run is not done without more ado; it is empty where it is.
    """

    row: Mapping[str, Any]
    summary: RunSummary
    earlier: Sequence[RunAggregates] = ()
    samples: Mapping[str, Sequence[FaceSample]] | None = field(default_factory=dict)
    alarm: str = ""


@dataclass(frozen=True)
class Folder:
    """A folder of the run; filters know it by its number."""

    number: int
    name: str
    counts: FolderCounts
    faces: Comparison


@dataclass(frozen=True)
class Day:
    """The runs of one date, beside those of all the days before."""

    date: datetime.date
    runs: int
    is_this_run: bool
    faces: Comparison


@dataclass(frozen=True)
class Bar:
    """One of several upright bars: a value, and what it is for."""

    value: float
    label: str


class ReportContent:
    """The values of the page by the names that its template uses."""

    def __init__(self, report: RunReport) -> None:
        self.row, self.earlier, self.samples, self.alarm = report.row, report.earlier, report.samples, report.alarm
        self.summary = report.summary.limit_folders(MAX_FOLDERS)
        self.total = self.summary.total
        self.faces = Comparison(self.total.emotions, add_up(one.emotions for one in report.earlier))
        self.emotions = [name for name in LABELS if self.faces.now.get(name) or self.faces.before.get(name)]
        self.has_others, self.others = OTHERS in self.summary.folders, OTHERS
        self.limits = {
            "folders": MAX_FOLDERS,
            "days": MAX_DAYS,
            "failures": MAX_FAILURE_ROWS,
            "moves": MAX_NAMED_MOVES,
            "named": MAX_NAMED_FOLDERS,
        }
        self.psi = {"min_faces": MIN_FACES, "watch": PSI_WATCH, "moved": PSI_MOVED}

    @property
    def seconds(self) -> float:
        return float((self.row["finished_at"] - self.row["started_at"]).total_seconds())

    @property
    def settings(self) -> str:
        return json.dumps(json.loads(self.row["config_json"])["config"], indent=2)

    @property
    def earlier_dates(self) -> list[datetime.date]:
        """The first and the last run date of the earlier runs."""
        dates = [one.run_date for one in self.earlier]
        return sorted({min(dates), max(dates)})

    @property
    def has_other_detectors(self) -> bool:
        return any(one.detector_version != self.row["detector_version"] for one in self.earlier)

    @cached_property
    def folders(self) -> list[Folder]:
        history = history_by_folder(self.earlier, self.summary)
        before = {name: add_up(night.emotions for night in nights) for name, nights in history.items()}
        return [
            Folder(number, _folder_name(name), counts, Comparison(counts.emotions, before.get(name, Counter())))
            for number, (name, counts) in enumerate(self.summary.folders.items())
        ]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.summary.folders)}

    @property
    def moved(self) -> list[tuple[str, Comparison]]:
        """What moved since the earlier runs: the whole run, then folders, the largest index first."""
        folders = sorted(((one.name, one.faces) for one in self.folders), key=lambda part: -(part[1].drift.index or 0.0))
        return [part for part in [("all folders together", self.faces), *folders] if part[1].drift.level]

    @property
    def has_moved(self) -> bool:
        """Whether something moved for certain, not only perhaps."""
        return any(faces.drift.level == MOVED for _, faces in self.moved)

    @property
    def confidence(self) -> list[Bar]:
        edges = [f"{100 * number / BINS:.0f}" for number in range(BINS + 1)]
        counts = self.total.faces.sum(axis=0).tolist()
        return [Bar(n, f"{edges[i]} to {edges[i + 1]}{NO_BREAK_SPACE}%") for i, n in enumerate(counts)]

    @property
    def sample_groups(self) -> list[tuple[str, Sequence[FaceSample]]]:
        """Samples by emotion, under an empty name the least certain, and those that are for a choice of folder alone."""
        return [(name, self.samples[name]) for name in (*LABELS, "", OTHERS) if self.samples and self.samples.get(name)]

    @property
    def days(self) -> list[Day]:
        """The newest day first."""
        today = self.row["run_date"]
        runs: dict[datetime.date, list[Mapping[str, int]]] = {}
        for date, counts in [*((one.run_date, one.emotions) for one in self.earlier), (today, self.total.emotions)]:
            runs.setdefault(date, []).append(counts)
        sums = {date: add_up(runs[date]) for date in sorted(runs)}
        days, before = [], Counter[str]()
        for date, counts in sums.items():
            days.append(Day(date, len(runs[date]), date == today, Comparison(counts, before)))
            before = before + counts
        return days[::-1]

    @property
    def statuses(self) -> list[tuple[str, int, int]]:
        """For each status the images, and those of earlier runs."""
        before = add_up(one.statuses for one in self.earlier)
        return [(name, n, before.get(name, 0)) for name, n in zip(STATUSES, self.total.statuses.tolist(), strict=True)]

    @property
    def failures(self) -> list[dict[str, Any]]:
        """Each reason once, the commonest first, with its folders, that with the most images first."""
        reasons: dict[tuple[str, str], list[FailureGroup]] = {}
        for one in self.summary.failures:
            reasons.setdefault((one.reason, one.status), []).append(one)
        rows = [
            {
                "reason": reason,
                "images": sum(one.images for one in groups),
                "status": status,
                "folders": [(self._numbers.get(one.folder, ""), _folder_name(one.folder), one.images) for one in groups],
                "example": groups[0].example[len(self.summary.base) :],
                "link": image_link(groups[0].example),
            }
            for (reason, status), groups in reasons.items()
        ]
        return sorted(rows, key=lambda row: -row["images"])

    @property
    def queries(self) -> dict[str, str]:
        """SQL that gives the figures again from the views, by the section that shows them."""
        count = "count(*) AS {0}, round(100e0 * count(*) / sum(count(*)) OVER (), 1) AS percent"
        where = f"WHERE run_id = '{self.row['run_id']}'"  # letters, digits and dots
        return {
            "emotions": f"SELECT emotion, {count.format('faces')}\nFROM faces {where}\nGROUP BY emotion ORDER BY faces DESC",
            "folders": "SELECT images.folder, emotion, count(*) AS faces\nFROM images JOIN faces USING (image_id, run_id)\n"
            f"{where}\nGROUP BY images.folder, emotion ORDER BY images.folder, faces DESC",
            "failures": f"SELECT status, error, {count.format('images')}\nFROM images {where}\nGROUP BY status, error ORDER BY images DESC",
        }

    @property
    def throughput(self) -> dict[str, Any] | None:
        """Images a minute over the time of the run; None where it was too short for a picture."""
        times = self.summary.times
        if not times:
            return None
        first, last = min(times), max(times)
        fitting = (step for step in _STEPS if step >= self.summary.time_step and (last - first) / step < MAX_BARS)
        step = next(fitting, (last - first) // MAX_BARS + 1)
        counts = [0] * ((last - first) // step + 1)
        for second, n in times.items():
            counts[(second - first) // step] += n
        moments = [datetime.datetime.fromtimestamp(first + number * step, datetime.UTC) for number in range(len(counts))]
        bars = [Bar(n * 60 / step, f"{moment:%Y-%m-%d %H:%M:%S}") for n, moment in zip(counts, moments, strict=True)]
        end = datetime.datetime.fromtimestamp(last, datetime.UTC)
        return {"bars": bars, "step": step, "start": moments[0], "end": end} if len(bars) >= MIN_BARS else None

    @property
    def values(self) -> dict[str, Any]:
        """What the filters of the page work on."""
        places = [LABELS.index(name) for name in self.emotions]
        return {
            "emotions": self.emotions,
            "statuses": STATUSES,
            "bins": BINS,
            "earlier": [self.faces.before.get(name, 0) for name in self.emotions],
            "folders": [
                {
                    "statuses": one.counts.statuses.tolist(),
                    "faces": [one.counts.faces[place].tolist() for place in places],
                    "earlier": [one.faces.before.get(name, 0) for name in self.emotions],
                }
                for one in self.folders
            ],
        }

    def folder_number(self, image_uri: str) -> int:
        return self._numbers[self.summary.folder_of(image_uri)]


def image_link(image_uri: str) -> str:
    """Where a browser can open an image; empty where it cannot, as inside of an archive or in S3."""
    return "" if names_inside(image_uri) else link(image_uri)


def _folder_name(folder: str) -> str:
    return "(all others)" if folder == OTHERS else folder.rstrip("/") or "(no folder below)"
