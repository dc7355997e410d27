"""What a run must label: a plan that is made once and holds one row per image, and one for each stretch of a film.

    _manifest/<run_id>/plan.json             the plan: written last, by the first of those who plan the same run
    _manifest/<run_id>/<attempt>/0.parquet   a million images a file; each row group is a part, the unit of work
    _staging/<run_id>/<attempt>/<row>.parquet  a finished part, named after its first row

A part is finished when its file is there, and the file's name and rows follow from the plan. So whoever labels a part
again, after a kill or beside another process, leaves the same file: nothing is lost and nothing comes twice.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fer_ray.errors import StorageError, UsageError
from fer_ray.io.inputs import is_film
from fer_ray.io.storage import join
from fer_ray.label.incremental import Counts, known_images
from fer_ray.schema import LISTING, MANIFEST, ImageEntry
from fer_ray.text import plural
from fer_ray.video.stretches import Cutter

if TYPE_CHECKING:
    from fer_ray.label.run import Run

ROWS_PER_FILE = 1_000_000
MIN_PART_IMAGES = 64  # the first parts of a run, a batch of faces each: a short run keeps every process busy, and a kill costs little
MAX_PART_IMAGES = 512
PLAN_FILE = "plan.json"
SAMPLE_PARTS = 8  # from all over the manifest, two images each


@dataclass(frozen=True)
class Plan:
    """What was decided when the run first started. `attempt` names the folder of the manifest and of what is staged.

    `images` are the rows of the manifest, each an image or a stretch of a film.
    """

    request: dict[str, Any]
    run_date: str
    started_at: str
    attempt: str
    images: int
    skipped: int
    files: int
    ignored: int = 0
    films: int = 0  # that read
    stretches: int = 0  # of these; the other rows are an image each
    frames: int = 0  # in these, as expected
    gone: int | None = None  # images that were labeled and are not listed any more; None where the listing could not tell
    signed: bool = False  # whether images are asked for by signed addresses, which only the lists hold
    forgotten: int = 0  # files that `fer-ray forget` leaves out
    forgettings: int = 0  # its requests that had come to their end when the run was planned

    def described(self) -> str:
        """`1,200 images and 3 films (about 900 frames)`."""
        images = self.images - self.stretches
        films = f"{plural(self.films, 'film')} (about {plural(self.frames, 'frame')})"
        return " and ".join([*([plural(images, "image")] if images or not self.films else []), *([films] if self.films else [])])


@dataclass(frozen=True)
class Part:
    """A row group of a manifest file: `rows` rows from `first_row` on, counted over the whole run, with so many `images` as expected."""

    file: int
    group: int
    first_row: int
    rows: int
    images: int

    @property
    def name(self) -> str:
        return f"{self.first_row:012d}.parquet"


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
    cutter = Cutter(run.film_settings)
    parts = _parts(cutter.cut(due))
    for number in itertools.count():
        first = next(parts, None)
        if first is None:
            break
        rows_here = 0
        with ExitStack() as stack:
            path = stack.enter_context(run.storage.writing(_manifest_file(run, attempt, number)))
            writer = stack.enter_context(pq.ParquetWriter(path, MANIFEST, compression="zstd"))
            for part in itertools.chain([first], parts):
                rows = pa.array(range(images, images + len(part)), pa.int64())
                writer.write_table(part.add_column(0, MANIFEST.field("row_number"), rows).cast(MANIFEST), len(part))
                images += len(part)
                rows_here += len(part)
                if rows_here >= ROWS_PER_FILE and not _breaks_off_in_film(part):
                    break
        files = number + 1
    plan = Plan(
        run.request,
        run.run_date.isoformat(),
        started_at.isoformat(),
        attempt,
        images,
        counts.known,
        files,
        counts.ignored,
        cutter.films,
        cutter.stretches,
        cutter.frames,
        counts.gone.count if counts.gone else None,
        bool(run.storage.signed),
        counts.forgotten,
        counts.forgettings,
    )
    if counts.gone:
        counts.gone.write(run.storage, gone_file(run, plan))
    if run.storage.write(run.plan_file, (json.dumps(dataclasses.asdict(plan), indent=2) + "\n").encode(), replace=False):
        return plan
    found = read_plan(run)
    if found is None:
        raise StorageError(f"The plan {run.plan_file} was removed meanwhile: start the run again.")
    return found


def gone_file(run: Run, plan: Plan) -> str:
    """What the run's listing changed in what is gone, until the run is committed; there is none where it changed nothing."""
    return join(run.manifest, plan.attempt, "gone.parquet")


def read_parts(run: Run, plan: Plan) -> list[Part]:
    """The units of work in the order of their rows."""
    parts: list[Part] = []
    for file in range(plan.files):
        with open_manifest(run, plan, file) as opened:
            for group in range(opened.metadata.num_row_groups):
                first = parts[-1].first_row + parts[-1].rows if parts else 0
                rows = opened.metadata.row_group(group).num_rows
                images = _images_of(opened.read_row_group(group, columns=["frames"])) if plan.stretches else rows
                parts.append(Part(file, group, first, rows, images))
    return parts


@contextmanager
def open_manifest(run: Run, plan: Plan, file: int) -> Iterator[pq.ParquetFile]:
    """A file of the manifest; its row groups are the parts."""
    with run.storage.open(_manifest_file(run, plan.attempt, file), read_ahead=1 << 18) as opened:
        yield pq.ParquetFile(opened)


def sample_images(run: Run) -> Iterator[ImageEntry]:
    """Some images from all over the manifest, and some that earlier runs read: whether a store is up shows in them."""
    if plan := read_plan(run):
        parts = read_parts(run, plan)
        for part in parts[:: max(1, len(parts) // SAMPLE_PARTS)]:
            with open_manifest(run, plan, part.file) as opened:
                rows = opened.read_row_group(part.group, columns=LISTING.names).to_pylist()
            rows = [row for row in rows if not is_film(row["image_uri"])]
            yield from (ImageEntry(**rows[place]) for place in sorted({0, len(rows) // 2}) if rows)
    yield from known_images(run.storage, run.output)


def staged_file(run: Run, plan: Plan, part: Part) -> str:
    """Where the finished part lies."""
    return join(run.staging, plan.attempt, part.name)


def unfinished(run: Run, plan: Plan, parts: Iterable[Part]) -> list[Part]:
    """The parts that are not staged yet."""
    finished = {PurePosixPath(entry.image_uri).name for entry in run.storage.list_files(join(run.staging, plan.attempt))}
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
        while rows := _rows_of(held, min(max(start // 32, MIN_PART_IMAGES), MAX_PART_IMAGES)):
            yield held.slice(0, rows)
            start += _images_of(held.slice(0, rows))
            held = held.slice(rows)
        buffered = [held]
    if len(held):
        yield held


def _rows_of(table: pa.Table, images: int) -> int:
    """The first rows that hold so many images, as far as is expected; 0 where all hold fewer."""
    if table["frames"].null_count == len(table):
        return images if len(table) >= images else 0
    sums = pc.cumulative_sum(table["frames"].fill_null(1)).to_numpy()
    place = int(sums.searchsorted(images))
    return place + 1 if place < len(table) else 0


def _images_of(rows: pa.Table) -> int:
    return int(pc.sum(rows["frames"].fill_null(1)).as_py() or 0)


def _breaks_off_in_film(part: pa.Table) -> bool:
    """Whether more of a film comes after these rows: a film stays in one file, where it is looked at as a whole in the end."""
    return part["end_ms"][-1].as_py() is not None
