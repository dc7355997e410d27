"""From staging to the tables: verified against the manifest, sorted, and visible in one step."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import ray

from fer_ray.errors import PublishError
from fer_ray.manifest import Run
from fer_ray.schema import FACES, IMAGES, MANIFEST, RUNS, STAGING
from fer_ray.storage import written_whole

ROWS_PER_GROUP = 100_000
ROWS_PER_FILE = 1_000_000
TOP_ERRORS = 5


def publish_tables(run: Run, images: int) -> Counter[str]:
    """Write `images` and `faces` in a Ray task, so that no row passes through the driver; gives the counts of the run.

    The counts are images_total, faces_total, faces_left_out, `status:<status>`, `emotion:<emotion>` and `error:<sentence>`
    (the commonest few).

    Raises:
        PublishError: staging does not hold every image of the manifest exactly once; nothing was published.
    """
    counts: Counter[str] = ray.get(ray.remote(num_cpus=0)(write_tables).remote(run, images))
    return counts


def write_tables(run: Run, images: int) -> Counter[str]:
    """What `publish_tables` does, in this process: memory holds one range of rows at a time."""
    counts: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    manifest, staged = pds.dataset(run.manifest, MANIFEST), pds.dataset(run.staging, STAGING)
    if staged.count_rows() != images:
        raise PublishError(f"Staging of run {run.run_id} holds {staged.count_rows()} rows for {images} images: start the run again.")
    for file_number, first in enumerate(range(0, max(images, 1), ROWS_PER_FILE)):
        last = min(first + ROWS_PER_FILE, images)
        paths = [_table_file(run, table, file_number) for table in ("images", "faces")]
        with ExitStack() as stack:
            temporary = [stack.enter_context(written_whole(path)) for path in paths]
            with _writer(temporary[0], IMAGES) as image_writer, _writer(temporary[1], FACES) as face_writer:
                for rows in _verified_ranges(run, manifest, staged, first, last):
                    image_writer.write_table(rows.select(IMAGES.names).cast(IMAGES), ROWS_PER_GROUP)
                    faces = _flat_faces(rows)
                    face_writer.write_table(faces, ROWS_PER_GROUP)
                    _count(counts, errors, rows, faces)
    counts.update({f"error:{sentence}": n for sentence, n in errors.most_common(TOP_ERRORS)})
    return counts


def commit(run: Run, row: dict[str, Any]) -> None:
    """Write the run's row into `runs`, which makes its tables count, and remove its staging."""
    with written_whole(run.commit_file) as file:
        pq.write_table(pa.Table.from_pylist([row], schema=RUNS), file, compression="zstd")
    for leftover in (run.staging, run.manifest):
        shutil.rmtree(leftover, ignore_errors=True)


def _table_file(run: Run, table: str, number: int) -> Path:
    return run.output / table / f"run_date={run.run_date.isoformat()}" / f"{run.run_id}-{number}.parquet"


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, compression="zstd")


def _verified_ranges(run: Run, manifest: pds.Dataset, staged: pds.Dataset, first: int, last: int) -> Iterator[pa.Table]:
    """The staged rows in the order of the manifest, a range at a time, each checked to be that range exactly."""
    for start in range(first, last, ROWS_PER_GROUP):
        stop = min(start + ROWS_PER_GROUP, last)
        inside = (pc.field("row_number") >= start) & (pc.field("row_number") < stop)
        expected = manifest.to_table(["row_number", "image_uri"], filter=inside).sort_by("row_number")
        rows = staged.to_table(filter=inside).sort_by("row_number")
        if not rows.select(["row_number", "image_uri"]).equals(expected) or len(rows) != stop - start:
            raise PublishError(f"Staging of run {run.run_id} does not match its manifest in rows {start} to {stop}: start the run again.")
        yield rows


def _flat_faces(rows: pa.Table) -> pa.Table:
    """One row per face from the images' lists of faces."""
    combined = rows.combine_chunks()
    faces = combined.column("faces")
    parents = combined.drop_columns(["faces"]).take(pc.list_parent_indices(faces))
    flat = pc.list_flatten(faces)
    columns = [parents[name] if name in parents.column_names else pc.struct_field(flat, name) for name in FACES.names]
    return pa.table(columns, names=FACES.names).cast(FACES)


def _count(counts: Counter[str], errors: Counter[str], rows: pa.Table, faces: pa.Table) -> None:
    counts.update(images_total=len(rows), faces_total=len(faces), faces_left_out=pc.sum(rows["left_out_count"]).as_py() or 0)
    for prefix, column in (("status", rows["status"]), ("emotion", faces["emotion"])):
        counts.update({f"{prefix}:{entry['values']}": entry["counts"] for entry in pc.value_counts(column).to_pylist()})
    errors.update({e["values"]: e["counts"] for e in pc.value_counts(rows["error"].drop_null()).to_pylist()})
