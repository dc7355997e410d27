"""Which of the listed images a run must label: those that no committed run has labeled, as they are now, with this model."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fer_ray.data import demo_photos
from fer_ray.errors import StorageError, UsageError
from fer_ray.io.inputs import Selection, list_images
from fer_ray.io.storage import Storage, join
from fer_ray.schema import IMAGES, LISTING, ImageEntry, Status, as_batches
from fer_ray.text import plural

if TYPE_CHECKING:
    from fer_ray.label.run import Run

# What DuckDB's sort needs at least grows a little with the rows, however much it spills: 60 million fit into 128 MB, and
# 20 million did not into 64 MB.
MEGABYTES = 96
MEGABYTES_PER_MILLION_ROWS = 4
ROWS_PER_BATCH = 16_384
FIRST_LIMITED_BATCHES = 4  # of a run with a limit; twice as many each time that these hold too few images that are due
_PUBLISHED = pa.schema([IMAGES.field(name) for name in ("image_uri", "size_bytes", "modified_at", "etag")])

# An object store's etag tells the state of an image, otherwise time and size; a list of URIs that has neither says that
# nothing changed. Both sides go through one sort, which spills to disk at any size; a hash table of one side would not.
_STATE = "coalesce(etag, epoch_us(modified_at) || '/' || size_bytes, '') AS state"
_TOGETHER = f"""
    SELECT *, {_STATE}, false AS published FROM listed
    UNION ALL BY NAME
    SELECT image_uri, {_STATE}, true AS published FROM earlier
    ORDER BY image_uri, state, published DESC
"""  # noqa: S608 - constants of this module

Published = Callable[[], Iterator[pa.RecordBatch]]


@dataclass
class Counts:
    """How many listed images turned out to be known already, and how many files were none by their names."""

    known: int = 0
    ignored: int = 0


def find_due(run: Run, counts: Counts) -> Iterator[pa.Table]:
    """The images of the run's input that are due, as `due_images` has them; an input without any is refused.

    Raises:
        UsageError: the input holds no files, or cannot be listed.
    """

    def published() -> Iterator[pa.RecordBatch]:
        return iter(()) if run.config.all else published_images(run.storage, run.output, run.model_version)

    return due_images(_list(run, counts), published, run.config.limit, counts)


def _list(run: Run, counts: Counts) -> Iterator[ImageEntry]:
    indexes = None if run.config.dry_run else join(run.output, "_archives")
    selection = Selection(run.config.include, run.config.exclude)
    listed = list_images(run.storage, run.inputs, run.output, indexes, selection) if run.config.input else iter(demo_photos.images())
    entries = _counting(listed, selection, counts)
    try:
        first = next(entries, None)
    except StorageError as error:
        raise UsageError(str(error)) from error
    if first is None:
        ignored = f"no images ({plural(counts.ignored, 'file')} ignored: --include takes them)" if counts.ignored else "no files"
        raise UsageError(f"The input {run.input_uri} holds {ignored}: name a folder with photographs.")
    return itertools.chain([first], entries)


def _counting(entries: Iterator[ImageEntry], selection: Selection, counts: Counts) -> Iterator[ImageEntry]:
    for entry in entries:
        counts.ignored = selection.ignored
        yield entry
    counts.ignored = selection.ignored


def due_images(entries: Iterable[ImageEntry], published: Published, limit: int | None, counts: Counts) -> Iterator[pa.Table]:
    """The images that are due, each once and sorted by image_uri, as tables of the schema LISTING; memory stays flat.

    `published` gives the images of committed runs, anew each time it is called. With a `limit`, listing ends when so many
    are found. `counts` is complete once the tables are consumed.
    """
    listed = as_batches(entries)
    if limit is None:
        yield from _due(listed, published, counts)
        return
    first = LISTING.empty_table()
    for batches in (FIRST_LIMITED_BATCHES * 2**n for n in itertools.count()):
        more = list(itertools.islice(listed, batches))
        found = pa.concat_tables([first, *_due(iter(more), published, counts)]).sort_by("image_uri")
        first = _without_repeats(found, None).slice(0, limit)
        if not more or len(first) >= limit:
            break
    if len(first):
        yield first


def _due(listed: Iterator[pa.RecordBatch], published: Published, counts: Counts) -> Iterator[pa.Table]:
    last_uri = None
    for table in _mark_known(listed, published()):
        fresh = _without_repeats(table, last_uri)
        last_uri = table["image_uri"][-1].as_py()
        due = fresh.filter(pc.invert(fresh["known"]))
        counts.known += len(fresh) - len(due)
        yield due.select(LISTING.names).cast(LISTING)


def _mark_known(listed: Iterator[pa.RecordBatch], published: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The listed images, sorted, with a column `known`: whether a published image of the same address and state stands before it.

    Listed a.jpg, b.jpg and c.jpg of 10 bytes each, published a.jpg of 10 and b.jpg of 9, sorted together:

        image_uri  state  published      known
        a.jpg      10     yes            (left out: not listed)
        a.jpg      10     no             yes: the published row before it is the same
        b.jpg      9      yes            (left out)
        b.jpg      10     no             no: the image changed
        c.jpg      10     no             no: the image is new
    """
    before: tuple[str | None, str | None, bool] = (None, None, False)
    for table in _sorted_together(listed, published):
        uris, states = (table[name].combine_chunks() for name in ("image_uri", "state"))
        is_published = table["published"].to_numpy()
        same = np.empty(len(table), bool)
        same[0] = (uris[0].as_py(), states[0].as_py()) == before[:2]
        same[1:] = pc.and_(pc.equal(uris[1:], uris[:-1]), pc.equal(states[1:], states[:-1])).to_numpy(zero_copy_only=False)
        first_of_same = np.maximum.accumulate(np.where(same, -1, np.arange(len(table))))
        known = np.where(first_of_same < 0, before[2], is_published[first_of_same])
        before = (uris[-1].as_py(), states[-1].as_py(), bool(known[-1]))
        marked = table.append_column("known", pa.array(known)).filter(pa.array(~is_published))
        if len(marked):
            yield marked


def _sorted_together(listed: Iterator[pa.RecordBatch], published: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    failures: list[Exception] = []
    with tempfile.TemporaryDirectory(prefix="fer-ray-") as scratch, duckdb.connect() as connection:
        connection.execute(
            f"SET memory_limit='{MEGABYTES}MB'; SET threads=1; SET temp_directory='{scratch}'; SET streaming_buffer_size='64KB';"
            "SET preserve_insertion_order=false"
        )
        limit = _MemoryLimit(connection)
        connection.register("listed", pa.RecordBatchReader.from_batches(LISTING, _keep_failure(listed, failures, limit)))
        connection.register("earlier", pa.RecordBatchReader.from_batches(_PUBLISHED, _keep_failure(published, failures, limit)))
        try:
            for batch in connection.sql(_TOGETHER).to_arrow_reader(ROWS_PER_BATCH):
                if len(batch):
                    yield pa.Table.from_batches([batch])
        except (duckdb.Error, pa.ArrowException) as error:
            if failures:
                raise failures[0] from None
            reason = " ".join(str(error).split())[:200]
            raise StorageError(f"The listing cannot be sorted ({reason}): see to space in {tempfile.gettempdir()}.") from error


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


def published_images(storage: Storage, output: str, model_version: str) -> Iterator[pa.RecordBatch]:
    """State columns of the images that committed runs labeled with this model (not those they could not read), streaming."""
    runs = {PurePosixPath(entry.image_uri).stem for entry in storage.list_files(join(output, "runs")) if entry.size_bytes}
    files = (entry.image_uri for entry in storage.list_files(join(output, "images")) if entry.image_uri.endswith(".parquet"))
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


def _without_repeats(table: pa.Table, last_uri: str | None) -> pa.Table:
    """The rows whose image_uri is not that of the row before."""
    if not len(table):
        return table
    uris = table["image_uri"].combine_chunks()
    different = pc.not_equal(uris[1:], uris[:-1])
    return table.filter(pa.concat_arrays([pa.array([uris[0].as_py() != last_uri]), different]))
