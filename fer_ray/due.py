"""Which of the listed images a run must label: those that no committed run has labeled, as they are now, with this model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fer_ray.schema import IMAGES, LISTING, ImageEntry, Status, as_batches
from fer_ray.storage import Storage, join

MEMORY_LIMIT = "128MB"
ROWS_PER_BATCH = 16_384
_PUBLISHED = pa.schema([IMAGES.field(name) for name in ("image_uri", "size_bytes", "modified_at", "etag")])

# The same image in the same state: 16 bytes instead of the URI keep the join small. An object store's etag tells the state,
# otherwise time and size; a list of URIs that has neither says that nothing changed.
_STATE = "md5_number(concat_ws(chr(31), {0}.image_uri, coalesce({0}.etag, epoch_us({0}.modified_at) || '/' || {0}.size_bytes, '')))"
_MARKED = f"""
    SELECT listed.*, published.state IS NOT NULL AS known
    FROM listed LEFT JOIN (SELECT DISTINCT {_STATE.format("earlier")} AS state FROM earlier) AS published
    ON {_STATE.format("listed")} = published.state
"""  # noqa: S608 - constants of this module


@dataclass
class Counts:
    """How many listed images turned out to be known already."""

    known: int = 0


def due_images(entries: Iterable[ImageEntry], published: Iterator[pa.RecordBatch], limit: int | None, counts: Counts) -> Iterator[pa.Table]:
    """The images that are due, each once and sorted by image_uri, as tables of the schema LISTING; sorting spills to disk.

    With a `limit`, listing ends when so many are found. `counts` is complete once the tables are consumed.
    """
    failures: list[Exception] = []
    last_uri = None
    try:
        for table in _marked(_remembering(as_batches(entries), failures), _remembering(published, failures), limit):
            fresh = _without_repeats(table, last_uri)
            last_uri = table["image_uri"][-1].as_py()
            due = fresh.filter(pc.invert(fresh["known"]))
            counts.known += len(fresh) - len(due)
            yield due.select(LISTING.names).cast(LISTING)
    except (duckdb.Error, pa.ArrowException):
        if failures:
            raise failures[0] from None
        raise


def _marked(listed: Iterator[pa.RecordBatch], published: Iterator[pa.RecordBatch], limit: int | None) -> Iterator[pa.Table]:
    """The listed images, sorted, with a column that says which are known."""
    with tempfile.TemporaryDirectory(prefix="fer-ray-") as scratch, duckdb.connect() as connection:
        # Without its own idea of which side is smaller, DuckDB holds 16 bytes of each published image and streams the listing.
        connection.execute(
            f"SET memory_limit='{MEMORY_LIMIT}'; SET temp_directory='{scratch}'; SET streaming_buffer_size='64KB';"
            f"SET threads={1 if limit else min(4, os.cpu_count() or 1)};"  # one reads less of the listing than a limit needs
            "SET disabled_optimizers='join_order,build_side_probe_side'"
        )
        connection.register("listed", pa.RecordBatchReader.from_batches(LISTING, listed))
        connection.register("earlier", pa.RecordBatchReader.from_batches(_PUBLISHED, published))
        batches = connection.sql(_MARKED + ("" if limit else " ORDER BY image_uri")).to_arrow_reader(ROWS_PER_BATCH)
        tables = (pa.Table.from_batches([batch]) for batch in batches if len(batch))
        if limit is None:
            yield from tables
        elif first := list(_up_to(tables, limit)):
            yield pa.concat_tables(first).sort_by("image_uri")


def _remembering(batches: Iterator[pa.RecordBatch], failures: list[Exception]) -> Iterator[pa.RecordBatch]:
    """DuckDB reads the batches and would hide why they end."""
    try:
        yield from batches
    except Exception as error:
        failures.append(error)
        raise


def published_images(storage: Storage, output: str, model_version: str) -> Iterator[pa.RecordBatch]:
    """State columns of the images that committed runs labeled with this model (not those they could not read), streaming."""
    runs = {PurePosixPath(entry.image_uri).stem for entry in storage.walk(join(output, "runs")) if entry.size_bytes}
    files = (entry.image_uri for entry in storage.walk(join(output, "images")) if entry.image_uri.endswith(".parquet"))
    for file in files:
        run_id = PurePosixPath(file).stem.rpartition("-")[0]
        if run_id in runs:
            yield from _labeled_in(storage, file, model_version)


def _labeled_in(storage: Storage, file: str, model_version: str) -> Iterator[pa.RecordBatch]:
    columns = [*_PUBLISHED.names, "model_version", "status"]
    with storage.open(file, read_ahead=1 << 16) as opened:
        stored = pq.ParquetFile(opened)
        for group in range(stored.num_row_groups):
            for batch in stored.iter_batches(ROWS_PER_BATCH, row_groups=[group], columns=columns, use_threads=False):
                labeled = pc.and_(pc.equal(batch["model_version"], model_version), pc.not_equal(batch["status"], Status.UNREADABLE.value))
                yield batch.filter(labeled).select(_PUBLISHED.names).cast(_PUBLISHED)


def _up_to(tables: Iterator[pa.Table], limit: int) -> Iterator[pa.Table]:
    """As much of the listing as holds `limit` due images."""
    for table in tables:
        due = pc.cumulative_sum(pc.cast(pc.invert(table["known"]), pa.int64()))
        if due[-1].as_py() >= limit:
            yield table.slice(0, pc.index(due, limit).as_py() + 1)
            return
        limit -= due[-1].as_py()
        yield table


def _without_repeats(table: pa.Table, last_uri: str | None) -> pa.Table:
    """The rows whose image_uri is not that of the row before."""
    uris = table["image_uri"].combine_chunks()
    different = pc.not_equal(uris[1:], uris[:-1])
    return table.filter(pa.concat_arrays([pa.array([uris[0].as_py() != last_uri]), different]))
