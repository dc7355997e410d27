"""Archives of images: tars, the shards of WebDataset and img2dataset, and zips; what lies in them is remembered until they change."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.errors import AccessError, OutageError, TooLargeError
from fer_ray.io.storage import WEB, Storage, join, lower_name
from fer_ray.io.zip import BrokenArchiveError, zip_members
from fer_ray.schema import LISTING, ImageEntry, Status, as_batches, image_id

INDEX_VERSION = 2  # 1 had the images of tars alone
_NAMED_INSIDE = re.compile(r"\.(?:tar|zip)(?:\?[^#]*)?(?=#)", re.IGNORECASE)
SUFFIXES = (".tar", ".zip")
UNREAD = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".7z", ".rar")

MAX_HEADER_BYTES = 16 << 20  # of one member, long names and pax headers included
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
# What tarfile lets through of a hostile header: parsing is done by hand there, and by recursion from header to header.
_BROKEN = (tarfile.TarError, ArithmeticError, EOFError, LookupError, RecursionError, ValueError)


def is_archive(uri: str) -> bool:
    """Whether a file is one by its name."""
    return lower_name(uri).endswith((*SUFFIXES, *UNREAD))


def files_in(
    storage: Storage, archive: ImageEntry, indexes: str | None, forgets: Callable[[str], bool] = lambda uri: False
) -> Iterator[ImageEntry]:
    """The files inside an archive, as `<archive>#<name>`; an archive that does not read is itself one, with the reason.

    The whole archive has to be read for that, so what was found is kept in the folder `indexes`, where one is given, for as
    long as the archive does not change. One that breaks off gives what is whole in it and then itself. What `forgets` says of an
    address is left out of both.
    """
    index = join(indexes, f"{image_id(archive.image_uri)}.parquet") if indexes else None
    if index is None or archive.error is not None:
        yield from (entry for entry in _files(storage, archive) if not forgets(entry.image_uri))
    elif _is_of(storage, index, archive):
        with storage.open(index) as file:
            for batch in pq.ParquetFile(file).iter_batches():
                yield from (ImageEntry(**row) for row in batch.to_pylist() if not forgets(row["image_uri"]))
    else:
        try:
            yield from _indexed(storage, archive, index, forgets)
        except _UnreadableError as error:
            yield replace(archive, status=Status.UNREADABLE, error=f"The file cannot be read ({error}).")


def find_inside(storage: Storage, uri: str, indexes: str | None = None) -> ImageEntry | None:
    """The file inside an archive that an image_uri names, the last of that name; None where there is none."""
    found = None
    if archive := archive_of(storage, uri):
        for entry in files_in(storage, archive, indexes):
            if entry.image_uri == uri:
                found = entry
    return found


def names_inside(uri: str) -> bool:
    """Whether an address looks like that of a file inside an archive."""
    return _NAMED_INSIDE.search(uri) is not None


def is_unlisted(entry: ImageEntry) -> bool:
    """Whether this is an archive, or something in one, whose store did not give it when it was listed."""
    is_plain = entry.archive_uri is None and entry.error is None
    return is_plain and (is_archive(entry.image_uri) or (entry.image_uri.startswith(WEB) and names_inside(entry.image_uri)))


def first_byte(unlisted: ImageEntry) -> ImageEntry:
    """What is read of an archive to find out why it was not listed."""
    return replace(unlisted, size_bytes=1, archive_uri=unlisted.image_uri.partition("#")[0], data_offset=0)


def look_up(storage: Storage, entry: ImageEntry) -> ImageEntry:
    """What a list names, as its store has it now; with the reason where that cannot be looked at."""
    try:
        return storage.stat(entry.image_uri) or entry
    except OutageError:
        raise
    except AccessError as error:
        return replace(entry, status=Status.UNREADABLE, error=f"The file cannot be read ({error.reason}).")


def archive_of(storage: Storage, uri: str) -> ImageEntry | None:
    """The archive that an image_uri points into; None when there is no such archive, or a file of that very name."""
    names = [uri[: match.end()] for match in _NAMED_INSIDE.finditer(uri)]
    if not names or _stat(storage, uri) is not None:
        return None
    return next((archive for archive in (_stat(storage, name) for name in names) if archive), None)


def _stat(storage: Storage, uri: str) -> ImageEntry | None:
    """As `Storage.stat`; what is forbidden may not be there: S3 says so of names that are not, to those who may not list."""
    try:
        return storage.stat(uri)
    except OutageError:
        raise
    except AccessError:
        return None


class _UnreadableError(Exception):
    """The store or disk did not give the archive, which may be whole; nothing is remembered of it."""


def _indexed(storage: Storage, archive: ImageEntry, index: str, forgets: Callable[[str], bool]) -> Iterator[ImageEntry]:
    schema = LISTING.with_metadata({"archive": _state(archive)})
    with storage.writing(index) as path, pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in as_batches(member for member in _members(storage, archive) if not forgets(member.image_uri)):
            writer.write_batch(batch)
            yield from (ImageEntry(**row) for row in batch.to_pylist())


def _files(storage: Storage, archive: ImageEntry) -> Iterator[ImageEntry]:
    try:
        yield from _members(storage, archive)
    except _UnreadableError as error:
        yield replace(archive, status=Status.UNREADABLE, error=f"The file cannot be read ({error}).")


def _members(storage: Storage, archive: ImageEntry) -> Iterator[ImageEntry]:
    if archive.error is not None:
        yield archive
        return
    name = lower_name(archive.image_uri)
    try:
        if name.endswith(UNREAD):
            raise BrokenArchiveError(f"archives of the kind {name[name.rindex('.') :]} are not read: unpack it, or pack a .tar or .zip")
        yield from (zip_members if name.endswith(".zip") else _tar_members)(storage, archive)
    except BrokenArchiveError as error:
        yield replace(archive, status=Status.UNDECODABLE, error=f"The archive does not read to its end ({error}).")
    except OutageError:
        raise
    except TooLargeError as error:
        yield replace(archive, status=Status.TOO_LARGE, error=f"The archive has {error.size:,} bytes and cannot be read by parts.")
    except AccessError as error:
        raise _UnreadableError(error.reason) from error
    except OSError as error:
        raise _UnreadableError(error.strerror or "it does not exist any more") from error


def _state(archive: ImageEntry) -> str:
    return f"{INDEX_VERSION} {archive.image_uri} {archive.etag} {archive.modified_at} {archive.size_bytes}"


def _is_of(storage: Storage, index: str, archive: ImageEntry) -> bool:
    """Whether there is an index, and of the archive as it is now."""
    if storage.stat(index) is None:
        return False
    with storage.open(index) as file:
        try:
            return bool((pq.read_schema(file).metadata or {}).get(b"archive") == _state(archive).encode())
        except pa.ArrowException:
            return False


def _tar_members(storage: Storage, archive: ImageEntry) -> Iterator[ImageEntry]:
    """Every file in a tar, as `<archive>#<name>`; the whole archive has to be read for that.

    Raises:
        BrokenArchiveError: it ends before its end mark; what is whole came before.
    """
    with storage.open(archive.image_uri) as opened:
        file = _Bounded(opened)
        for member in _headers(file):
            if not member.isreg() and not member.islnk() and not member.issym():
                continue
            name = member.name.encode(errors="surrogateescape").decode(errors="backslashreplace")
            uri = f"{archive.image_uri}#{name}"
            if problem := _problem(member):
                yield ImageEntry(uri, None, archive.modified_at, archive.etag, status=Status.UNDECODABLE, error=problem)
            else:
                yield ImageEntry(uri, member.size, archive.modified_at, archive.etag, archive.image_uri, member.offset_data)


def _problem(member: tarfile.TarInfo) -> str | None:
    if not member.isreg():
        return "It is a link in its archive, and not read: what it leads to has a row of its own where it lies in the archive."
    if member.sparse is not None:
        return "It is stored in its archive with gaps, which is not read: pack it again without --sparse."
    return None


def _headers(file: _Bounded) -> Iterator[tarfile.TarInfo]:
    """The members that are whole."""
    start = file.read(6)
    file.seek(0)
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            raise BrokenArchiveError(f"it is compressed with {kind}: unpack it, or pack it without compression")
    try:
        with tarfile.open(fileobj=file, mode="r:") as members:
            end = 0
            while (member := members.next()) is not None:
                held = member.size if member.isreg() and member.sparse is None else 0
                if held < 0 or members.offset <= end or member.offset_data + held > file.size:
                    raise BrokenArchiveError("it breaks off, or its headers are wrong")
                end = members.offset
                yield member
                members.members = []  # type: ignore[attr-defined]  # else it keeps every header
                members.pax_headers = {}
                file.budget = MAX_HEADER_BYTES
            file.seek(members.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise BrokenArchiveError("something that is no header stands in it")
    except _BROKEN as error:
        raise BrokenArchiveError(f"it breaks off, or is no tar: {error or type(error).__name__}") from error


class _Bounded(io.RawIOBase):
    """A file that hands out a limited number of bytes for one member's header, whatever size that claims."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.file, self.budget = file, MAX_HEADER_BYTES
        self.size = file.seek(0, io.SEEK_END)
        file.seek(0)

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= self.budget:
            raise tarfile.ReadError("a header is too large")
        self.budget -= size
        return self.file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()
