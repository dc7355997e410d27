"""What a run must label: its identity, and a plan that is made once and holds one row per image.

    _manifest/<run_id>/plan.json             the plan: written last, by the first of those who plan the same run
    _manifest/<run_id>/<attempt>/0.parquet   a million images a file; each row group is a part, the unit of work
    _staging/<run_id>/<attempt>/<row>.parquet  a finished part, named after its first row

A part is finished when its file is there, and the file's name and rows follow from the plan. So whoever labels a part
again, after a kill or beside another process, leaves the same file: nothing is lost and nothing comes twice.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import itertools
import json
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.config.label import LabelConfig
from fer_ray.errors import StorageError, UsageError
from fer_ray.io.storage import Storage, join
from fer_ray.label.incremental import Counts
from fer_ray.schema import MANIFEST

ROWS_PER_FILE = 1_000_000
SMALLEST_PART, LARGEST_PART = 16, 512
PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Run:
    """One labeling run and the places of its files. All addresses are absolute paths or s3:// URIs."""

    run_id: str
    run_date: datetime.date
    inputs: tuple[str, ...]
    output: str
    model: str
    model_version: str
    config: LabelConfig
    storage: Storage

    @property
    def request(self) -> dict[str, Any]:
        """What decides the result of a run; a run id belongs to one such request."""
        return {
            "input": list(self.inputs),
            "model": self.model_version,
            "limit": self.config.limit,
            "all": self.config.all,
            **dataclasses.asdict(self.config.labeling),
        }

    @property
    def input_uri(self) -> str:
        return ", ".join(self.inputs)

    @property
    def manifest(self) -> str:
        return join(self.output, "_manifest", self.run_id)

    @property
    def plan_file(self) -> str:
        return join(self.manifest, PLAN_FILE)

    @property
    def staging(self) -> str:
        return join(self.output, "_staging", self.run_id)

    @property
    def commit_file(self) -> str:
        """The run's row in `runs`: where it exists, the run is published."""
        return join(self.output, "runs", f"{self.run_id}.parquet")

    def is_published(self) -> bool:
        return self.storage.find(self.commit_file) is not None


@dataclass(frozen=True)
class Plan:
    """What was decided when the run first started. `attempt` names the folder of the manifest and of what is staged."""

    request: dict[str, Any]
    run_date: str
    started_at: str
    attempt: str
    images: int
    skipped: int
    files: int


@dataclass(frozen=True)
class Part:
    """A row group of a manifest file: `rows` images from `first_row` on, counted over the whole run."""

    file: int
    group: int
    first_row: int
    rows: int

    @property
    def name(self) -> str:
        return f"{self.first_row:012d}.parquet"


def name_run(unnamed: Run) -> Run:
    """The run under the id and date that were asked for, or of the unfinished run of the same request, or under a new id.

    So the same command line takes up what was interrupted, even on another day.

    Raises:
        UsageError: the id was used for another request or date.
    """
    if unnamed.run_id:
        return _check_same_request(unnamed)
    for run_id, plan in sorted(_plans(unnamed), reverse=True):
        run = dataclasses.replace(unnamed, run_id=run_id, run_date=datetime.date.fromisoformat(plan.run_date))
        same_date = not unnamed.config.run_date or plan.run_date == unnamed.config.run_date
        if plan.request == unnamed.request and same_date and not run.is_published():
            return run
    digest = hashlib.sha256(json.dumps(unnamed.request, sort_keys=True).encode()).hexdigest()[:8]
    stem = f"{unnamed.run_date.isoformat()}-{digest}"
    names = itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))
    return next(run for run in (dataclasses.replace(unnamed, run_id=name) for name in names) if not run.is_published())


def read_plan(run: Run) -> Plan | None:
    """The run's plan; None before there is one.

    Raises:
        UsageError: the file is broken.
    """
    try:
        return Plan(**json.loads(run.storage.read(run.plan_file, limit=16 << 20)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UsageError(f"The plan {run.plan_file} cannot be read: choose another run id, or remove it to start over.") from error


def write_plan(run: Run, due: Iterable[pa.Table], counts: Counts, started_at: datetime.datetime) -> Plan:
    """Write the manifest and then the plan; gives the plan that counts, which is another's if one was faster."""
    attempt = uuid.uuid4().hex[:12]
    images, files = 0, 0
    parts = _parts(due)
    for number in itertools.count():
        first = next(parts, None)
        if first is None:
            break
        with ExitStack() as stack:
            path = stack.enter_context(run.storage.written_whole(_manifest_file(run, attempt, number)))
            writer = stack.enter_context(pq.ParquetWriter(path, MANIFEST, compression="zstd"))
            for part in itertools.chain([first], parts):
                rows = pa.array(range(images, images + len(part)), pa.int64())
                writer.write_table(part.add_column(0, MANIFEST.field("row_number"), rows).cast(MANIFEST), len(part))
                images += len(part)
                if images >= (number + 1) * ROWS_PER_FILE:
                    break
        files = number + 1
    plan = Plan(run.request, run.run_date.isoformat(), started_at.isoformat(), attempt, images, counts.known, files)
    if run.storage.write(run.plan_file, (json.dumps(dataclasses.asdict(plan), indent=2) + "\n").encode(), replace=False):
        return plan
    found = read_plan(run)
    if found is None:
        raise StorageError(f"The plan {run.plan_file} was removed meanwhile: start the run again.")
    return found


def read_parts(run: Run, plan: Plan) -> list[Part]:
    """The units of work in the order of their rows."""
    parts: list[Part] = []
    for file in range(plan.files):
        with open_manifest(run, plan, file) as opened:
            groups = opened.metadata
            for group in range(groups.num_row_groups):
                first = parts[-1].first_row + parts[-1].rows if parts else 0
                parts.append(Part(file, group, first, groups.row_group(group).num_rows))
    return parts


@contextmanager
def open_manifest(run: Run, plan: Plan, file: int) -> Iterator[pq.ParquetFile]:
    """A file of the manifest; its row groups are the parts."""
    with run.storage.open(_manifest_file(run, plan.attempt, file), read_ahead=1 << 18) as opened:
        yield pq.ParquetFile(opened)


def staged_file(run: Run, plan: Plan, part: Part) -> str:
    """Where the finished part lies."""
    return join(run.staging, plan.attempt, part.name)


def unfinished(run: Run, plan: Plan, parts: Iterable[Part]) -> list[Part]:
    """The parts that are not staged yet."""
    finished = {PurePosixPath(entry.image_uri).name for entry in run.storage.walk(join(run.staging, plan.attempt))}
    return [part for part in parts if part.name not in finished]


def remove_work(run: Run) -> None:
    """Remove the plan first, then the manifest and what is staged: half removed, it must not look like work to take up."""
    run.storage.remove(run.plan_file)
    for folder in (run.manifest, run.staging):
        run.storage.remove_folder(folder)


def _manifest_file(run: Run, attempt: str, file: int) -> str:
    return join(run.manifest, attempt, f"{file}.parquet")


def _parts(due: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows cut into parts: small ones first, so that a short run keeps every process busy and a kill costs little."""
    held, start = pa.table({}), 0
    buffered: list[pa.Table] = []
    for table in due:
        buffered.append(table)
        held = pa.concat_tables(buffered).combine_chunks()
        while len(held) >= (size := _part_size(start)):
            yield held.slice(0, size)
            held, start = held.slice(size), start + size
        buffered = [held]
    if len(held):
        yield held


def _part_size(first_row: int) -> int:
    """Rows of the part at a row; parts never reach over the end of a manifest file."""
    size = min(max(first_row // 32, SMALLEST_PART), LARGEST_PART)
    return min(size, ROWS_PER_FILE - first_row % ROWS_PER_FILE)


def _plans(unnamed: Run) -> Iterator[tuple[str, Plan]]:
    """The plans in the output that read, by their run ids."""
    for entry in unnamed.storage.walk(join(unnamed.output, "_manifest")):
        path = PurePosixPath(entry.image_uri)
        if path.name == PLAN_FILE:
            run = dataclasses.replace(unnamed, run_id=path.parent.name)
            try:
                plan = read_plan(run)
            except UsageError:
                continue
            if plan:
                yield run.run_id, plan


def _check_same_request(run: Run) -> Run:
    """The run with the date it was first started on."""
    request, run_date = _recorded(run)
    if request is None or run_date is None:
        return run
    if run.config.run_date and run_date != run.run_date:
        raise UsageError(f"The run id {run.run_id} was used with another run date ({run_date}): choose another run id.")
    different = [name for name, value in run.request.items() if request.get(name) != value]
    if different:
        name = different[0]
        change = f"{request.get(name)!r}, now {run.request[name]!r}"
        raise UsageError(f"The run id {run.run_id} was used with another {name} ({change}): choose another run id.")
    return dataclasses.replace(run, run_date=run_date)


def _recorded(run: Run) -> tuple[dict[str, Any] | None, datetime.date | None]:
    """What this run id stood for before: in the published row, or in the plan while the run is unfinished."""
    try:
        if run.is_published():
            row = read_run(run)
            return dict(json.loads(row["config_json"])["request"]), row["run_date"]
        plan = read_plan(run)
        return (plan.request, datetime.date.fromisoformat(plan.run_date)) if plan else (None, None)
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise UsageError(f"What the run id {run.run_id} stood for cannot be read ({error}): choose another run id.") from error


def read_run(run: Run) -> dict[str, Any]:
    """The row of a published run."""
    return dict(pq.read_table(pa.BufferReader(run.storage.read(run.commit_file))).to_pylist()[0])
