"""The page about all runs of an output: newest first, with failures and drift over time."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.errors import StorageError
from fer_ray.io.storage import Storage, join
from fer_ray.label.outcome import PAGE_FILE
from fer_ray.reporting.charts import Chart, Series, axis
from fer_ray.reporting.html import render
from fer_ray.schema import RUNS
from fer_ray.text import NO_BREAK_SPACE

INDEX_FILE = "index.html"
MAX_RUNS = 1000  # on the page
READER_THREADS = 16
_OLDEST = datetime.datetime.min.replace(tzinfo=datetime.UTC)


def write_index(storage: Storage, output: str) -> str:
    """Write the page about the runs that are committed.

    Returns:
        Its address.

    Raises:
        StorageError: the store cannot be read or written, or a row of `runs` cannot be read.
    """
    files = [entry for entry in storage.list_files(join(output, "runs")) if entry.size_bytes and entry.image_uri.endswith(".parquet")]
    files.sort(key=lambda entry: entry.modified_at or _OLDEST, reverse=True)
    rows = read_runs(storage, [entry.image_uri for entry in files[:MAX_RUNS]])
    pages = (PurePosixPath(entry.image_uri) for entry in storage.list_files(join(output, "reports")))
    reported = {page.parent.name for page in pages if page.name == PAGE_FILE}
    address = join(output, "reports", INDEX_FILE)
    storage.write(address, render_index(rows, reported, len(files) - len(rows)).encode())
    return address


def read_runs(storage: Storage, files: Iterable[str]) -> list[dict[str, Any]]:
    """The rows that lie in these files of `runs`, the newest first; None in the columns that the version of a row did not have.

    Raises:
        StorageError: one cannot be read.
    """

    def read(uri: str) -> dict[str, Any]:
        try:
            return {**dict.fromkeys(RUNS.names), **pq.read_table(pa.BufferReader(storage.read(uri))).to_pylist()[0]}
        except pa.ArrowException as error:
            raise StorageError(f"The table file {uri} cannot be read: restore it, or remove all files of that run.") from error

    with ThreadPoolExecutor(READER_THREADS) as threads:
        return sorted(threads.map(read, files), key=lambda row: (row["finished_at"], row["run_id"]), reverse=True)


def render_index(rows: Sequence[Mapping[str, Any]], reported: Iterable[str], left_out: int = 0) -> str:
    """The page.

    Args:
        rows: Rows of `runs`, the newest first.
        reported: The runs that have a report beside it.
        left_out: How many older runs there are.
    """
    known = set(reported)
    runs = []
    for row in rows:
        looked_at = row["images_ok"] + row["images_no_face"]
        link = f"{quote(row['run_id'], safe='')}/{PAGE_FILE}" if row["run_id"] in known else ""
        runs.append({**row, "looked_at": looked_at, "tried": looked_at + row["images_failed"], "link": link})
    shares = [(_day(one), one["images_failed"] / one["tried"]) for one in runs[::-1] if one["tried"]]
    moves = [(_day(one), one["drift_psi"]) for one in runs[::-1] if one["drift_psi"] is not None]
    charts = [
        _course("Images that failed", shares, lambda value: f"{100 * value:.3g}{NO_BREAK_SPACE}%"),
        _course("Drift (PSI)", moves, lambda value: f"{value:.3g}"),
    ]
    return render(
        "fer_ray.label.report",
        "index.html.j2",
        styles=["charts.css", "run.css"],
        scripts=["base.js"],
        title="Labeling runs",
        runs=runs,
        left_out=left_out,
        charts=[chart for chart in charts if chart],
    )


def _day(row: Mapping[str, Any]) -> float:
    return float(row["finished_at"].timestamp()) / 86400


def _date(day: float) -> str:
    return f"{datetime.datetime.fromtimestamp(day * 86400, datetime.UTC):%d %b}"


def _course(title: str, points: Sequence[tuple[float, float]], words: Callable[[float], str]) -> Chart | None:
    """A figure over time; None with less than two points."""
    if len(points) < 2:
        return None
    across = axis((day for day, _ in points), words=_date, whole=True)
    across = replace(across, ticks=across.ticks[:: 1 + len(across.ticks) // 5])  # dates are wide
    up = axis((value for _, value in points), words=words, low=0.0)
    alt = f"{title} by run, from {words(points[0][1])} in the oldest to {words(points[-1][1])} in the newest"
    return Chart(title, alt, across, up, [Series("", points), Series("", points, kind="dots")])
