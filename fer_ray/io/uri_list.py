"""Lists of URIs instead of folders: Parquet or CSV, as people and S3 Inventory write them."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import itertools
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fer_ray.errors import UsageError
from fer_ray.io.storage import S3, Storage, absolute, join, lower_name
from fer_ray.schema import LISTING, ImageEntry

LISTS = (".parquet", ".csv", ".csv.gz")
ROWS_PER_BATCH = 8192

# What a column of a list may be called, in other people's tools and in S3 Inventory; the first that is there counts.
_COLUMNS = {
    "image_uri": ("image_uri", "uri", "url", "path", "file"),
    "size_bytes": ("size_bytes", "size"),
    "modified_at": ("modified_at", "last_modified_date", "last_modified"),
    "etag": ("etag", "e_tag"),
}


def read_list(storage: Storage, uri: str) -> Iterator[ImageEntry]:
    """The images that a Parquet or CSV file names: in a column image_uri (or uri, url, path), or bucket and key.

    A CSV without a header is taken as S3 Inventory writes it: bucket, key (URL-encoded), and perhaps more. Size, time and
    etag are used where the list has them; an image without them counts as unchanged.

    Raises:
        UsageError: the file does not read, or names no such column.
    """
    try:
        with storage.open(uri) as file:
            rows = _parquet_rows(file) if lower_name(uri).endswith(".parquet") else _csv_rows(file, uri)
            for row in rows:
                yield ImageEntry(**row)
    except (pa.ArrowException, UnicodeDecodeError, csv.Error, KeyError, OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"The list {uri} does not read ({reason}): give one with a column image_uri, or bucket and key.") from error


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
    binary = gzip.GzipFile(fileobj=file) if lower_name(uri).endswith(".gz") else file
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
