"""Which of the listed images a run must label: those that no committed run has labeled, as they are now, with this model."""

from __future__ import annotations

import datetime
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fer_ray.data import demo_photos
from fer_ray.errors import DeniedError, OutageError, StorageError, UsageError
from fer_ray.io.inputs import Selection, is_film, list_images
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
READER_THREADS = 16  # for the rows of runs
KNOWN_IMAGES = 8
_STATE_COLUMNS = ["image_uri", "size_bytes", "modified_at", "etag"]
_PUBLISHED = pa.schema([*(IMAGES.field(name) for name in _STATE_COLUMNS), pa.field("place", pa.int32()), pa.field("waits", pa.bool_())])
_COMPARED = ("image_uri", "state", "waits")
_LATEST_FIRST = [("image_uri", "ascending"), ("modified_at", "descending"), ("data_offset", "descending")]

# An object store's etag tells the state of an image, otherwise time and size; a list of URIs that has neither says that
# nothing changed. Of what is listed several times the latest comes first.
# Both sides go through one sort, which spills to disk at any size; a hash table of one side would not.
_STATE = "coalesce(etag, epoch_us(modified_at) || '/' || size_bytes, '') AS state"
_TOGETHER = f"""
    SELECT *, {_STATE}, NULL AS place FROM listed
    UNION ALL BY NAME
    SELECT image_uri, {_STATE}, place, waits FROM earlier
    ORDER BY image_uri, place NULLS LAST, waits, modified_at DESC NULLS LAST, data_offset DESC NULLS LAST, state
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
        OutageError, DeniedError: it may be listed in a while.
    """

    def published() -> Iterator[pa.RecordBatch]:
        return iter(()) if run.config.all else published_images(run.storage, run.output, run.model_version)

    return due_images(_list(run, counts), published, run.config.limit, counts)


def read_signatures(run: Run) -> None:
    """Read the lists of a planned run again: signed addresses stand nowhere else."""
    for _ in _list(run, Counts()):
        pass


def _list(run: Run, counts: Counts) -> Iterator[ImageEntry]:
    indexes = None if run.config.dry_run else join(run.output, "_archives")
    selection = Selection(run.config.include, run.config.exclude, films=run.config.video_fps != "0")
    listed = list_images(run.storage, run.inputs, run.output, indexes, selection) if run.config.input else iter(demo_photos.images())
    entries = _counting(listed, selection, counts)
    try:
        first = next(entries, None)
    except (OutageError, DeniedError):
        raise
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
        found = pa.concat_tables([first, *_due(iter(more), published, counts)]).sort_by(_LATEST_FIRST)
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
    """The listed images, sorted, with a column `known`: whether the newest published row of the same address has the same state.

    Listed a.jpg, b.jpg and c.jpg of 10 bytes each; published a.jpg of 10, b.jpg of 10 and then of 9, sorted together:

        image_uri  state  place of its run  known
        a.jpg      10     0                 (left out: not listed)
        a.jpg      10     -                 yes: the published row before it is the same
        b.jpg      10     0                 (left out)
        b.jpg      9      1                 (left out)
        b.jpg      10     -                 no: the image changed, though it was like this before
        c.jpg      10     -                 no: the image is new
    """
    newest: tuple[str | None, str | None, bool] = (None, None, False)  # of what was published
    for table in _sorted_together(listed, published):
        uris, states, waits = (_with_first(table[name], before) for name, before in zip(_COMPARED, newest, strict=True))
        is_published = np.concatenate([[True], table["place"].is_valid().to_numpy()])
        last = np.maximum.accumulate(np.where(is_published, np.arange(len(is_published)), 0))
        newest = uris[last[-1]].as_py(), states[last[-1]].as_py(), waits[last[-1]].as_py()
        is_same = pc.or_(pc.equal(states, states.take(last)), pc.equal(states, ""))  # what is listed without a state did not change
        is_archived = _with_first(pc.equal(table["status"], Status.ARCHIVED.value).fill_null(False), False)
        is_same = pc.and_not(is_same, pc.and_not(waits.take(last), is_archived))  # what was archived and is not any more was restored
        known = pc.and_(pc.equal(uris, uris.take(last)), is_same).fill_null(False)
        marked = table.append_column("known", known[1:]).filter(pa.array(~is_published[1:]))
        if len(marked):
            yield marked


def _with_first(column: pa.ChunkedArray, value: str | bool | None) -> pa.Array:
    return pa.concat_arrays([pa.array([value], column.type), *column.chunks])


def _sorted_together(listed: Iterator[pa.RecordBatch], published: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    failures: list[Exception] = []
    with tempfile.TemporaryDirectory(prefix="fer-ray-") as scratch, duckdb.connect() as connection:
        connection.execute(f"SET memory_limit='{MEGABYTES}MB'; SET threads=1; SET streaming_buffer_size='64KB'")
        connection.execute("SET preserve_insertion_order=false; SET temp_directory='{}'".format(scratch.replace("'", "''")))
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


def run_places(storage: Storage, output: str) -> dict[str, tuple[datetime.datetime, str]]:
    """The committed runs, and what orders them: when each was committed, and its id."""

    def read(uri: str) -> tuple[datetime.datetime, str]:
        try:
            row = pq.read_table(pa.BufferReader(storage.read(uri)), columns=["finished_at", "run_id"]).to_pylist()[0]
        except pa.ArrowException as error:
            raise StorageError(f"The table file {uri} cannot be read: restore it, or remove all files of that run.") from error
        return row["finished_at"], row["run_id"]

    listed = storage.list_files(join(output, "runs"))  # others may be at work on files with other names
    files = [entry.image_uri for entry in listed if entry.size_bytes and entry.image_uri.endswith(".parquet")]
    with ThreadPoolExecutor(READER_THREADS) as threads:
        return {PurePosixPath(file).stem: place for file, place in zip(files, threads.map(read, files), strict=True)}


def published_images(storage: Storage, output: str, model_version: str) -> Iterator[pa.RecordBatch]:
    """What committed runs labeled with this model (not what they could not read): states, and places of the runs; streaming."""
    committed = run_places(storage, output)
    order = {run_id: place for place, run_id in enumerate(sorted(committed, key=lambda run_id: committed[run_id]))}
    for file in _image_files(storage, output):
        if (run_id := _run_of(file)) in order:
            for batch in _labeled_in(storage, file, pc.field("model_version") == model_version):
                place = pa.array([order[run_id]] * len(batch), pa.int32())
                waits = pc.is_in(batch["status"], pa.array([Status.ARCHIVED.value, Status.UNREADABLE.value]))
                yield batch.append_column("place", place).append_column("waits", waits).select(_PUBLISHED.names).cast(_PUBLISHED)


def known_images(storage: Storage, output: str) -> list[ImageEntry]:
    """Some images that the newest of the tables' files says were read, none from inside an archive."""
    for file in reversed(list(_image_files(storage, output))):
        for batch in _labeled_in(storage, file, pc.field("status").isin([Status.OK.value, Status.NO_FACE.value])):
            rows = [
                row for row in batch.select(_STATE_COLUMNS).to_pylist() if "#" not in row["image_uri"] and not is_film(row["image_uri"])
            ]
            return [ImageEntry(**row) for row in rows[:: max(1, len(rows) // KNOWN_IMAGES)]]
    return []


def _image_files(storage: Storage, output: str) -> Iterator[str]:
    return (entry.image_uri for entry in storage.list_files(join(output, "images")) if entry.image_uri.endswith(".parquet"))


def _run_of(file: str) -> str:
    return PurePosixPath(file).stem.rpartition("-")[0]


def _labeled_in(storage: Storage, file: str, condition: pc.Expression) -> Iterator[pa.RecordBatch]:
    """The rows of a file of images that meet the condition and could be read; for the frames of a film few rows of the film itself.

    A film of which a part could not be read has a row that says so.
    """
    try:
        with storage.open(file, read_ahead=1 << 16) as opened:
            stored = pq.ParquetFile(opened)
            names = [*_STATE_COLUMNS, "model_version", "status", "video_uri"]
            columns = [name for name in names if name in stored.schema_arrow.names]  # 0.1 knew no films
            for group in range(stored.num_row_groups):
                for batch in stored.iter_batches(ROWS_PER_BATCH, row_groups=[group], columns=columns, use_threads=False):
                    yield _films_once(batch).filter(condition)
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"The table file {file} cannot be read: restore it, or remove all files of that run.") from error


def _films_once(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Frames as their film, once for all that follow each other with the same status; images that could not be read are left out."""
    was_read = pc.not_equal(batch["status"], Status.UNREADABLE.value)
    if "video_uri" not in batch.schema.names or batch["video_uri"].null_count == len(batch):
        return batch.filter(was_read)
    is_film = batch["video_uri"].is_valid()
    batch = batch.set_column(batch.schema.get_field_index("image_uri"), "image_uri", pc.coalesce(batch["video_uri"], batch["image_uri"]))
    place, status = batch["image_uri"], batch["status"]
    is_other = pc.or_(pc.not_equal(place[1:], place[:-1]), pc.not_equal(status[1:], status[:-1]))
    return batch.filter(pc.and_(pc.or_(was_read, is_film), pa.concat_arrays([pa.array([True]), is_other])))


def _without_repeats(table: pa.Table, last_uri: str | None) -> pa.Table:
    """The rows whose image_uri is not that of the row before."""
    if not len(table):
        return table
    uris = table["image_uri"].combine_chunks()
    different = pc.not_equal(uris[1:], uris[:-1])
    return table.filter(pa.concat_arrays([pa.array([uris[0].as_py() != last_uri]), different]))
