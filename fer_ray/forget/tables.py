"""Rows of Parquet files: found by address, and gone when a file without them has taken the place of the old one."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fer_ray.errors import StorageError
from fer_ray.forget.addresses import REPLACED, Addresses
from fer_ray.io.storage import Storage, join
from fer_ray.label.publish import TOP_ERRORS
from fer_ray.schema import Status
from fer_ray.typing import BoolArray

READ_AHEAD = 1 << 18
_INDEXED = re.compile(r"\d+ (.*) \S+ (?:None|\d+-\d\d-\d\d \S+) \S+", re.DOTALL)  # as `io.archives` says which archive an index is of
_NAMES = ("image_uri", "video_uri")  # the columns that name an image; what else says where it lies stands in the same row


@dataclass
class Found:
    """The rows of one file of `images` that go: their number, and their `image_id`."""

    file: str  # its address below the table's folder, the same in all tables
    images: int = 0
    ids: set[str] = field(default_factory=set)

    @property
    def run_id(self) -> str:
        return PurePosixPath(self.file).stem.rpartition("-")[0]


def find(storage: Storage, output: str, addresses: Addresses) -> Iterator[Found]:
    """The files of `images` that hold such rows."""
    for uri in parquet_files(storage, join(output, "images")):
        found = Found(uri[len(join(output, "images")) + 1 :])
        for rows, is_gone in _marked(storage, uri, addresses, ["image_id"]):
            found.images += int(is_gone.sum())
            found.ids.update(rows["image_id"].filter(pa.array(is_gone)).to_pylist())
        if found.images:
            yield found


def count(storage: Storage, uri: str, addresses: Addresses) -> int:
    """How many rows of a file name such an image."""
    return sum(int(is_gone.sum()) for _, is_gone in _marked(storage, uri, addresses))


def remove_rows(storage: Storage, uri: str, addresses: Addresses) -> int:
    """Write a file anew without the rows that name such an image; gives their number. A file without any is left alone."""
    return _write_without(storage, uri, lambda rows: _names_one(rows, addresses)) if count(storage, uri, addresses) else 0


def remove_crops(storage: Storage, uri: str, ids: set[str]) -> int:
    """The same for a file of `crops`, which knows images by their `image_id`."""
    wanted = pa.array(sorted(ids), pa.string())
    if storage.stat(uri) is None:
        return 0
    return _write_without(storage, uri, lambda rows: np.asarray(pc.is_in(rows["image_id"], wanted).to_numpy()))


def parquet_files(storage: Storage, folder: str) -> list[str]:
    """The Parquet files below a folder; they are few enough to be held."""
    return [entry.image_uri for entry in storage.list_files(folder) if entry.image_uri.endswith(".parquet")]


def archive_of_index(storage: Storage, uri: str) -> str:
    """The archive that an index was made of; empty where it does not say."""
    with _opened(storage, uri) as stored:
        said = _INDEXED.fullmatch((stored.schema_arrow.metadata or {}).get(b"archive", b"").decode(errors="surrogateescape"))
    return said[1] if said else ""


def recount(storage: Storage, output: str, run_id: str, addresses: Addresses) -> None:
    """Make the run's row in `runs` say what its tables hold now, and name none of the addresses."""
    uri = join(output, "runs", f"{run_id}.parquet")
    table = pq.read_table(pa.BufferReader(storage.read(uri)))
    row = table.to_pylist()[0]
    counts = _counts(storage, output, run_id)
    failed = sum(counts[status.value] for status in Status if status.is_failure)
    changed: dict[str, Any] = {
        "images_total": counts["images"],
        "images_ok": counts[Status.OK.value],
        "images_no_face": counts[Status.NO_FACE.value],
        "images_failed": failed,
        "faces_total": counts["faces"],
        "faces_left_out": counts["left_out"],
        "error_share": failed / max(1, failed + counts[Status.OK.value] + counts[Status.NO_FACE.value]),
        "top_errors_json": json.dumps({key.removeprefix("error:"): n for key, n in counts.most_common() if key.startswith("error:")}),
        **without_names(row, addresses),
    }
    row |= {name: value for name, value in changed.items() if name in row}
    _replace(storage, uri, pa.Table.from_pylist([row], schema=table.schema))


def without_names(row: dict[str, Any], addresses: Addresses) -> dict[str, str | None]:
    """What a row of `runs` says of places and settings, with none of the addresses in it."""
    content = json.loads(row["config_json"])
    request, settings = content.get("request", {}), content.get("config", {})
    inputs = [addresses.redacted(given) for given in request.get("input", [])]
    if inputs != request.get("input", []):
        request["input"] = settings["input"] = inputs  # as it was typed, it may name the same in another way
        row = row | {"input_uri": ", ".join(inputs)}
    for part, name in itertools.product((request, settings), ("include", "exclude")):
        if name in part:
            part[name] = [REPLACED if any(own in pattern for own in addresses.own_names) else pattern for pattern in part[name]]
    content = addresses.redacted(content)
    named = {name: addresses.redacted(row.get(name)) for name in ("input_uri", "drift_folder")}
    return {name: value for name, value in named.items() if name in row} | {"config_json": json.dumps(content, sort_keys=True)}


def is_named_in(row: dict[str, Any], addresses: Addresses) -> bool:
    """Whether a row of `runs` names one of the addresses."""
    without = without_names(row, addresses)
    settings = without.pop("config_json") or ""
    return json.loads(settings) != json.loads(row["config_json"]) or any(row[name] != value for name, value in without.items())


def _counts(storage: Storage, output: str, run_id: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    for uri in parquet_files(storage, join(output, "images")):
        if PurePosixPath(uri).stem.rpartition("-")[0] == run_id:
            with storage.open(uri, READ_AHEAD) as opened:
                rows = pq.read_table(opened, columns=["status", "error", "face_count", "left_out_count"])
            counts.update(
                images=len(rows), faces=pc.sum(rows["face_count"]).as_py() or 0, left_out=pc.sum(rows["left_out_count"]).as_py() or 0
            )
            counts.update({one["values"]: one["counts"] for one in pc.value_counts(rows["status"]).to_pylist()})
            errors.update({f"error:{one['values']}": one["counts"] for one in pc.value_counts(rows["error"].drop_null()).to_pylist()})
    return counts + Counter(dict(errors.most_common(TOP_ERRORS)))


def _marked(storage: Storage, uri: str, addresses: Addresses, more: list[str] | None = None) -> Iterator[tuple[pa.Table, BoolArray]]:
    """The row groups that may hold such rows, with a mark for each row."""
    with _opened(storage, uri) as stored:
        names = [name for name in _NAMES if name in stored.schema_arrow.names]
        for group in range(stored.num_row_groups):
            if any(_may_hold(stored, group, name, addresses) for name in names):
                rows = stored.read_row_group(group, columns=[*names, *(more or [])])
                yield rows, _names_one(rows, addresses)


def _may_hold(stored: pq.ParquetFile, group: int, name: str, addresses: Addresses) -> bool:
    column = stored.metadata.row_group(group).column(stored.schema_arrow.get_field_index(name))
    known = column.statistics if column.is_stats_set and column.statistics.has_min_max else None
    return known is None or addresses.may_lie_between(known.min, known.max)


def _names_one(rows: pa.Table, addresses: Addresses) -> BoolArray:
    marks = np.zeros(len(rows), bool)
    for name in _NAMES:
        if name in rows.column_names and rows[name].null_count < len(rows):
            marks |= addresses.mask(rows[name].to_pylist())
    return marks


def _write_without(storage: Storage, uri: str, is_gone: Callable[[pa.Table], BoolArray]) -> int:
    """The file under its own name, whole before and after; it keeps its columns, their metadata and the order of its rows."""
    removed = 0
    with ExitStack() as stack:
        stored, path = stack.enter_context(_opened(storage, uri)), stack.enter_context(storage.writing(uri))
        writer = stack.enter_context(pq.ParquetWriter(path, stored.schema_arrow, compression="zstd"))
        for group in range(stored.num_row_groups):
            rows = stored.read_row_group(group)
            marks = is_gone(rows)
            removed += int(marks.sum())
            if not marks.all():
                writer.write_table(rows.filter(pa.array(~marks)), len(rows))
    return removed


def _replace(storage: Storage, uri: str, table: pa.Table) -> None:
    with storage.writing(uri) as path:
        pq.write_table(table, path, compression="zstd")


@contextmanager
def _opened(storage: Storage, uri: str) -> Iterator[pq.ParquetFile]:
    try:
        with storage.open(uri, READ_AHEAD) as file:
            yield pq.ParquetFile(file)
    except pa.ArrowException as error:
        raise StorageError(
            f"The file {uri} cannot be read: restore it, or remove all files of that run, and start the same command again."
        ) from error
