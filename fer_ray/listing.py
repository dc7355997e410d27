"""What lies in the inputs of a run: folders and prefixes, lists of URIs, tar shards, single images."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import itertools
import tarfile
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fer_ray.errors import UsageError
from fer_ray.folders import FolderStore
from fer_ray.schema import LISTING, ImageEntry
from fer_ray.storage import S3, Storage, absolute, join

LISTS = (".parquet", ".csv", ".csv.gz")
ARCHIVE = ".tar"
ROWS_PER_BATCH = 8192
MAX_HEADER_BYTES = 16 << 20

# What a column of a list may be called, in other people's tools and in S3 Inventory; the first that is there counts.
_COLUMNS = {
    "image_uri": ("image_uri", "uri", "url", "path", "file"),
    "size_bytes": ("size_bytes", "size"),
    "modified_at": ("modified_at", "last_modified_date", "last_modified"),
    "etag": ("etag", "e_tag"),
}
_IN_ARCHIVES = frozenset(
    f".{extension}"
    for extension in "jpg jpeg jpe jfif png webp bmp gif tif tiff avif heic heif jp2 j2k pgm ppm pbm pnm".split()  # noqa: SIM905
)


def list_images(storage: Storage, inputs: Iterable[str], excluded: str) -> Iterator[ImageEntry]:
    """Every image of the inputs but none below `excluded`; the same image may come twice.

    Raises:
        UsageError: an input that cannot be listed.
    """
    for uri in inputs:
        if uri.lower().endswith(LISTS) and storage.find(uri):
            yield from read_list(storage, uri)
        else:
            for entry in _files(storage, uri, excluded):
                if entry.image_uri.lower().endswith(ARCHIVE):
                    yield from list_archive(storage, entry)
                else:
                    yield entry


def check_inputs(storage: Storage, inputs: Iterable[str]) -> tuple[str, ...]:
    """The inputs as absolute addresses, each looked at once.

    Raises:
        UsageError: one is no folder, prefix or file that can be listed.
    """
    checked = []
    for given in inputs:
        uri = absolute(given, "input")
        if not uri.startswith(S3) and storage.find(uri) is None:
            FolderStore().check_listable(uri)
        checked.append(uri)
    return tuple(checked)


def read_image_named(storage: Storage, uri: str, max_megabytes: float) -> bytes:
    """The bytes of an image by its image_uri alone, also of one inside a tar archive (which is read up to it).

    Raises:
        ImageError: as `Storage.read_image`.
    """
    archive = _archive_of(uri)
    if archive and storage.find(uri) is None and (found := storage.find(archive)):
        for entry in list_archive(storage, found):
            if entry.image_uri == uri:
                return storage.read_image(entry, max_megabytes)
    return storage.read_image(ImageEntry(uri, None, None), max_megabytes)


def read_list(storage: Storage, uri: str) -> Iterator[ImageEntry]:
    """The images that a Parquet or CSV file names: in a column image_uri (or uri, url, path), or bucket and key.

    A CSV without a header is taken as S3 Inventory writes it: bucket, key (URL-encoded), and perhaps more. Size, time and
    etag are used where the list has them; an image without them counts as unchanged.

    Raises:
        UsageError: the file does not read, or names no such column.
    """
    try:
        with storage.open(uri) as file:
            rows = _parquet_rows(file) if uri.lower().endswith(".parquet") else _csv_rows(file, uri)
            for row in rows:
                yield ImageEntry(**row)
    except (pa.ArrowException, UnicodeDecodeError, csv.Error, KeyError, OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"The list {uri} does not read ({reason}): give one with a column image_uri, or bucket and key.") from error


def list_archive(storage: Storage, archive: ImageEntry) -> Iterator[ImageEntry]:
    """The images inside an uncompressed tar, as `<archive>#<name>`; other members (.json, .txt) are left out.

    An archive that breaks off gives the images before the break and itself, as an image that will not decode.
    """
    uri = archive.image_uri
    try:
        with storage.open(uri) as file, tarfile.open(fileobj=_Bounded(file), mode="r:") as members:
            for member in members:
                members.members = []  # type: ignore[attr-defined]  # else it keeps every header
                if member.isreg() and PurePosixPath(member.name).suffix.lower() in _IN_ARCHIVES:
                    name = member.name.encode(errors="surrogateescape").decode(errors="replace")
                    yield ImageEntry(f"{uri}#{name}", member.size, archive.modified_at, archive.etag, uri, member.offset_data)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError):
        yield archive


def as_batches(entries: Iterable[ImageEntry]) -> Iterator[pa.RecordBatch]:
    """The entries as Arrow batches of the schema LISTING."""
    columns: dict[str, list[Any]] = {name: [] for name in LISTING.names}
    appends = [(columns[name].append, name) for name in LISTING.names]
    count = 0
    for entry in entries:
        for append, name in appends:
            append(getattr(entry, name))
        count += 1
        if count == ROWS_PER_BATCH:
            yield _batch(columns)
            for values in columns.values():
                values.clear()
            count = 0
    if count:
        yield _batch(columns)


def _batch(columns: dict[str, list[Any]]) -> pa.RecordBatch:
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in LISTING], schema=LISTING)


def _files(storage: Storage, uri: str, excluded: str) -> Iterator[ImageEntry]:
    """Everything below a folder or prefix, or a single file; in S3 both may be there."""
    found = None if uri.startswith(S3) else storage.find(uri)
    if found is None:
        yield from storage.walk(uri, excluded)
    if uri.startswith(S3) and not uri.endswith("/"):
        found = storage.find(uri)
    if found:
        yield found


def _archive_of(uri: str) -> str | None:
    head, mark, _ = uri.partition(ARCHIVE + "#")
    return head + ARCHIVE if mark else None


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


def _parquet_rows(file: io.BufferedReader) -> Iterator[dict[str, Any]]:
    stored = pq.ParquetFile(file)
    names = _columns_of(stored.schema_arrow.names)
    wanted = sorted({column for column in names.values() if column})
    for batch in stored.iter_batches(ROWS_PER_BATCH, columns=wanted):
        cells = {name: _cast(batch, column, name) for name, column in names.items()}
        for row in zip(*cells.values(), strict=True):
            yield _entry_of(dict(zip(cells, row, strict=True)), encoded=False)


def _cast(batch: pa.RecordBatch, column: str | None, name: str) -> list[Any]:
    if column is None:
        return [None] * len(batch)
    values = batch.column(column)
    if name == "modified_at" and pa.types.is_string(values.type):
        return list(values.to_pylist())
    kind = LISTING.field(name).type if name in LISTING.names else pa.string()
    if pa.types.is_timestamp(kind) and pa.types.is_timestamp(values.type) and values.type.tz is None:
        values = pc.assume_timezone(values, "UTC")
    return list(values.cast(kind, safe=False).to_pylist())


def _csv_rows(file: io.BufferedReader, uri: str) -> Iterator[dict[str, Any]]:
    binary = gzip.GzipFile(fileobj=file) if uri.lower().endswith(".gz") else file
    with io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text)
        first = next(rows, [])
        header = [name.strip().lower() for name in first]
        inventory = not {"key", *_COLUMNS["image_uri"]} & set(header) and len(first) > 1
        names = {"bucket": "bucket", "key": "key"} if inventory else _columns_of(header)
        places = {"bucket": 0, "key": 1} if inventory else {name: header.index(column) for name, column in names.items() if column}
        for row in itertools.chain([first] if inventory else [], rows):
            if row:
                yield _entry_of({name: row[place] if place < len(row) else None for name, place in places.items()}, encoded=inventory)


def _columns_of(header: list[str]) -> dict[str, str | None]:
    """Our name to theirs."""
    found = {name: next((column for column in columns if column in header), None) for name, columns in _COLUMNS.items()}
    if found["image_uri"] is None:
        del found["image_uri"]
        if not {"bucket", "key"} <= set(header):
            raise KeyError("no column image_uri, uri, url, path, file, or bucket and key")
        found.update(bucket="bucket", key="key")
    return found


def _entry_of(cells: dict[str, Any], encoded: bool) -> dict[str, Any]:
    """The arguments of an ImageEntry from a row's cells."""
    uri = cells.get("image_uri")
    if uri is None:
        key = cells["key"] or ""
        uri = join(f"{S3}{cells['bucket']}", urllib.parse.unquote_plus(key) if encoded else key)
    size, modified_at = cells.get("size_bytes"), cells.get("modified_at")
    if isinstance(modified_at, str) and modified_at:
        modified_at = pc.strptime(modified_at[:19].replace("T", " "), "%Y-%m-%d %H:%M:%S", "us").as_py().replace(tzinfo=datetime.UTC)
    return {
        "image_uri": absolute(uri, "listed image"),
        "size_bytes": int(size) if size else None,
        "modified_at": modified_at if size and modified_at else None,  # one without the other cannot tell whether an image changed
        "etag": (cells.get("etag") or "").strip('"') or None,
    }
