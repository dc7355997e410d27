"""Lists of URIs instead of folders, as people and S3 Inventory write them: Parquet, CSV, TSV, lines of text, JSON."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import math
import os
import posixpath
import re
import urllib.parse
import zlib
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.errors import UsageError
from fer_ray.io.folders import path_of_uri
from fer_ray.io.storage import S3, Storage, absolute, is_remote, join, lower_name
from fer_ray.schema import COLD_CLASSES, ImageEntry, archived, time_of

PARQUET = ".parquet"
ROWS_PER_BATCH = 8192
MAX_JSON_LENGTH = 64 << 20  # characters of a .json, which is read at once; .jsonl has no limit
MAX_LINE = 1 << 20  # characters; a packed list may hold any
MAX_SIZE = 2**63  # bytes, what a column of the tables holds
INVENTORY_SAMPLE = 1000  # rows that show what the columns of an S3 Inventory are

# What a column of a list may be called, in other people's tools and in S3 Inventory, in small letters and digits alone; the first that
# is there counts.
_COLUMNS = {
    "image_uri": ("imageuri", "uri", "url", "path", "file", "filename", "filepath", "imagepath", "imageurl"),
    "bucket": ("bucket",),
    "key": ("key",),
    "size": ("sizebytes", "size"),
    "modified_at": ("modifiedat", "lastmodifieddate", "lastmodified"),
    "etag": ("etag",),
    "is_latest": ("islatest",),
    "is_delete_marker": ("isdeletemarker",),
    "storage_class": ("storageclass",),
}
_WANTED = "a column image_uri (or uri, url, path, file, file_name, filepath, image_path), or bucket and key"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_INVENTORY_VALUES = {  # of its optional columns, which always come in this order
    "size": re.compile(r"\d+"),
    "modified_at": re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"),
    "etag": re.compile(r"[0-9a-f]{32}(-\d+)?"),
    "storage_class": re.compile(r"[A-Z]+(_[A-Z]+)*"),
}

Row = tuple[int, dict[str, Any]]
"""The number of a line, and its cells under our names."""


def read_list(storage: Storage, uri: str) -> Iterator[ImageEntry]:
    """The images that a list names, in a column image_uri (or what others call it), or by bucket and key; paths are relative to the list.

    A CSV without a header is read as S3 Inventory writes it, if its first column is one bucket: bucket, key (URL-encoded), and perhaps
    more. Size, time and etag are used where the list has them; an image without them counts as unchanged. Of versions the latest
    counts; objects in GLACIER and DEEP_ARCHIVE are entries with an error.

    Raises:
        UsageError: the file does not read, or names no such column, or a line of it is bad.
    """
    base = path_of_uri(uri.partition("?")[0] if is_remote(uri) else uri).rpartition("/")[0]
    try:
        with storage.open(uri) as file:
            for number, cells in _rows(file, lower_name(uri)):
                try:
                    if isinstance(given := cells.get("image_uri"), str):
                        cells["image_uri"] = storage.without_secret(given)
                    entry = _entry_of(cells, base)
                except (ValueError, TypeError, OverflowError, UsageError) as error:
                    raise UsageError(f"The list {uri} has a bad line, number {number} ({error}): correct it or take it out.") from error
                if entry:
                    yield entry
    except (pa.ArrowException, csv.Error, KeyError, OSError, EOFError, ValueError, OverflowError, RecursionError, zlib.error) as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())[:200]
        raise UsageError(f"The list {uri} does not read ({reason}): give one with {_WANTED}.") from error


def _rows(file: io.BufferedReader, name: str) -> Iterator[Row]:
    if name.endswith(PARQUET):
        yield from _parquet_rows(file)
        return
    packed = gzip.GzipFile(fileobj=file) if name.endswith(".gz") else None
    with _text(packed or file) as text:
        yield from next(read for suffix, read in _READERS.items() if name.removesuffix(".gz").endswith(suffix))(text)


def _parquet_rows(file: Any) -> Iterator[Row]:
    stored = pq.ParquetFile(file)
    columns = _columns_of(stored.schema_arrow.names)
    number = 0
    for batch in stored.iter_batches(ROWS_PER_BATCH, columns=sorted(columns.values())):
        cells = {name: _plain(batch.column(column)) for name, column in columns.items()}
        for row in zip(*cells.values(), strict=True):
            number += 1
            yield number, dict(zip(cells, row, strict=True))


def _plain(values: pa.Array) -> list[Any]:
    """As Python has them; times as microseconds, since a list may hold some that Python has not."""
    if pa.types.is_timestamp(values.type):
        kind = pa.timestamp("us", values.type.tz)
        return [None if us is None else time_of(us / 1e6) for us in values.cast(kind, safe=False).cast(pa.int64()).to_pylist()]
    return list(values.to_pylist())


def _csv_rows(text: io.TextIOWrapper) -> Iterator[Row]:
    lines = _lines(text)
    first = next(lines, "")
    headers = {mark: next(csv.reader([first], delimiter=mark), []) for mark in ",;\t|"}
    mark = next((mark for mark, header in headers.items() if _finds_images(header)), ",")
    rows = csv.reader(itertools.chain([first], lines), delimiter=mark)
    numbered = ((rows.line_num, row) for row in rows if row)
    if not _finds_images(headers[mark]):
        yield from _inventory_rows(numbered)
        return
    header = next(numbered)[1]
    places = {name: header.index(column) for name, column in _columns_of(header).items()}
    for number, row in numbered:
        yield number, {name: row[place] if place < len(row) else None for name, place in places.items()}


def _inventory_rows(rows: Iterator[tuple[int, list[str]]]) -> Iterator[Row]:
    """The rows of an S3 Inventory, which has no header: one bucket in all of them, keys, and columns that its values tell."""
    sample = list(itertools.islice(rows, INVENTORY_SAMPLE))
    buckets = {row[0] for _, row in sample}
    keys = [row[1] for _, row in sample if len(row) > 1]
    if len(buckets) != 1 or not all(map(_BUCKET.fullmatch, buckets)) or len(keys) < len(sample) or not re.search("[./]", "".join(keys)):
        shown = ", ".join(sample[0][1])[:80] if sample else "it is empty"
        raise KeyError(f"no such column: {shown}")
    places = _inventory_places([row for _, row in sample])
    for number, row in itertools.chain(sample, rows):
        cells = {name: row[place] if place < len(row) else None for name, place in places.items()}
        if cells["bucket"] not in buckets:
            raise UsageError(f"Line {number} names another bucket: a list without a header must be an S3 Inventory of one bucket.")
        yield number, {**cells, "key": urllib.parse.unquote_plus(cells["key"] or "")}


def _inventory_places(sample: list[list[str]]) -> dict[str, int]:
    width = max(map(len, sample))
    values = [next((row[place] for row in sample if place < len(row) and row[place]), "") for place in range(width)]
    places, place = {"bucket": 0, "key": 1}, 2
    if {value.lower() for value in values[3:5]} <= {"true", "false"} and len(values) > 4:
        places, place = {**places, "is_latest": 3, "is_delete_marker": 4}, 5
    for name, pattern in _INVENTORY_VALUES.items():
        if place < width and pattern.fullmatch(values[place]):
            places[name] = place
            place += 1
    return places


def _text_rows(text: io.TextIOWrapper) -> Iterator[Row]:
    for number, line in enumerate(_lines(text), 1):
        if line.strip():
            yield number, {"image_uri": line.rstrip("\r\n")}


def _json_lines(text: io.TextIOWrapper) -> Iterator[Row]:
    for number, line in enumerate(_lines(text), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} is no JSON") from error
            yield number, _json_cells(row, f"line {number}")


def _json_rows(text: io.TextIOWrapper) -> Iterator[Row]:
    content = text.read(MAX_JSON_LENGTH + 1)
    if len(content) > MAX_JSON_LENGTH:
        raise ValueError(f"it has more than {MAX_JSON_LENGTH:,} characters: write one object a line, as .jsonl")
    found = json.loads(content)
    if isinstance(found, dict) and "fileSchema" in found:
        raise KeyError("it is the manifest of an S3 Inventory: give the files that it names")
    rows = found.get("images") if isinstance(found, dict) else found  # as COCO has them
    if not isinstance(rows, list):
        raise KeyError("it holds no list of images")
    for number, row in enumerate(rows, 1):
        yield number, _json_cells(row, f"entry {number}")


def _json_cells(row: Any, what: str) -> dict[str, Any]:
    if isinstance(row, str):
        return {"image_uri": row}
    if not isinstance(row, dict):
        raise ValueError(f"{what} is no object and no text")
    return {name: row[column] for name, column in _columns_of(row, f"{what} has ").items()}


_READERS: dict[str, Callable[[io.TextIOWrapper], Iterator[Row]]] = {
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".txt": _text_rows,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_rows,
}
LISTS = (PARQUET, *(suffix + packed for suffix in _READERS for packed in ("", ".gz")))


def _text(file: Any) -> io.TextIOWrapper:
    """The lines; bytes that are no UTF-8 stay in them, as in the names of files."""
    start = file.peek(2)[:2]
    encoding = "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline="")


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise ValueError(f"a line has more than {MAX_LINE:,} characters")
        yield line


def _finds_images(header: Iterable[str]) -> bool:
    found = _known_columns(header)
    return "image_uri" in found or {"bucket", "key"} <= set(found)


def _known_columns(header: Iterable[str]) -> dict[str, str]:
    """Our name to theirs, of the columns that are known."""
    theirs: dict[str, str] = {}
    for column in header:
        theirs.setdefault(re.sub("[^a-z0-9]", "", column.lower()), column)
    found = {name: next((theirs[column] for column in columns if column in theirs), None) for name, columns in _COLUMNS.items()}
    return {name: column for name, column in found.items() if column is not None}


def _columns_of(header: Iterable[str], what: str = "") -> dict[str, str]:
    if not _finds_images(header):
        raise KeyError(f"{what}no such column: {', '.join(map(str, header))}")
    return _known_columns(header)


def _entry_of(cells: dict[str, Any], base: str) -> ImageEntry | None:
    """The entry of a row; None for what is no latest version.

    Raises:
        ValueError: it names no image, or its size is none.
    """
    if str(cells.get("is_latest")).lower() == "false" or str(cells.get("is_delete_marker")).lower() == "true":
        return None
    if "image_uri" in cells:
        uri = _address(cells["image_uri"], base)
    else:
        if not cells["bucket"] or not cells["key"]:
            raise ValueError("it names no bucket or key")
        uri = absolute(join(f"{S3}{cells['bucket']}", cells["key"]), "listed image")
    size, modified_at = _size(cells.get("size")), _time(cells.get("modified_at"))
    etag = str(cells.get("etag") or "").strip('"') or None
    if not f"{uri}{etag}".isascii() and any("\ud800" <= char <= "\udfff" for char in f"{uri}{etag}"):
        raise ValueError("it is no UTF-8")  # the path of a file may be that, in its file:// form
    if size is None or (modified_at is None and etag is None):
        size, modified_at = None, None  # one without the other cannot tell whether an image changed
    entry = ImageEntry(uri, size, modified_at, etag)
    return archived(entry, cells["storage_class"]) if cells.get("storage_class") in COLD_CLASSES else entry


def _address(text: Any, base: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError("it names no image")
    if "://" in text or text.startswith("/"):
        return absolute(text, "listed image")
    if not is_remote(base):
        return absolute(os.path.join(base, text), "listed image")
    scheme, _, folder = base.partition("://")
    path = posixpath.normpath(f"{folder}/{text}")
    if not path.startswith(folder.partition("/")[0] + "/"):
        raise ValueError("it leads out of its bucket")
    return absolute(f"{scheme}://{path}", "listed image")


def _size(value: Any) -> int | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    size = int(value)
    if not 0 <= size < MAX_SIZE:
        raise ValueError(f"a file of {str(value)[:40]} bytes")
    return size


def _time(value: Any) -> datetime | None:
    """None also for what is no time."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value
