"""Which of the listed images a run must label: those that no committed run has labeled, as they are now, with this model."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fer_ray.data import demo_photos
from fer_ray.errors import DeniedError, OutageError, StorageError, UsageError
from fer_ray.io.inputs import Selection, is_film, list_images
from fer_ray.io.storage import Storage, join
from fer_ray.label.incremental import gone
from fer_ray.label.incremental.compare import ROWS_PER_BATCH, STATE_COLUMNS, mark_known
from fer_ray.label.incremental.forgotten import Forgotten
from fer_ray.label.incremental.gone import GoneImages
from fer_ray.schema import LISTING, ImageEntry, Status, as_batches
from fer_ray.text import plural

if TYPE_CHECKING:
    from fer_ray.label.run import Run

FIRST_LIMITED_BATCHES = 4  # of a run with a limit; twice as many each time that these hold too few images that are due
READER_THREADS = 16  # for the rows of runs
KNOWN_IMAGES = 8
_LATEST_FIRST = [("image_uri", "ascending"), ("modified_at", "descending"), ("data_offset", "descending")]

Published = Callable[[], Iterator[pa.RecordBatch]]


@dataclass
class Counts:
    """How many listed images turned out to be known already, how many files were none by their names, and which images are gone.

    `forgotten` counts those that `fer-ray forget` left out, after so many requests (`forgettings`) that came to their end.
    """

    known: int = 0
    ignored: int = 0
    forgotten: int = 0
    forgettings: int = 0
    gone: GoneImages | None = None  # None where the listing cannot tell


def find_due(run: Run, counts: Counts) -> Iterator[pa.Table]:
    """The images of the run's input that are due, as `due_images` has them; an input without any is refused.

    Raises:
        UsageError: the input holds no files, or cannot be listed.
        OutageError, DeniedError: it may be listed in a while.
    """
    if GoneImages.can_be_known(run):
        counts.gone = GoneImages(run, _selection(run))

    def published() -> Iterator[pa.RecordBatch]:
        if run.config.all and not counts.gone:
            return iter(())
        return published_images(run.storage, run.output, None if run.config.all else run.model_version, others=bool(counts.gone))

    return due_images(_list(run, counts), published, run.config.limit, counts)


def read_signatures(run: Run) -> None:
    """Read the lists of a planned run again: signed addresses stand nowhere else."""
    for _ in _list(run, Counts()):
        pass


def _list(run: Run, counts: Counts) -> Iterator[ImageEntry]:
    indexes = None if run.config.dry_run else join(run.output, "_archives")
    forgotten = Forgotten.read(run.storage, run.output)
    counts.forgettings = forgotten.done
    selection = _selection(run, forgotten)
    demo = (entry for entry in demo_photos.images() if not selection.forgets(entry.image_uri))
    listed = list_images(run.storage, run.inputs, run.output, indexes, selection) if run.config.input else demo
    entries = _counting(listed, selection, counts)
    if counts.gone:
        entries = counts.gone.watch(entries)
    try:
        first = next(entries, None)
    except (OutageError, DeniedError):
        raise
    except StorageError as error:
        raise UsageError(str(error)) from error
    if first is None:
        ignored = f"no images ({plural(counts.ignored, 'file')} ignored: --include takes them)" if counts.ignored else "no files"
        ignored = f"nothing but what was forgotten ({plural(counts.forgotten, 'file')})" if counts.forgotten else ignored
        raise UsageError(f"The input {run.input_uri} holds {ignored}: name a folder with photographs.")
    return itertools.chain([first], entries)


def _selection(run: Run, forgotten: Forgotten | None = None) -> Selection:
    covers = forgotten.covers if forgotten else None
    return Selection(run.config.include, run.config.exclude, films=run.config.video_fps != "0", covers=covers)


def _counting(entries: Iterator[ImageEntry], selection: Selection, counts: Counts) -> Iterator[ImageEntry]:
    for entry in entries:
        counts.ignored, counts.forgotten = selection.ignored, selection.forgotten
        yield entry
    counts.ignored, counts.forgotten = selection.ignored, selection.forgotten


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
    for table in mark_known(listed, published(), counts.gone):
        fresh = _without_repeats(table, last_uri)
        last_uri = table["image_uri"][-1].as_py()
        due = fresh.filter(pc.invert(fresh["known"]))
        counts.known += len(fresh) - len(due)
        yield due.select(LISTING.names).cast(LISTING)


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


def published_images(storage: Storage, output: str, model_version: str | None, others: bool = False) -> Iterator[pa.RecordBatch]:
    """What committed runs labeled with this model (not what they could not read): states, and places of the runs; streaming.

    With `others` also what they labeled with other models, marked, and what their listings said of images that are gone.
    """
    committed = run_places(storage, output)
    order = {run_id: place for place, run_id in enumerate(sorted(committed, key=lambda run_id: committed[run_id]))}
    for file in _image_files(storage, output):
        if (run_id := _run_of(file)) in order:
            for batch in _labeled_in(storage, file, pc.scalar(True) if others else pc.field("model_version") == model_version):
                place = pa.array([order[run_id]] * len(batch), pa.int32())
                waits = pc.is_in(batch["status"], pa.array([Status.ARCHIVED.value, Status.UNREADABLE.value]))
                other = pc.not_equal(batch["model_version"], model_version or "")
                yield batch.append_column("place", place).append_column("waits", waits).append_column("other", other)
    if others:
        yield from gone.changes(storage, output, order)


def known_images(storage: Storage, output: str) -> list[ImageEntry]:
    """Some images that the newest of the tables' files says were read, none from inside an archive."""
    for file in reversed(list(_image_files(storage, output))):
        for batch in _labeled_in(storage, file, pc.field("status").isin([Status.OK.value, Status.NO_FACE.value])):
            rows = [row for row in batch.select(STATE_COLUMNS).to_pylist() if "#" not in row["image_uri"] and not is_film(row["image_uri"])]
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
            names = [*STATE_COLUMNS, "model_version", "status", "video_uri"]
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
