"""Parts of a plan, labeled in one process: manifest in, one staged file for each part left behind.

A part is staged whole or not at all, and under one name whoever labels it. One that is staged already, by a try that died later or
by another process on the same run, is left alone.
"""

from __future__ import annotations

import datetime
import gc
import itertools
import math
import signal
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.errors import ImageError, MemoryShortError, StorageError
from fer_ray.io.inputs import is_film, relative_path
from fer_ray.io.outages import PatientReader
from fer_ray.io.prefetch import MAX_IMAGES_AHEAD, Fetcher
from fer_ray.label.labeler import Classifier, Labeler
from fer_ray.label.plan import Part, Plan, open_manifest, sample_images, staged_file
from fer_ray.label.result import LabeledImage, image_columns, nested_crops, nested_faces
from fer_ray.label.run import Run
from fer_ray.models import bundle
from fer_ray.models.bundle import Bundle
from fer_ray.models.onnx_network import OnnxNetwork
from fer_ray.schema import LISTING, SCHEMA_VERSION, STAGING, STAGING_WITH_CROPS, ImageEntry, conform, image_id
from fer_ray.video.reader import FilmReader
from fer_ray.video.stretches import Stretch, frame_uri
from fer_ray.vision.decode import DecodedImage
from fer_ray.vision.sandbox import SLOW_SECONDS, SandboxLimits, TimeBudget, sift

MAX_STARTS = 8  # of a part: where so many processes died, the sandbox does not help either
SECONDS_AT_FIRST = 20.0  # for an image: then its process is ended, and the sandbox, which has more patience, looks at all of its part
SECONDS_TOGETHER = 60.0  # for the slow images of a part, likewise
SECONDS_AFTER_SANDBOX = 120.0  # for an image that took up to two thirds of it there


class EntryLabeler(Protocol):
    """What turns fetched images into labeled ones; `benchmarks/scale.py` puts one in that does nothing."""

    model_version: str

    @property
    def stage_seconds(self) -> Mapping[str, float]: ...  # spent so far, by stage

    def label_batches(
        self, entries: Sequence[ImageEntry], starts: int, following: Sequence[ImageEntry] = ()
    ) -> Iterator[list[LabeledImage]]:
        """Label images of a part, or a stretch of a film; the part is begun for the `starts`-th time: the others did not end well.

        What is `following`, perhaps, may be fetched meanwhile.
        """


class Tally(Protocol):
    """Who is told what the labeling processes do."""

    def ready(self) -> None:
        """A process has its model."""

    def start(self, part: Part) -> int:
        """A part is begun; gives how often it was, this time included."""

    def add(self, images: Sequence[LabeledImage], stage_seconds: Mapping[str, float]) -> None:
        """A batch is labeled; the seconds are those since the process began. No images: something was written."""


class PartWorker(ABC):
    """A process at work on a run: it keeps what takes long to load, a model above all, from one part to the next."""

    def __init__(self, run: Run, plan: Plan, model_version: str) -> None:
        """Work for the run with a model that is loaded.

        Raises:
            StorageError: it is not the one that the run was planned with.
        """
        if model_version != run.model_version:
            raise StorageError(f"The model {run.model} changed since the run was planned: start a new run.")
        self.run, self.plan = run, plan
        self._manifest: tuple[int, pq.ParquetFile] = (-1, None)
        self._opened = ExitStack()
        self.following: Part | None = None  # what is labeled after the part at hand, unless others did so
        self._read_ahead: dict[Part, pa.Table] = {}
        gc.freeze()  # what is loaded is there to stay; searching it for garbage again and again takes time

    def label(self, parts: Iterable[Part], tally: Tally) -> None:
        """Label and stage the parts; while one is written, which waits for the disk or the store, the next is labeled.

        Raises:
            FerRayError: a store cannot be used.
            OSError: a disk cannot be used.
        """
        tally.ready()
        with ThreadPoolExecutor(1) as writer:
            written: Future[bool] | None = None
            listed = list(parts)
            for part, self.following in zip(listed, [*listed[1:], None], strict=True):
                target = staged_file(self.run, self.plan, part)
                if self.run.storage.stat(target) is not None:
                    continue
                content = self._label_part(part, tally)
                if written:
                    written.result()
                written = writer.submit(self.run.storage.write, target, content, replace=False)
            if written:
                written.result()
        tally.add([], {})  # writing is part of labeling, and of its time

    def _label_part(self, part: Part, tally: Tally) -> bytes:
        """The file of a part.

        Raises:
            MemoryShortError: it was begun too often.
        """
        manifest = self._read_manifest(part)
        starts = tally.start(part)
        if starts > MAX_STARTS:
            raise MemoryShortError(f"{MAX_STARTS} processes died at the same images, of which each was tried apart: memory is short here.")
        with pa.BufferOutputStream() as buffer:
            pq.write_table(self.stage(manifest, tally, starts), buffer, compression="zstd")
            return bytes(buffer.getvalue())

    @abstractmethod
    def stage(self, manifest: pa.Table, tally: Tally, starts: int) -> pa.Table:
        """What the rows of a part, which is begun for the `starts`-th time, become: a table of the schema STAGING, or with crops."""

    def _read_manifest(self, part: Part) -> pa.Table:
        """The rows of a part; the file stays open for the next."""
        if part in self._read_ahead:
            return self._read_ahead.pop(part)
        if part.file != self._manifest[0]:
            self._opened.close()
            self._manifest = part.file, self._opened.enter_context(open_manifest(self.run, self.plan, part.file))
        return self._manifest[1].read_row_group(part.group)

    def read_ahead(self, rows: int) -> pa.Table:
        """The first rows of the part that follows."""
        if self.following is None:
            return pa.table({})
        self._read_ahead = {self.following: self._read_manifest(self.following)}
        return self._read_ahead[self.following].slice(0, rows)


class PartLabeler(PartWorker):
    """One that labels images, however its labeler comes by them."""

    def __init__(self, run: Run, plan: Plan, labeler: EntryLabeler) -> None:
        """Take the labeler for the run.

        Raises:
            StorageError: its model is not the one that the run was planned with.
        """
        super().__init__(run, plan, labeler.model_version)
        self.labeler = labeler

    def stage(self, manifest: pa.Table, tally: Tally, starts: int) -> pa.Table:
        provenance = {
            "model_version": self.run.model_version,
            "detector_version": self.run.detector_version,
            "run_id": self.run.run_id,
            "model_name": self.run.model_name,
        }
        if self.run.config.keep_crops:
            provenance["crops_run_id"] = self.run.run_id
        rows, images = [], []
        for row, image in self._label_rows(manifest, tally, starts):
            rows.append(row)
            images.append(image)
        return staging_table(manifest.take(pa.array(rows, pa.int64())), images, provenance, self.run.inputs)

    def _label_rows(self, manifest: pa.Table, tally: Tally, starts: int) -> Iterator[tuple[int, LabeledImage]]:
        """Each image with the number of its row here, which the frames of a stretch share."""
        entries = enumerate(map(_entry_of, manifest.to_pylist()))
        following = [_entry_of(row) for row in self.read_ahead(MAX_IMAGES_AHEAD).to_pylist()]
        for is_stretch, group in itertools.groupby(entries, key=lambda row: isinstance(row[1], Stretch)):
            rows = list(group)
            for work in [[row] for row in rows] if is_stretch else [rows]:
                numbers = itertools.repeat(work[0][0]) if is_stretch else (number for number, _ in work)
                for images in self.labeler.label_batches([entry for _, entry in work], starts, following):
                    tally.add(images, self.labeler.stage_seconds)
                    yield from zip(itertools.islice(numbers, len(images)), images, strict=True)


class FetchingLabeler:
    """Fetches images ahead and labels them, each within a limit of time; those of a part that was begun before are tried apart first."""

    def __init__(self, run: Run, model: Classifier | None = None) -> None:
        """Load the run's model, unless it is loaded already."""
        self.config, self.batch_size = run.config.labeling, run.config.batch_size
        self.labeler = Labeler(model or load_model(run), self.config, threads=1)
        self.labeler.crop_pixels = run.config.crop_pixels if run.config.keep_crops else 0
        self.model_version, self.stage_seconds = self.labeler.model_version, self.labeler.stage_seconds
        limit, wait = self.config.max_file_megabytes, run.config.wait_for_store
        reader = PatientReader(run.storage, limit, wait, run.inputs, partial(sample_images, run))
        self.fetcher, self.films = Fetcher(reader), FilmReader(run.film_settings, reader)

    def label_batches(
        self, entries: Sequence[ImageEntry], starts: int, following: Sequence[ImageEntry] = ()
    ) -> Iterator[list[LabeledImage]]:
        if isinstance(entries[0], Stretch):
            yield from self._label_stretch(entries[0], starts)
            return
        images = self._timed(self.fetcher.fetch(entries, itertools.takewhile(lambda entry: not isinstance(entry, Stretch), following)))
        budget = TimeBudget(SECONDS_AT_FIRST, SECONDS_TOGETHER, least=SLOW_SECONDS)
        if starts > 1:
            images = sift(images, self.config, SandboxLimits().smaller(starts - 2))
            budget = TimeBudget(SECONDS_AFTER_SANDBOX, math.inf, SECONDS_AFTER_SANDBOX)
        sizes = [len(entries[start : start + self.batch_size]) for start in range(0, len(entries), self.batch_size)]
        try:
            yield from self.labeler.label_batches(_limited(itertools.islice(images, size), budget) for size in sizes)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _label_stretch(self, stretch: Stretch, starts: int) -> Iterator[list[LabeledImage]]:
        """The frames of a stretch, and an image without a time where something is the matter with the film."""
        waiting: deque[tuple[int, bytes] | None] = deque()  # the times and scenes of frames on their way

        def images() -> Iterator[DecodedImage | ImageError]:
            started = time.perf_counter()
            for frame in self.films.frames(stretch, starts):
                self.stage_seconds["decode"] += time.perf_counter() - started
                waiting.append(None if isinstance(frame, ImageError) else (frame.time_ms, frame.scene))
                yield frame if isinstance(frame, ImageError) else frame.image
                started = time.perf_counter()

        decoded = images()
        batches = (itertools.chain([first], itertools.islice(decoded, self.batch_size - 1)) for first in decoded)
        for labeled in self.labeler.label_batches(batches):
            yield [_of_film(image, stretch, waiting.popleft()) for image in labeled]

    def _timed(self, fetched: Iterator[bytes | ImageError]) -> Iterator[bytes | ImageError]:
        """Adds up the time that labeling waits for images."""
        while True:
            started = time.perf_counter()
            image = next(fetched, None)
            self.stage_seconds["fetch"] += time.perf_counter() - started
            if image is None:
                return
            yield image


def _limited(images: Iterable[bytes | ImageError], budget: TimeBudget) -> Iterator[bytes | ImageError]:
    """The images, each with a signal underway that ends the process, whatever holds it, where the next is asked for too late."""
    for image in images:
        seconds = budget.seconds()
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield image
        left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
        budget.spend(seconds - left)


def _entry_of(row: Mapping[str, Any]) -> ImageEntry:
    """What a row of the manifest names."""
    listed = {name: row[name] for name in LISTING.names}
    return ImageEntry(**listed) if row.get("start_ms") is None else Stretch(**listed, start_ms=row["start_ms"], end_ms=row["end_ms"])


def _of_film(image: LabeledImage, stretch: Stretch, frame: tuple[int, bytes] | None) -> LabeledImage:
    if frame is None:
        return image
    time_ms, scene = frame
    return replace(image, image_uri=frame_uri(stretch.image_uri, time_ms), frame_time_ms=time_ms, scene=scene)


def make_part_labeler(run: Run, plan: Plan, model: Classifier | None = None) -> PartLabeler:
    """What labels the parts of a run from its images, with its model, which may be loaded already."""
    return PartLabeler(run, plan, FetchingLabeler(run, model))


def load_model(run: Run) -> Bundle[OnnxNetwork]:
    """The run's model in this process, on one CPU."""
    with bundle.local_copy(run.storage, run.model) as folder:
        return bundle.load(folder, run.config.labeling.flip, threads=1)


def count(images: Sequence[LabeledImage]) -> dict[str, int]:
    """How many images, faces and failed images these are."""
    faces = sum(len(image.faces) for image in images)
    return {"images": len(images), "faces": faces, "failed": sum(image.status.is_failure for image in images)}


def staging_table(manifest: pa.Table, images: Sequence[LabeledImage], provenance: Mapping[str, str], inputs: Sequence[str]) -> pa.Table:
    """Join rows of the manifest, one for each image, with what became of them, column by column: rows of dicts cost more than detection.

    `provenance` holds model_version, detector_version, run_id, model_name, and crops_run_id where the crops are kept, which come
    with the faces then.
    """
    sizes = [
        size if image.size_bytes is None else image.size_bytes
        for size, image in zip(manifest["size_bytes"].to_pylist(), images, strict=True)
    ]
    listed = manifest["image_uri"].to_pylist()
    uris = [image.image_uri or uri for image, uri in zip(images, listed, strict=True)]
    paths = [relative_path(inputs, *uri) for uri in zip(listed, manifest["archive_uri"].to_pylist(), strict=True)]
    columns: dict[str, Any] = {
        **image_columns(images),
        **{name: manifest[name] for name in ("row_number", "modified_at", "etag")},
        "image_uri": uris,
        "size_bytes": sizes,
        "image_id": [image_id(uri) for uri in uris],
        "relative_path": paths,
        "folder": [path.rpartition("/")[0] for path in paths],
        "video_uri": [uri if is_film(uri) else None for uri in listed],
        **{name: [getattr(image, name) for image in images] for name in ("frame_time_ms", "scene")},
        **{name: [value] * len(images) for name, value in provenance.items()},
        "labeled_at": [datetime.datetime.now(datetime.UTC)] * len(images),
        "schema_version": [SCHEMA_VERSION] * len(images),
        "faces": nested_faces(images),
    }
    schema = STAGING
    if "crops_run_id" in provenance:
        schema, columns["crops"] = STAGING_WITH_CROPS, nested_crops(images)
    return conform(pa.table({name: _array(values, schema.field(name).type) for name, values in columns.items()}), schema)


def _array(values: Any, kind: pa.DataType) -> Any:
    if isinstance(values, list):
        return pa.array(values, kind)
    return values if values.type == kind else values.cast(kind)
