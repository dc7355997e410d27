"""What a run must label: its identity, kept so that a run id can mean one thing only, and one row per image."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.config import LabelConfig
from fer_ray.errors import UsageError
from fer_ray.schema import MANIFEST
from fer_ray.storage import ImageEntry, written_whole

SMALLEST_PART, LARGEST_PART = 32, 1024


@dataclass(frozen=True)
class Run:
    """One labeling run and the places of its files. `input` is a folder, or a list of files for the demo."""

    run_id: str
    run_date: datetime.date
    input_uri: str
    output: Path
    model: str
    model_version: str
    config: LabelConfig

    @property
    def request(self) -> dict[str, Any]:
        """What decides the result of a run; a run id belongs to one such request."""
        return {
            "input": self.input_uri,
            "run date": self.run_date.isoformat(),
            "model": self.model_version,
            "limit": self.config.limit,
            **dataclasses.asdict(self.config.labeling),
        }

    @property
    def manifest(self) -> Path:
        return self.output / "_manifest" / self.run_id

    @property
    def request_file(self) -> Path:
        return self.output / "_manifest" / f"{self.run_id}.json"

    @property
    def staging(self) -> Path:
        return self.output / "_staging" / self.run_id

    @property
    def commit_file(self) -> Path:
        """The run's row in `runs`: where it exists, the run is published."""
        return self.output / "runs" / f"{self.run_id}.parquet"

    @property
    def published(self) -> bool:
        return self.commit_file.exists()


def name_run(unnamed: Run) -> Run:
    """The run under the id that was asked for, or under the first free one of the date and a hash of the request.

    An unfinished run of the same request keeps its name, so that the same command line takes it up again.

    Raises:
        UsageError: the id was used for another request.
    """
    if unnamed.run_id:
        _check_same_request(unnamed)
        return unnamed
    digest = hashlib.sha256(json.dumps(unnamed.request, sort_keys=True).encode()).hexdigest()[:8]
    stem = f"{unnamed.run_date.isoformat()}-{digest}"
    names = itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))
    return next(run for run in (dataclasses.replace(unnamed, run_id=name) for name in names) if not run.published)


def write_manifest(run: Run, entries: Iterable[ImageEntry]) -> int:
    """Write one row per image into `run.manifest` and gives their number; nothing is written when there are none.

    The manifest is a folder of parts, each a unit of work for the pipeline: small ones first, so that a short run
    keeps every process busy, then larger ones. What an earlier attempt of this run left is removed.
    """
    for leftover in (run.manifest, run.staging):
        shutil.rmtree(leftover, ignore_errors=True)
    rows = 0
    for number, part in enumerate(_parts(entries)):
        if number == 0:
            with written_whole(run.request_file) as file:
                file.write_text(json.dumps(run.request, indent=2) + "\n", encoding="utf-8")
            run.manifest.mkdir(parents=True)
        pq.write_table(_table(part, rows), run.manifest / f"{number:06d}.parquet")
        rows += len(part)
    return rows


def _parts(entries: Iterable[ImageEntry]) -> Iterator[list[ImageEntry]]:
    iterator, seen = iter(entries), 0
    while part := list(itertools.islice(iterator, min(max(seen // 16, SMALLEST_PART), LARGEST_PART))):
        seen += len(part)
        yield part


def _table(part: list[ImageEntry], first_row: int) -> pa.Table:
    columns = {
        "row_number": range(first_row, first_row + len(part)),
        "image_uri": [entry.image_uri for entry in part],
        "size_bytes": [entry.size_bytes for entry in part],
        "modified_at": [entry.modified_at for entry in part],
        "etag": [entry.etag for entry in part],
    }
    return pa.table({name: pa.array(values, MANIFEST.field(name).type) for name, values in columns.items()}, schema=MANIFEST)


def _check_same_request(run: Run) -> None:
    recorded = _recorded_request(run)
    if recorded is None:
        return
    different = [name for name, value in run.request.items() if recorded.get(name) != value]
    if different:
        name = different[0]
        change = f"{recorded.get(name)!r}, now {run.request[name]!r}"
        raise UsageError(f"The run id {run.run_id} was used with another {name} ({change}): choose another run id.")


def _recorded_request(run: Run) -> dict[str, Any] | None:
    """What this run id stood for before: kept beside the manifest, and in the published row once that is cleaned up."""
    try:
        if run.request_file.exists():
            return dict(json.loads(run.request_file.read_text(encoding="utf-8")))
        if run.published:
            row = pq.read_table(run.commit_file, columns=["config_json"]).to_pylist()[0]
            return dict(json.loads(row["config_json"])["request"])
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UsageError(f"What the run id {run.run_id} stood for cannot be read ({error}): choose another run id.") from error
    return None
