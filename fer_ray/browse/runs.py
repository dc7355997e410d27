"""The committed runs as people ask for them: a list, one of them, and what failed in it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fer_ray.config.jobs.browse import ErrorsConfig, RunsConfig, ShowConfig, TablesConfig
from fer_ray.errors import UsageError
from fer_ray.io.storage import Storage, absolute, join
from fer_ray.label.report.index import read_runs
from fer_ray.reporting.html import shorten
from fer_ray.schema import Status
from fer_ray.text import duration, percent, plural, sanitize

ROWS_PER_BATCH = 65_536
MAX_INPUT = 40  # characters of an input in the list
MAX_REASONS = 50  # of a run, the commonest


def open_tables(config: TablesConfig) -> tuple[Storage, str]:
    """The store of the tables, and where they are in it.

    Raises:
        UsageError: it is no place that can be read.
    """
    return Storage.of(config), absolute(config.tables, "folder of tables")


def read_all(storage: Storage, tables: str) -> list[dict[str, Any]]:
    """The rows of `runs`, the newest first.

    Raises:
        UsageError: there is none.
        StorageError: one cannot be read.
    """
    files = [entry.image_uri for entry in storage.list_files(join(tables, "runs")) if entry.size_bytes]
    rows = read_runs(storage, [file for file in files if file.endswith(".parquet")])
    if not rows:
        raise UsageError(f"{tables} holds no committed run: name the output of `fer-ray label`.")
    return rows


def list_runs(config: RunsConfig) -> dict[str, Any]:
    """A line for each run, the newest first."""
    rows = read_all(*open_tables(config))
    header = ("run", "date", "took", "model", "images", "faces", "failed", "known", "input")
    lines = [header, *(_line(row) for row in rows[: config.limit])]
    left_out = len(rows) - config.limit
    more = [f"and {plural(left_out, 'older run')}: --limit shows more"] if left_out > 0 else []
    return {"lines": [*_aligned(lines, right=range(4, 8)), *more], "runs": len(rows), "newest": rows[0]["run_id"]}


def show_run(config: ShowConfig) -> dict[str, Any]:
    """One run: what it was asked for, and what came of it."""
    storage, tables = open_tables(config)
    row = find_run(storage, tables, config.run_id)
    seconds = (row["finished_at"] - row["started_at"]).total_seconds()
    settings = json.loads(row["config_json"])["config"]
    report = join(tables, "reports", row["run_id"], "report.html")
    waiting = row["images_total"] - row["images_ok"] - row["images_no_face"] - row["images_failed"]
    said = {
        "run": row["run_id"],
        "finished": f"{row['finished_at']:%Y-%m-%d %H:%M:%S} UTC, {duration(seconds)} after it was first started",
        "input": row["input_uri"],
        "model": f"{row['model_name'] or ''} {row['model_version']}".strip(),
        "detector": row["detector_version"],
        "images": f"{row['images_total']:,}: {row['images_ok']:,} with faces, {row['images_no_face']:,} without, "
        f"{row['images_failed']:,} failed" + (f", {waiting:,} archived" if waiting else ""),
        "known": f"{row['images_skipped']:,} more had been labeled before",
        "faces": f"{row['faces_total']:,}, and {row['faces_left_out']:,} left out as too small or too doubtful",
        "made with": f"fer_ray {row['fer_ray_version']}, Ray {row['ray_version']}",
        **({"report": report} if storage.stat(report) else {}),
    }
    lines = [*_aligned([(name, sanitize(value)) for name, value in said.items()])]
    lines += [f"  {count:,} x {sanitize(reason)}" for reason, count in json.loads(row["top_errors_json"]).items()]
    plain = {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in row.items() if not name.endswith("_json")}
    return {"lines": lines, **plain, "config": settings}


def list_errors(config: ErrorsConfig) -> dict[str, Any]:
    """The images of a run that failed, by reason, the commonest first."""
    storage, tables = open_tables(config)
    row = find_run(storage, tables, config.run_id)
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[str]] = {}
    for batch in _failed(storage, tables, row):
        for uri, status, error in zip(*(batch[name].to_pylist() for name in ("image_uri", "status", "error")), strict=True):
            reason = status, error or ""
            counts[reason] += 1
            if len(examples.setdefault(reason, [])) < config.limit:
                examples[reason].append(uri)
    tried = row["images_ok"] + row["images_no_face"] + row["images_failed"]
    lines = [
        f"{row['run_id']}: {row['images_failed']:,} of {plural(tried, 'image')} failed ({percent(row['images_failed'] / max(1, tried), 1)})"
    ]
    for reason, count in counts.most_common(MAX_REASONS):
        lines += [f"{count:,} x {reason[0]}: {sanitize(reason[1])}", *(f"    {sanitize(uri)}" for uri in examples[reason])]
    if len(counts) > MAX_REASONS:
        lines.append(f"and {len(counts) - MAX_REASONS:,} rarer reasons")
    reasons = [{"status": status, "error": error, "images": n} for (status, error), n in counts.most_common(MAX_REASONS)]
    return {"lines": lines, "run_id": row["run_id"], "images_failed": row["images_failed"], "reasons": reasons}


def find_run(storage: Storage, tables: str, run_id: str) -> dict[str, Any]:
    """The row of the run, or of the newest for an empty name.

    Raises:
        UsageError: there is no such run.
    """
    rows = read_all(storage, tables)
    found = next((row for row in rows if run_id in ("", row["run_id"])), None)
    if found is None:
        raise UsageError(f"{tables} holds no run {sanitize(run_id)}: `fer-ray runs --tables {tables}` lists them.")
    return found


def _failed(storage: Storage, tables: str, row: Mapping[str, Any]) -> Iterator[pa.RecordBatch]:
    failures = pa.array([status.value for status in Status if status.is_failure])
    for entry in storage.list_files(join(tables, "images", f"run_date={row['run_date'].isoformat()}")):
        if entry.image_uri.rpartition("/")[2].rpartition("-")[0] == row["run_id"]:
            with storage.open(entry.image_uri, read_ahead=1 << 16) as opened:
                for batch in pq.ParquetFile(opened).iter_batches(ROWS_PER_BATCH, columns=["image_uri", "status", "error"]):
                    yield batch.filter(pc.is_in(batch["status"], failures))


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (f"{row[name]:,}" for name in ("images_total", "faces_total", "images_failed", "images_skipped"))
    took = duration((row["finished_at"] - row["started_at"]).total_seconds())
    model = row["model_name"] or row["model_version"]
    return row["run_id"], row["run_date"].isoformat(), took, sanitize(model), *counts, shorten(sanitize(row["input_uri"]), MAX_INPUT)


def _aligned(rows: Sequence[tuple[str, ...]], right: range = range(0)) -> list[str]:
    """Columns as wide as their widest cell, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [
        [cell.rjust(width) if i in right else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]
    return ["  ".join(row).rstrip() for row in cells]
