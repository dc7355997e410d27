"""Which kept crops a run must label: those of every image as it was last labeled, unless this model has labeled it so already.

A row that a relabeling run wrote is no source: the run that kept the crops is. The manifest says where each image stands there, in
the columns for images inside archives: `archive_uri` is the file of the table `images` below the tables, `data_offset` the row of
the image in it, and `packed_bytes` the first row of its faces in the files of the same name of `faces` and `crops`.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fer_ray.errors import StorageError
from fer_ray.io.storage import join
from fer_ray.label.incremental import Counts, run_places
from fer_ray.label.incremental.forgotten import Forgotten
from fer_ray.label.run import Run
from fer_ray.schema import LISTING, Status
from fer_ray.text import plural

LOGGER = logging.getLogger(__name__)
MEMORY = "512MB"  # of DuckDB; what is more goes to disk
ROWS_PER_BATCH = 65_536
_COLUMNS = ("image_uri", "size_bytes", "modified_at", "etag", "status", "face_count", "model_version", "run_id", "crops_run_id")
_FOUND = pa.schema(
    [
        *(LISTING.field(name) for name in ("image_uri", "size_bytes", "modified_at", "etag")),
        pa.field("archive_uri", pa.string()),
        pa.field("data_offset", pa.int64()),
        pa.field("packed_bytes", pa.int64()),
        pa.field("place", pa.int32()),  # of the run among all, by the time of their commits
        pa.field("is_source", pa.bool_()),
        pa.field("is_current", pa.bool_()),  # labeled with the model of this run
        pa.field("has_crops", pa.bool_()),  # of all its faces
    ]
)
_SOURCES = """
    WITH newest AS (
        SELECT image_uri, max(place) FILTER (WHERE is_source) AS source, max(place) FILTER (WHERE is_current) AS current
        FROM found GROUP BY image_uri
    )
    SELECT found.*, found.state IS NOT DISTINCT FROM labeled.state AS is_known
    FROM newest JOIN found ON found.image_uri = newest.image_uri AND found.place = newest.source
    LEFT JOIN found AS labeled ON labeled.image_uri = newest.image_uri AND labeled.place = newest.current
    ORDER BY found.archive_uri, found.data_offset
"""
_STATE = "coalesce(etag, epoch_us(modified_at) || '/' || size_bytes, '') AS state"


def find_due(run: Run, counts: Counts) -> Iterator[pa.Table]:
    """The images whose crops are due, as tables of the schema LISTING in the order of the files that they stand in.

    Args:
        run: The relabeling run.
        counts: Its `known` is complete once the tables are consumed.
    """
    without = 0
    counts.forgettings = Forgotten.read(run.storage, run.output).done
    with tempfile.TemporaryDirectory(prefix="fer-ray-") as scratch, duckdb.connect(str(Path(scratch) / "found.duckdb")) as connection:
        connection.execute(f"SET memory_limit='{MEMORY}'; SET preserve_insertion_order=false")
        connection.register("batches", pa.RecordBatchReader.from_batches(_FOUND, _found(run)))
        try:
            connection.execute(f"CREATE TABLE found AS SELECT *, {_STATE} FROM batches")  # noqa: S608 - constants of this module
            for batch in connection.sql(_SOURCES).to_arrow_reader(ROWS_PER_BATCH):
                table = pa.Table.from_batches([batch])
                due = table.filter(pc.invert(table["is_known"]))
                counts.known += len(table) - len(due)
                usable = due.filter(due["has_crops"])
                without += len(due) - len(usable)
                unread = {"status": pa.nulls(len(usable), pa.string()), "error": pa.repeat("", len(usable))}  # no film is looked at again
                for name, values in unread.items():
                    usable = usable.append_column(name, values)
                if len(usable):
                    yield usable.select(LISTING.names).cast(LISTING)
        except (duckdb.Error, pa.ArrowException) as error:
            reason = " ".join(str(error).split())[:200]
            raise StorageError(f"The tables {run.output} cannot be sorted ({reason}): see to space in {tempfile.gettempdir()}.") from error
    if without:
        LOGGER.warning("%s without kept crops: `fer-ray label` labels them with this model", plural(without, "image"))


def _found(run: Run) -> Iterator[pa.RecordBatch]:
    """The rows of all committed runs that could be read, with the places of their faces."""
    committed = run_places(run.storage, run.output)
    order = {run_id: place for place, run_id in enumerate(sorted(committed, key=lambda run_id: committed[run_id]))}
    for entry in run.storage.list_files(join(run.output, "images")):
        name = entry.image_uri[len(run.output) :].lstrip("/")
        run_id = name.rpartition("/")[2].rpartition("-")[0]
        if name.endswith(".parquet") and run_id in order:
            yield from _rows_of(run, entry.image_uri, name, order[run_id])


def _rows_of(run: Run, uri: str, name: str, place: int) -> Iterator[pa.RecordBatch]:
    row, face = 0, 0
    try:
        with run.storage.open(uri, read_ahead=1 << 16) as opened:
            stored = pq.ParquetFile(opened)
            columns = [column for column in _COLUMNS if column in stored.schema_arrow.names]
            for batch in stored.iter_batches(ROWS_PER_BATCH, columns=columns, use_threads=False):
                rows = pa.Table.from_batches([batch])
                ends = face + np.cumsum(rows["face_count"].to_numpy())
                kept_by = rows["crops_run_id"] if "crops_run_id" in columns else pa.nulls(len(rows), pa.string())
                added = {
                    "archive_uri": pa.repeat(name, len(rows)),
                    "data_offset": pa.array(np.arange(row, row + len(rows))),
                    "packed_bytes": pa.array(ends - rows["face_count"].to_numpy()),
                    "place": pa.repeat(pa.scalar(place, pa.int32()), len(rows)),
                    "is_source": pc.fill_null(pc.equal(kept_by, rows["run_id"]), True),
                    "is_current": pc.equal(rows["model_version"], run.model_version),
                    "has_crops": pc.or_(pc.equal(rows["face_count"], 0), pc.is_valid(kept_by)),
                }
                row, face = row + len(rows), int(ends[-1]) if len(ends) else face
                for column, values in added.items():
                    rows = rows.append_column(column, values)
                readable = pc.invert(pc.is_in(rows["status"], pa.array([Status.UNREADABLE.value, Status.ARCHIVED.value])))
                yield from rows.filter(readable).select(_FOUND.names).cast(_FOUND).combine_chunks().to_batches()
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"The table file {uri} cannot be read: restore it, or remove all files of that run.") from error
