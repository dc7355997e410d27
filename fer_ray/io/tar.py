"""Images inside uncompressed tar archives, the shards of WebDataset and img2dataset."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.io.storage import Storage, join
from fer_ray.schema import IMAGE_SUFFIXES, LISTING, ImageEntry, as_batches, image_id

ARCHIVE = ".tar"
MAX_HEADER_BYTES = 16 << 20


def images_in(storage: Storage, archive: ImageEntry, indexes: str | None) -> Iterator[ImageEntry]:
    """The images inside a tar, as `<archive>#<name>`; other members (.json, .txt) are left out.

    The whole archive has to be read for that, so what was found is kept in the folder `indexes`, where one is given, for as
    long as the archive does not change. An archive that breaks off gives the images before the break and itself, as an
    image that will not decode.
    """
    index = join(indexes, f"{image_id(archive.image_uri)}.parquet") if indexes else None
    try:
        if index is None:
            yield from _members(storage, archive)
        elif _is_of(storage, index, archive):
            with storage.open(index) as file:
                for batch in pq.ParquetFile(file).iter_batches():
                    yield from (ImageEntry(**row) for row in batch.to_pylist())
        else:
            schema = LISTING.with_metadata({"archive": _state(archive)})
            with storage.writing(index) as path, pq.ParquetWriter(path, schema, compression="zstd") as writer:
                for batch in as_batches(_members(storage, archive)):
                    writer.write_batch(batch)
                    yield from (ImageEntry(**row) for row in batch.to_pylist())
    except _BrokenArchiveError:
        yield archive


def archive_of(uri: str) -> str | None:
    """The archive that an image_uri points into; None when it looks like a plain file."""
    head, mark, _ = uri.partition(ARCHIVE + "#")
    return head + ARCHIVE if mark else None


class _BrokenArchiveError(Exception):
    """The archive ends or does not read before its end mark."""


def _members(storage: Storage, archive: ImageEntry) -> Iterator[ImageEntry]:
    for member in _headers(storage, archive.image_uri):
        if member.isreg() and PurePosixPath(member.name).suffix.lower() in IMAGE_SUFFIXES:
            name = member.name.encode(errors="surrogateescape").decode(errors="replace")
            uri = f"{archive.image_uri}#{name}"
            yield ImageEntry(uri, member.size, archive.modified_at, archive.etag, archive.image_uri, member.offset_data)


def _headers(storage: Storage, uri: str) -> Iterator[tarfile.TarInfo]:
    try:
        with storage.open(uri) as file, tarfile.open(fileobj=_Bounded(file), mode="r:") as members:
            while (member := members.next()) is not None:
                members.members = []  # type: ignore[attr-defined]  # else it keeps every header
                yield member
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise _BrokenArchiveError from error


def _state(archive: ImageEntry) -> str:
    return f"{archive.image_uri} {archive.etag} {archive.modified_at} {archive.size_bytes}"


def _is_of(storage: Storage, index: str, archive: ImageEntry) -> bool:
    """Whether there is an index, and of the archive as it is now."""
    if storage.stat(index) is None:
        return False
    with storage.open(index) as file:
        try:
            return bool((pq.read_schema(file).metadata or {}).get(b"archive") == _state(archive).encode())
        except pa.ArrowException:
            return False


class _Bounded(io.RawIOBase):
    """A file that hands out at most MAX_HEADER_BYTES at once: a tar's header may claim any size."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.file = file

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError("a header is too large")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()
