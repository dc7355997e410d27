"""Which images that earlier runs labeled are not in a complete listing any more, and which have come back.

    gone/<run_id>.parquet   what changed with the listing of that run: image_uri, and whether it is gone now

Only changes are written, so a listing without any leaves no file. What a listing cannot know it leaves as it was: images that lie
elsewhere, that its patterns leave out, or in folders and archives that could not be listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.errors import StorageError
from fer_ray.io.archives import is_archive
from fer_ray.io.folders import path_of_uri
from fer_ray.io.inputs import Selection, relative_path
from fer_ray.io.storage import Storage, join, lower_name
from fer_ray.io.uri_list import LISTS
from fer_ray.schema import GONE, ImageEntry

if TYPE_CHECKING:
    from fer_ray.label.run import Run

FOLDER = "gone"  # beside the tables
NONE = "_none"  # the name of a file without rows; no run is called so


class GoneImages:
    """What one listing says of the images that are known; `count` are those of them that it lacks."""

    def __init__(self, run: Run, selection: Selection) -> None:
        self.run_id, self.inputs, self.selection, self.count = run.run_id, run.inputs, selection, 0
        self._bases = tuple(path_of_uri(given).rstrip("/") for given in run.inputs)
        self._unlisted: list[str] = []
        self._changes: list[pa.Table] = []

    @staticmethod
    def can_be_known(run: Run) -> bool:
        """Whether the run lists all that lies in its inputs: no part, no list of others' making, nothing that must leave no trace."""
        config = run.config
        return bool(config.input) and config.limit is None and not config.dry_run and not any(map(_is_list, run.inputs))

    def watch(self, entries: Iterator[ImageEntry]) -> Iterator[ImageEntry]:
        """The same entries; folders and archives that could not be listed are remembered."""
        for entry in entries:
            if entry.archive_uri is None and is_archive(entry.image_uri):
                self._unlisted.append(f"{entry.image_uri}#")
            elif entry.error is not None and entry.image_uri.endswith("/"):
                self._unlisted.append(entry.image_uri)
            yield entry

    def missing(self, image_uris: Iterable[str], were_gone: Iterable[bool]) -> None:
        """Known images that the listing, which is at its end, lacks."""
        unlisted = tuple(self._unlisted)
        held = [(uri, gone) for uri, gone in zip(image_uris, were_gone, strict=True) if not uri.startswith(unlisted) and self._covers(uri)]
        self.count += len(held)
        self._change([uri for uri, gone in held if not gone], is_gone=True)

    def back(self, image_uris: list[str]) -> None:
        """Images that were gone, and that it has."""
        self._change(image_uris, is_gone=False)

    def write(self, storage: Storage, file: str) -> None:
        """Write what changed; nothing where nothing did."""
        if self._changes:
            with storage.writing(file) as path:
                pq.write_table(pa.concat_tables(self._changes), path, compression="zstd")

    def _change(self, image_uris: list[str], *, is_gone: bool) -> None:
        if image_uris:
            columns = [image_uris, [is_gone] * len(image_uris), [self.run_id] * len(image_uris)]
            self._changes.append(pa.table([pa.array(values, field.type) for values, field in zip(columns, GONE, strict=True)], schema=GONE))

    def _covers(self, image_uri: str) -> bool:
        """Whether the listing would have it: it lies in an input, and the patterns take it."""
        path = path_of_uri(image_uri)
        if image_uri.endswith("/") or is_archive(image_uri):
            return False  # a row that said that a folder or an archive could not be listed
        if not any(path == base or path.startswith((f"{base}/", f"{base}#")) for base in self._bases):
            return False
        archive, mark, _ = image_uri.partition("#")
        inside = bool(mark) and is_archive(archive)
        return self.selection.takes(relative_path(self.inputs, image_uri, archive if inside else None))


def changes(storage: Storage, output: str, order: Mapping[str, int]) -> Iterator[pa.RecordBatch]:
    """What the listings of committed runs changed: image_uri, gone, and the place of the run in `order`.

    Raises:
        StorageError: a file is broken.
    """
    for entry in storage.list_files(join(output, FOLDER)):
        run_id = PurePosixPath(entry.image_uri).stem
        if run_id in order and entry.image_uri.endswith(".parquet"):
            try:
                table = pq.read_table(pa.BufferReader(storage.read(entry.image_uri)), columns=["image_uri", "gone"])
            except pa.ArrowException as error:
                raise StorageError(f"The file {entry.image_uri} cannot be read: restore it, or remove it.") from error
            yield from table.append_column("place", pa.array([order[run_id]] * len(table), pa.int32())).to_batches()


def file_of(output: str, run_id: str) -> str:
    """Where a committed run has what its listing changed."""
    return join(output, FOLDER, f"{run_id}.parquet")


def _is_list(uri: str) -> bool:
    return lower_name(uri).endswith(LISTS)
