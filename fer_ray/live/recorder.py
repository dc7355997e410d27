"""What `--record` writes: a row for each face of each labeled frame, with the columns of the table `faces`."""

from __future__ import annotations

import datetime
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.errors import UsageError
from fer_ray.label.result import LabeledImage, LabeledImages

FLUSH_FRAMES = 256  # in one row group: some ten seconds
UNFINISHED = ".unfinished"  # behind the name until the file is whole

_OWN = [pa.field("frame_number", pa.int64()), pa.field("taken_at", pa.timestamp("us", tz="UTC")), pa.field("track_id", pa.int32())]


class Recorder:
    """Collects frames and writes them to a Parquet file, which gets its name when it is closed.

    Args:
        file: where to; an empty name records nothing.

    Raises:
        UsageError: the file exists, or cannot be written.
    """

    def __init__(self, file: str) -> None:
        self._file = Path(file) if file else None
        self._writer: pq.ParquetWriter | None = None
        self._frames: list[tuple[int, datetime.datetime, LabeledImage, list[int]]] = []
        self.rows = 0
        if self._file and self._file.exists():
            raise UsageError(f"The recording {file} exists already: name a new file, or remove it.")
        if self._file:
            try:
                self._writer = pq.ParquetWriter(f"{file}{UNFINISHED}", _table([]).schema, compression="zstd")
            except OSError as error:
                raise UsageError(f"The recording {file} cannot be written ({error.strerror}).") from error

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer and self._file:
            self._flush(self._writer)
            self._writer.close()
            Path(f"{self._file}{UNFINISHED}").rename(self._file)

    def add(self, number: int, image: LabeledImage, track_ids: list[int]) -> None:
        """Record a frame."""
        if self._writer:
            self._frames.append((number, datetime.datetime.now(datetime.UTC), image, track_ids))
            self.rows += len(image.faces)
            if len(self._frames) == FLUSH_FRAMES:
                self._flush(self._writer)

    def _flush(self, writer: pq.ParquetWriter) -> None:
        if self._frames:
            writer.write_table(_table(self._frames))
            self._frames.clear()


def _table(frames: list[tuple[int, datetime.datetime, LabeledImage, list[int]]]) -> pa.Table:
    faces = LabeledImages(image for _, _, image, _ in frames).to_arrow().drop_columns(["image_index", "image_uri"])
    own = [(number, taken_at, track_id) for number, taken_at, _, track_ids in frames for track_id in track_ids]
    columns = [pa.array(column, field.type) for column, field in zip(zip(*own, strict=True) if own else ([], [], []), _OWN, strict=True)]
    kept = [name for name in faces.column_names if name not in {field.name for field in _OWN}]
    return pa.Table.from_arrays(
        columns + [faces.column(name) for name in kept], schema=pa.schema([*_OWN, *(faces.schema.field(name) for name in kept)])
    )
