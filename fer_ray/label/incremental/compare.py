"""What is listed beside what is published: which images are known as they are, which are gone, and which are back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fer_ray.errors import StorageError
from fer_ray.label.incremental.gone import GoneImages
from fer_ray.schema import IMAGES, LISTING, Status
from fer_ray.typing import BoolArray

# What DuckDB's sort needs at least grows a little with the rows, however much it spills: 60 million fit into 128 MB, and
# 20 million did not into 64 MB.
MEGABYTES = 96
MEGABYTES_PER_MILLION_ROWS = 4
ROWS_PER_BATCH = 16_384
STATE_COLUMNS = ["image_uri", "size_bytes", "modified_at", "etag"]
_PUBLISHED = pa.schema(
    [
        *(IMAGES.field(name).with_nullable(True) for name in STATE_COLUMNS),
        pa.field("place", pa.int32()),
        pa.field("waits", pa.bool_()),
        pa.field("other", pa.bool_()),  # of another model: it only says that the image is known
        pa.field("gone", pa.bool_()),  # no image, but what a listing said of it
    ]
)

# An object store's etag tells the state of an image, otherwise time and size; a list of URIs that has neither says that
# nothing changed. Of what is listed several times the latest comes first.
# Both sides go through one sort, which spills to disk at any size; a hash table of one side would not.
_STATE = "coalesce(etag, epoch_us(modified_at) || '/' || size_bytes, '') AS state"
_TOGETHER = f"""
    SELECT *, {_STATE}, NULL AS place FROM listed
    UNION ALL BY NAME
    SELECT image_uri, {_STATE}, place, waits, other, gone FROM earlier
    ORDER BY image_uri, place NULLS LAST, waits, modified_at DESC NULLS LAST, data_offset DESC NULLS LAST, state
"""  # noqa: S608 - constants of this module


def mark_known(
    listed: Iterator[pa.RecordBatch], published: Iterator[pa.RecordBatch], absent: GoneImages | None = None
) -> Iterator[pa.Table]:
    """The listed images, sorted, with a column `known`: whether the newest published row of the same address has the same state.

    Listed a.jpg, b.jpg and c.jpg of 10 bytes each; published a.jpg of 10, b.jpg of 10 and then of 9, sorted together:

        image_uri  state  place of its run  known
        a.jpg      10     0                 (left out: not listed)
        a.jpg      10     -                 yes: the published row before it is the same
        b.jpg      10     0                 (left out)
        b.jpg      9      1                 (left out)
        b.jpg      10     -                 no: the image changed, though it was like this before
        c.jpg      10     -                 no: the image is new

    `absent` is told of addresses that end without a listed row, and of listed ones that a listing before had missed.
    """
    carried = None  # of the rows before: what was last published, what was last said to be gone, and the last one
    for table in _sorted_together(listed, published):
        before = len(carried) if carried else 0
        rows = (pa.concat_tables([carried, table]) if carried else table).combine_chunks()
        marks = _Marks(rows)
        marked = rows.append_column("known", marks.known()).slice(before)
        marked = marked.filter(pa.array(marks.is_listed[before:]))
        if absent:
            _tell(absent, marks, max(0, before - 1))
        carried = rows.take(sorted({int(marks.published[-1]), int(marks.said[-1]), len(rows) - 1} - {-1}))
        if len(marked):
            yield marked
    if absent and carried:
        marks = _Marks(carried)
        if not marks.is_listed[-1]:
            absent.missing(marks.uris[-1:].to_pylist(), [bool(marks.is_gone()[-1])])


def _tell(absent: GoneImages, marks: _Marks, first: int) -> None:
    """Of the rows from `first` on."""
    was_gone, differs = marks.is_gone(), pc.not_equal(marks.uris[1:], marks.uris[:-1]).to_numpy(zero_copy_only=False)
    missing = differs & ~marks.is_listed[:-1]
    missing[:first] = False
    if missing.any():
        absent.missing(marks.uris.filter(pa.array(np.append(missing, False))).to_pylist(), was_gone[:-1][missing].tolist())
    back = marks.is_listed & was_gone
    back[1:] &= differs | ~marks.is_listed[:-1]  # once, however often it is listed
    back[:first] = False
    absent.back(marks.uris.filter(pa.array(back)).to_pylist())


class _Marks:
    """Rows of both sides, sorted: for each the row of the last published image, and of the last word on what is gone (-1 for none)."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows, self.uris = rows, pc.cast(rows["image_uri"], pa.string()).combine_chunks()
        if isinstance(self.uris, pa.ChunkedArray):
            self.uris = pa.concat_arrays(self.uris.chunks)
        numbers = np.arange(len(rows))
        self.is_listed = rows["place"].is_null().to_numpy()
        says = rows["gone"].is_valid().to_numpy()
        counts = ~self.is_listed & ~says & ~rows["other"].fill_null(False).to_numpy()
        self.published = np.maximum.accumulate(np.where(counts, numbers, -1))
        self.said = np.maximum.accumulate(np.where(says, numbers, -1))

    def known(self) -> pa.Array:
        at = np.maximum(self.published, 0)
        states, waits = self.rows["state"], self.rows["waits"]
        is_same = pc.or_(pc.equal(states, states.take(at)), pc.equal(states, ""))  # what is listed without a state did not change
        is_archived = pc.equal(self.rows["status"], Status.ARCHIVED.value).fill_null(False)
        is_same = pc.and_not(is_same, pc.and_not(waits.take(at), is_archived))  # what was archived and is not any more was restored
        known = pc.and_(pc.equal(self.uris, self.uris.take(pa.array(at))), is_same).fill_null(False)
        return pc.and_(known, pa.array(self.published >= 0))

    def is_gone(self) -> BoolArray:
        if self.said[-1] < 0:
            return np.zeros(len(self.rows), bool)
        at = np.maximum(self.said, 0)
        same = pc.equal(self.uris, self.uris.take(pa.array(at))).to_numpy(zero_copy_only=False)
        return np.asarray(same & (self.said >= 0) & self.rows["gone"].take(at).fill_null(False).to_numpy())


def _sorted_together(listed: Iterator[pa.RecordBatch], published: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    failures: list[Exception] = []
    with tempfile.TemporaryDirectory(prefix="fer-ray-") as scratch, duckdb.connect() as connection:
        connection.execute(f"SET memory_limit='{MEGABYTES}MB'; SET threads=1; SET streaming_buffer_size='64KB'")
        connection.execute("SET preserve_insertion_order=false; SET temp_directory='{}'".format(scratch.replace("'", "''")))
        limit = _MemoryLimit(connection)
        connection.register("listed", pa.RecordBatchReader.from_batches(LISTING, _keep_failure(listed, failures, limit)))
        earlier = (_completed(batch) for batch in published)
        connection.register("earlier", pa.RecordBatchReader.from_batches(_PUBLISHED, _keep_failure(earlier, failures, limit)))
        try:
            for batch in connection.sql(_TOGETHER).to_arrow_reader(ROWS_PER_BATCH):
                if len(batch):
                    yield pa.Table.from_batches([batch])
        except (duckdb.Error, pa.ArrowException) as error:
            if failures:
                raise failures[0] from None
            reason = " ".join(str(error).split())[:200]
            raise StorageError(f"The listing cannot be sorted ({reason}): see to space in {tempfile.gettempdir()}.") from error


def _completed(batch: pa.RecordBatch) -> pa.RecordBatch:
    """What was published with all columns of `_PUBLISHED`, null where it has none."""
    columns = [batch[field.name] if field.name in batch.schema.names else pa.nulls(len(batch), field.type) for field in _PUBLISHED]
    return pa.RecordBatch.from_arrays(
        [column.cast(field.type) for column, field in zip(columns, _PUBLISHED, strict=True)], schema=_PUBLISHED
    )


class _MemoryLimit:
    """Gives the sort more memory as rows come in."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection, self.rows = connection.cursor(), 0

    def grow(self, rows: int) -> None:
        millions = self.rows // 1_000_000
        self.rows += rows
        if self.rows // 1_000_000 > millions:
            megabytes = MEGABYTES + MEGABYTES_PER_MILLION_ROWS * (self.rows // 1_000_000)
            self.connection.execute(f"SET memory_limit='{megabytes}MB'")


def _keep_failure(batches: Iterator[pa.RecordBatch], failures: list[Exception], limit: _MemoryLimit) -> Iterator[pa.RecordBatch]:
    """Pass the batches on to DuckDB, and keep the exception that ends them, which DuckDB would hide."""
    try:
        for batch in batches:
            limit.grow(len(batch))
            yield batch
    except Exception as error:
        failures.append(error)
        raise
