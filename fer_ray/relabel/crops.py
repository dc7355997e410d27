"""Parts of kept crops, labeled in one process: rows of three tables in, the same rows with another model's answers out."""

from __future__ import annotations

import datetime
import itertools
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.emotions import EMOTIONS, UNKNOWN
from fer_ray.errors import StorageError
from fer_ray.io.storage import join
from fer_ray.label.labeler import Classifier
from fer_ray.label.parts import PartWorker, Tally, load_model
from fer_ray.label.plan import Plan
from fer_ray.label.result import Face, LabeledImage
from fer_ray.label.run import Run
from fer_ray.schema import CROPS, FACE_STRUCT, FACES, IMAGES, SCHEMA_VERSION, STAGING, Status, conform
from fer_ray.typing import Float32Array, Float64Array, IntArray, UInt8Array
from fer_ray.vision import quality
from fer_ray.vision.crop import crop_face, sharpness

CROPS_AT_ONCE = 256  # in memory, as the model wants them
MAX_SIDE = 2048  # pixels of a kept crop: what says that it is larger was not written by `label`
_EYES = ("left_eye_x", "left_eye_y", "right_eye_x", "right_eye_y")
_COUNTED = Face((0, 0, 1, 1), 0.0, np.zeros((5, 2), np.float32), 0.0, UNKNOWN, 0.0, {})  # stands for a face where faces are counted


@dataclass(frozen=True)
class _Located:
    """A face in its crop; the eyes say how it is turned, which is the same in the image."""

    bbox: tuple[float, float, float, float]
    landmarks: Float32Array


class CropRelabeler(PartWorker):
    """A process at work on a relabeling run: its model, and the files of the tables that it reads."""

    def __init__(self, run: Run, plan: Plan, model: Classifier | None = None) -> None:
        """Load the run's model, unless it is loaded already.

        Raises:
            StorageError: the model is not the one that the run was planned with.
        """
        self.model = model or load_model(run)
        super().__init__(run, plan, self.model.model_version)
        self.stage_seconds: defaultdict[str, float] = defaultdict(float)
        self._source: tuple[str, _Source] | None = None
        self._sources = ExitStack()

    def stage(self, manifest: pa.Table, tally: Tally, starts: int) -> pa.Table:
        """The part's rows as they stand in the tables, with the answers of this run's model."""
        pieces = [self._relabel(name, rows) for name, rows in _by_file(manifest)]
        table = pa.concat_tables(pieces)
        statuses, face_counts = table["status"].to_pylist(), table["face_count"].to_pylist()
        counted = [LabeledImage(Status(status), faces=[_COUNTED] * n) for status, n in zip(statuses, face_counts, strict=True)]
        tally.add(counted, self.stage_seconds)
        return table

    def _relabel(self, name: str, rows: pa.Table) -> pa.Table:
        """Rows of the manifest that stand in one file of `images`, in the schema STAGING."""
        source = self._open(name)
        started = time.perf_counter()
        images = source.images.take(rows["data_offset"].to_numpy())
        counts = images["face_count"].to_numpy()
        ends = np.cumsum(counts)
        numbers = np.repeat(rows["packed_bytes"].to_numpy() - (ends - counts), counts) + np.arange(counts.sum())
        faces, crops = source.faces.take(numbers), source.crops.take(numbers) if len(numbers) else CROPS.empty_table()
        same = crops.select(["image_id", "face_index"]).equals(faces.select(["image_id", "face_index"]))
        if not (same and images["image_uri"].equals(rows["image_uri"])):
            raise StorageError(f"The tables images, faces and crops do not belong together in {name}: restore the files of that run.")
        self.stage_seconds["fetch"] += time.perf_counter() - started
        answers = self._answers(name, faces, crops)
        structs = conform(_replace(faces, answers), pa.schema(list(FACE_STRUCT))).combine_chunks()
        nested = pa.ListArray.from_arrays(pa.array([0, *ends], pa.int32()), _struct(structs))
        changed = {
            "model_version": pa.repeat(self.run.model_version, len(images)),
            "model_name": pa.repeat(self.run.model_name, len(images)),
            "run_id": pa.repeat(self.run.run_id, len(images)),
            "labeled_at": pa.repeat(pa.scalar(datetime.datetime.now(datetime.UTC), IMAGES.field("labeled_at").type), len(images)),
            "schema_version": pa.repeat(pa.scalar(SCHEMA_VERSION, pa.int32()), len(images)),
            "row_number": rows["row_number"],
            "faces": nested,
        }
        return conform(_replace(images, changed), STAGING)

    def _answers(self, name: str, faces: pa.Table, crops: pa.Table) -> dict[str, Any]:
        """The columns of the faces that the model decides."""
        eyes = np.stack([faces[column].to_numpy() for column in _EYES], axis=1).reshape(-1, 2, 2).astype(np.float32)
        boxes = np.stack([crops[f"box_{part}"].to_numpy() for part in ("x", "y", "width", "height")], axis=1)
        eyes = np.where(np.isfinite(eyes), eyes, np.array([[1, 0], [0, 0]], np.float32))  # level
        probabilities, blur = [np.empty((0, len(self.model.classes)))], []
        seen = [np.empty((0, len(quality.OUTPUTS)), np.float32)]
        for start in range(0, len(crops), CROPS_AT_ONCE):
            place = slice(start, start + CROPS_AT_ONCE)
            started = time.perf_counter()
            cut = self._cut(name, crops["jpeg"][place].to_pylist(), boxes[place], eyes[place])
            blur += [sharpness(crop) for crop in cut]
            self.stage_seconds["decode"] += (classifying := time.perf_counter()) - started
            seen.append(quality.describe(np.stack(cut)))
            probabilities.append(self.model.probabilities(np.stack(cut), seen[-1]))
            self.stage_seconds["classify"] += time.perf_counter() - classifying
        said = {name: pa.array(quality.probability(np.concatenate(seen), name)) for name in quality.PROBABILITIES}
        return {"sharpness": pa.array(blur, pa.float32()), **said, **self._columns(np.concatenate(probabilities))}

    def _columns(self, probabilities: Float64Array) -> dict[str, Any]:
        best, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1, initial=0)
        known = confidence >= self.run.config.labeling.unknown_below
        columns: dict[str, Any] = {
            "emotion": pa.array(np.where(known, np.array(self.model.classes)[best], UNKNOWN), pa.string()),
            "confidence": pa.array(confidence, pa.float32()),
        }
        for emotion in EMOTIONS:
            has = emotion in self.model.classes
            values = probabilities[:, self.model.classes.index(emotion)] if has else [None] * len(best)
            columns[f"prob_{emotion}"] = pa.array(values, pa.float32())
        return columns

    def _cut(self, name: str, jpegs: Sequence[bytes], boxes: Float32Array, eyes: Float32Array) -> list[UInt8Array]:
        cut = []
        for jpeg, box, points in zip(jpegs, boxes.tolist(), eyes, strict=True):
            pixels = decode_crop(jpeg, f"The kept crops of {name}")
            cut.append(crop_face(pixels, _Located(tuple(box), points), self.model.image_size, self.model.crop, self.model.color))
        return cut

    def _open(self, name: str) -> _Source:
        """The files of one name in all three tables; they stay open for the next part."""
        if self._source is None or self._source[0] != name:
            self._sources.close()
            self._source = name, _Source(self.run, name, self._sources)
        return self._source[1]


def decode_crop(jpeg: bytes, what: str) -> UInt8Array:
    """The pixels (h, w, 3) uint8 BGR of a kept crop.

    Raises:
        StorageError: it is broken, or none that `label` wrote; `what` names it.
    """
    from fer_ray.vision.jpeg import read_header

    try:
        header = read_header(jpeg)
        if max(header.width, header.height) <= MAX_SIDE:
            pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
            if pixels is not None:
                return np.asarray(pixels, np.uint8)
    except (ValueError, IndexError):
        pass
    raise StorageError(f"{what} cannot be read: restore that file, or label the images again.")


class _Source:
    """The files of one run for the same million images."""

    def __init__(self, run: Run, name: str, stack: ExitStack) -> None:
        self._run, self._below, self._stack = run, name.partition("/")[2], stack
        self.images, self.faces = self._rows("images", IMAGES), self._rows("faces", FACES)

    @cached_property
    def crops(self) -> _Rows:
        """Only opened for images with faces: a run without kept crops has no such file."""
        return self._rows("crops", CROPS)

    def _rows(self, table: str, schema: pa.Schema) -> _Rows:
        uri = join(self._run.output, table, self._below)
        try:
            opened = self._stack.enter_context(self._run.storage.open(uri, read_ahead=1 << 20))
            return _Rows(pq.ParquetFile(opened), schema, uri)
        except (pa.ArrowException, OSError) as error:
            raise StorageError(f"The table file {uri} cannot be read: restore it, or remove all files of that run.") from error


class _Rows:
    """Rows of a Parquet file by their numbers; the row group that was read last is kept."""

    def __init__(self, file: pq.ParquetFile, schema: pa.Schema, uri: str) -> None:
        self._file, self._schema, self._uri = file, schema, uri
        groups = file.metadata
        self._ends = np.cumsum([groups.row_group(number).num_rows for number in range(groups.num_row_groups)])
        self._columns = [name for name in schema.names if name in file.schema_arrow.names]
        self._kept: tuple[int, pa.Table] = (-1, None)

    def take(self, rows: IntArray) -> pa.Table:
        """These rows, whose numbers ascend.

        Raises:
            StorageError: they cannot be read.
        """
        if len(rows) and (not len(self._ends) or rows[-1] >= self._ends[-1]):
            raise StorageError(f"The table file {self._uri} lacks rows: restore the files of that run.")
        places = np.searchsorted(self._ends, rows, side="right")
        pieces = [self._group(group, rows[places == group]) for group in np.unique(places).tolist()]
        return conform(pa.concat_tables(pieces), self._schema) if pieces else self._schema.empty_table()

    def _group(self, group: int, rows: IntArray) -> pa.Table:
        if self._kept[0] != group:
            try:
                self._kept = group, self._file.read_row_group(group, columns=self._columns, use_threads=False)
            except (pa.ArrowException, OSError) as error:
                raise StorageError(f"The table file {self._uri} cannot be read: restore the files of that run.") from error
        table = self._kept[1]
        return table.take(pa.array(rows - (self._ends[group] - len(table))))


def _by_file(manifest: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of the manifest, file by file: they are in that order."""
    start = 0
    for name, same in itertools.groupby(manifest["archive_uri"].to_pylist()):
        count = sum(1 for _ in same)
        yield name, manifest.slice(start, count)
        start += count


def _replace(table: pa.Table, columns: dict[str, Any]) -> pa.Table:
    kept = table.drop_columns([name for name in columns if name in table.column_names])
    for name, values in columns.items():
        kept = kept.append_column(name, values)
    return kept


def _struct(table: pa.Table) -> pa.StructArray:
    """One value a row; the columns of `table` have one chunk each at most."""
    fields = list(table.schema)
    arrays = [column.chunk(0) if column.num_chunks else pa.array([], column.type) for column in table.columns]
    return pa.StructArray.from_arrays(arrays, fields=fields)
