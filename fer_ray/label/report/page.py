"""The page about a labeling run: one HTML file with everything in it, of a size that does not grow with the run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fer_ray.label.outcome import PAGE_FILE, judge, report_address
from fer_ray.label.report.aggregates import RunAggregates, aggregate, read_earlier_runs, write_aggregates
from fer_ray.label.report.content import MAX_FOLDERS, ReportContent, RunReport, image_link
from fer_ray.label.report.index import INDEX_FILE, write_index
from fer_ray.label.report.nightly import Change, compare_nights
from fer_ray.label.report.samples import FaceSample, read_samples
from fer_ray.label.report.summarize import summarize
from fer_ray.label.report.summary import OTHERS, RunSummary
from fer_ray.label.run import Run
from fer_ray.reporting.html import render

SAMPLES_PER_EMOTION = 6
UNCERTAIN_SAMPLES = 12


@dataclass(frozen=True)
class Measured:
    """What a run found, what runs before it of the same model did, and what moved between them."""

    summary: RunSummary
    earlier: list[RunAggregates]
    change: Change


def measure(run: Run, row: Mapping[str, Any]) -> Measured:
    """Sum up a run whose tables are written, and compare it with earlier ones.

    Raises:
        StorageError: the store cannot be read.
    """
    earlier = read_earlier_runs(run, row)
    summary = summarize(run, [one.base for one in earlier if one.input_uri == row["input_uri"] and one.base])
    return Measured(summary, earlier, compare_nights(summary, earlier))


def write_report(run: Run, row: Mapping[str, Any], measured: Measured | None = None) -> str:
    """Write the page about a committed run, and that about all runs anew.

    Args:
        run: The run, whose tables are published.
        row: Its row in `runs`.
        measured: What `measure` gave, where it was called before.

    Returns:
        The address of the page.

    Raises:
        StorageError: the store cannot be read or written.
    """
    measured = measured or measure(run, row)
    summary, earlier = measured.summary, measured.earlier
    write_aggregates(run, aggregate(run, row, summary))
    samples = _read_samples(run, summary) if run.config.thumbnails else None
    address = report_address(run)
    report = RunReport(row, summary, earlier, samples, alarm=judge(run.config, row)[1])
    run.storage.write(address, render_page(report).encode())
    write_index(run.storage, run.output)
    return address


def _read_samples(run: Run, summary: RunSummary) -> dict[str, list[FaceSample]]:
    """Samples by emotion, those of the lowest confidence, and one for each emotion of each folder that has none among these."""
    wanted = {group: SAMPLES_PER_EMOTION if group else UNCERTAIN_SAMPLES for group in summary.candidates}
    samples = read_samples(run, summary.candidates, wanted)
    shown = summary.limit_folders(MAX_FOLDERS)
    cells: dict[str, list[dict[str, Any]]] = {}
    for row in summary.others:
        cells.setdefault(f"{shown.folder_of(row['image_uri'])} {row['emotion']}", []).append(row)
    for one in itertools.chain.from_iterable(samples.values()):
        cells.pop(f"{shown.folder_of(one.image_uri)} {one.emotion}", None)
    others = read_samples(run, cells, dict.fromkeys(cells, 1)) if cells else {}
    return {**samples, OTHERS: list(itertools.chain.from_iterable(others.values()))}


def render_page(report: RunReport) -> str:
    """The page; that of a run without images is short, and nothing in it runs."""
    content = ReportContent(report)
    previous = [(f"Previous run: {one.run_id}", f"../{quote(one.run_id, safe='')}/{PAGE_FILE}") for one in report.earlier[-1:]]
    return render(
        "fer_ray.label.report",
        "run.html.j2",
        styles=["run.css"],
        scripts=["run.js"] if content.total.images else [],
        title=f"Labeling run {report.row['run_id']}",
        links=[("All runs", f"../{INDEX_FILE}"), *previous],
        run=content,
        image_link=image_link,
    )
