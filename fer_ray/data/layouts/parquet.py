"""Parquet as Hugging Face has data sets in: a column with the bytes of images, one with their labels, whose names the metadata has."""

from __future__ import annotations

import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.config.label_names import LEFT_OUT, plain_label
from fer_ray.data.layouts.source import Labels, Source, left_out
from fer_ray.data.layouts.tree import File, split_of_path
from fer_ray.data.sample import Layout, Sample
from fer_ray.emotions import emotion_of
from fer_ray.errors import DatasetError, ImageError
from fer_ray.io.storage import Storage
from fer_ray.schema import Status
from fer_ray.text import sanitize

SUFFIX = ".parquet"
MAX_GROUP_BYTES = 2 << 30  # of the images in one row group, which is read at once
KEPT_GROUPS = 2
_LABELS = ("label", "labels", "emotion", "expression", "class", "category", "target")


def read_parquet(source: Source) -> Layout | None:
    """The samples of Parquet files with images in them; None where there are no such files.

    Raises:
        DatasetError: a file does not read, or has no column of images or of labels.
    """
    files = sorted((file for file in source.tree.all_files() if file.path.lower().endswith(SUFFIX)), key=lambda file: file.path)
    samples: list[Sample] = []
    others = Counter[str]()
    for file in files:
        samples += _read_file(source, file, others)
    return Layout(tuple(sorted(samples, key=lambda sample: sample.key)), tuple(left_out(others))) if files else None


def _read_file(source: Source, file: File, others: Counter[str]) -> list[Sample]:
    uri, split = file.entry.image_uri, split_of_path(file.path)
    samples: list[Sample] = []
    try:
        with source.storage.open(uri) as opened:
            stored = pq.ParquetFile(opened)
            images = _Images(source.storage, uri, _image_column(uri, stored.schema_arrow))
            column = next((name for name in _LABELS if name in stored.schema_arrow.names), None)
            if column is None:
                raise DatasetError(f"The file {uri} has no column {' or '.join(_LABELS[:3])}: it needs one that labels each image.")
            labels = _with_names(source.labels, stored.schema_arrow, column)
            number = -1
            for group in range(stored.num_row_groups):
                for row, value in enumerate(stored.read_row_group(group, [column]).column(0).to_pylist()):
                    label = "" if value is None else str(value)
                    number += 1
                    emotion = labels.emotion(label)
                    if emotion is None:
                        raise labels.unknown(f"Row {number} of {uri} has the unknown label {label[:40]!r}", label)
                    if emotion == LEFT_OUT:
                        others[plain_label(label)] += 1
                        continue
                    place = f"{file.path}#{number:09d}"
                    samples.append(Sample(sanitize(place), f"{split}/{place}", split, emotion, load=partial(images.read, group, row)))
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"The file {uri} does not read as Parquet ({' '.join(str(error).split())[:200]}).") from error
    return samples


def _image_column(uri: str, schema: pa.Schema) -> str:
    """The column with the bytes of images: a struct that has `bytes`, or plain bytes."""
    for field in schema:
        kind = field.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return str(field.name)
    raise DatasetError(f"The file {uri} has no column with the bytes of images: give Parquet as Hugging Face writes it, or image files.")


def _with_names(labels: Labels, schema: pa.Schema, column: str) -> Labels:
    """With the names of the labels that `datasets` puts into the file, unless others were asked for."""
    if labels.names:
        return labels
    try:
        names: Sequence[Any] = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
        return replace(labels, names={str(number): emotion for number, name in enumerate(names) if (emotion := emotion_of(str(name)))})
    except (KeyError, ValueError, TypeError, RecursionError):
        return labels


class _Images:
    """The images of one Parquet file, read a row group at a time as they are asked for, which is in their order."""

    def __init__(self, storage: Storage, uri: str, column: str) -> None:
        self.storage, self.uri, self.column = storage, uri, column
        self._lock = threading.Lock()
        self._groups: OrderedDict[int, pa.ChunkedArray] = OrderedDict()

    def read(self, group: int, row: int) -> bytes:
        """The bytes of an image.

        Raises:
            ImageError: there are none, or the file does not read.
        """
        with self._lock:
            if group not in self._groups:
                self._groups[group] = self._read_group(group)
                while len(self._groups) > KEPT_GROUPS:
                    self._groups.popitem(last=False)
            cell = self._groups[group][row].as_py()
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not content:
            raise ImageError(Status.UNREADABLE, "The row has no bytes of an image.")
        return bytes(content)

    def _read_group(self, group: int) -> pa.ChunkedArray:
        try:
            with self.storage.open(self.uri) as opened:
                stored = pq.ParquetFile(opened)
                size = stored.metadata.row_group(group).total_byte_size
                if size > MAX_GROUP_BYTES:
                    raise ImageError(Status.TOO_LARGE, f"Its row group has {size:,} bytes, the limit is {MAX_GROUP_BYTES:,}.")
                return stored.read_row_group(group, [self.column]).column(0)
        except (pa.ArrowException, OSError) as error:
            raise ImageError(Status.UNREADABLE, f"The Parquet file cannot be read ({' '.join(str(error).split())[:200]}).") from error
