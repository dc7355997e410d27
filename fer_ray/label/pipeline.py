"""The chain of Ray Data calls that labels the parts of a plan; everything about images is in `labeler`."""

from __future__ import annotations

import atexit
import faulthandler
import functools
import gc
import itertools
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fer_ray.cluster import cluster_cpus, may_grow, wait_for_cpus
from fer_ray.errors import FerRayError, ImageError, StorageError
from fer_ray.io.prefetch import Fetcher
from fer_ray.label.gpu_models import ModelOnGpus, RemoteModel, start_models
from fer_ray.label.labeler import Labeler
from fer_ray.label.plan import Part, Plan, open_manifest, staged_file
from fer_ray.label.result import LabeledImage
from fer_ray.label.run import Run
from fer_ray.label.staging import staging_table
from fer_ray.label.telemetry import LabelingMetrics
from fer_ray.models import bundle
from fer_ray.models.bundle import Bundle
from fer_ray.models.onnx_network import OnnxNetwork
from fer_ray.schema import ImageEntry, Status
from fer_ray.vision.sandbox import survivors

LOGGER = logging.getLogger(__name__)
PROGRESS_SECONDS = 1.0  # between two looks at the counts
MAX_TASKS = 4000  # of a run: each costs the driver some time and memory
TASKS_PER_WORKER = 8  # at least, so that all end at about the same time
MIN_IMAGES_PER_TASK = 512  # a task costs Ray as much as some images cost the labeler
STARTS_BEFORE_SANDBOX = 2  # a part that ended its process so often is decoded apart
SECONDS_PER_BATCH = 900  # then the process is ended, and the part counts as one that ended it


class EntryLabeler(Protocol):
    """What turns fetched images into labeled ones; `benchmarks/scale.py` puts one in that does nothing."""

    model_version: str

    @property
    def stage_seconds(self) -> Mapping[str, float]: ...  # spent so far, by stage

    def label_entries(self, entries: Sequence[ImageEntry], sandboxed: bool) -> list[LabeledImage]: ...


def label_to_staging(
    run: Run,
    plan: Plan,
    parts: Sequence[Part],
    report_progress: Callable[[Counter[str], int], None],
    make_labeler: Callable[[Run], EntryLabeler] | None = None,
) -> float:
    """Label the images of the parts and leave one file for each part in staging, which makes the part finished.

    Args:
        run: What is labeled, how, and where to.
        plan: The plan of the run.
        parts: Those of its parts that are not finished.
        report_progress: Called every second, once a process is ready, with the counts so far (images, faces, failed) and the
            number of images.
        make_labeler: Makes what labels in each process; the real one by default.

    Returns:
        The seconds that labeling took, from the moment when the first process was ready: start-up is left out.

    Raises:
        StorageError: a store cannot be used, or the model changed since the run was planned.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.memory_usage_poll_interval_s = None
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is raised, and said once
    if not run.config.workers:
        wait_for_cpus()
    cpus = cluster_cpus()
    workers = min(run.config.workers or cpus, len(parts) if may_grow() else cpus, len(parts))
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    tally = ray.remote(num_cpus=0, scheduling_strategy=here)(Tally).remote()

    models = None if make_labeler else start_models(run)
    images = sum(part.rows for part in parts)
    blocks = min(len(parts), max(TASKS_PER_WORKER * workers, min(images // MIN_IMAGES_PER_TASK, MAX_TASKS)))
    step = LabelParts(run, plan, tally, make_labeler or functools.partial(FetchingLabeler, models))
    dataset = ray.data.from_items([vars(part) for part in parts], override_num_blocks=blocks).map_batches(
        step,
        batch_size=None,
        batch_format="pyarrow",
        # Tasks, not actors: Ray gives them processes that have run others before, which keep their labeler, and repeats them
        # where a process or a node dies. (Actors would open every run with an error of Ray's about their arguments, issue 53727.)
        compute=ray.data.TaskPoolStrategy(size=workers),
        num_cpus=1,
    )
    consuming: Future[None] = Future()
    threading.Thread(target=_consume, args=(dataset, consuming), daemon=True).start()
    while not wait([consuming], timeout=PROGRESS_SECONDS).done:
        counts, seconds = ray.get(tally.read.remote())
        if seconds is not None:
            report_progress(counts, images)
    if consuming.exception() and (reason := ray.get(tally.why_failed.remote())):
        raise StorageError(reason) from consuming.exception()
    consuming.result()
    if models and (lost := models.lost()):
        LOGGER.warning("%d of %d GPUs were lost on the way; the others or the CPUs did their part.", lost, len(models.actors))
    return float(ray.get(tally.read.remote())[1] or 0.0)


def _consume(dataset: ray.data.Dataset, consuming: Future[None]) -> None:
    """Run the chain in a daemon thread, so that an interrupt of the main thread ends the job at once."""
    try:
        for _ in dataset.iter_internal_ref_bundles():
            pass
        consuming.set_result(None)
    except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
        consuming.set_exception(error)


class Tally:
    """Counts what the labeling processes have done and since when, how often each part was begun, and why one gave up."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.starts: Counter[int] = Counter()
        self.reason = ""
        self.first_ready: float | None = None
        self.last_done = 0.0

    def ready(self) -> None:
        self.first_ready = self.first_ready or time.monotonic()

    def start(self, first_row: int) -> int:
        self.starts[first_row] += 1
        return self.starts[first_row]

    def add(self, counts: dict[str, int]) -> None:
        self.counts.update(counts)
        self.last_done = time.monotonic()

    def read(self) -> tuple[Counter[str], float | None]:
        """The counts, and the seconds from the first process that was ready to the last images; None while none is ready."""
        return self.counts, None if self.first_ready is None else max(0.0, self.last_done - self.first_ready)

    def fail(self, reason: str) -> None:
        self.reason = reason

    def why_failed(self) -> str:
        return self.reason


class LabelParts:
    """A Ray Data step: parts of the plan in, their staged files left behind, the same rows out.

    Writing is part of the step, since a part has to be staged whole or not at all and under one name whoever labels it;
    a part that is staged already, by a try that died later or by another process on the same run, is left alone. While one
    is written, which waits for the disk or the store, the next is labeled.
    """

    def __init__(self, run: Run, plan: Plan, tally: Any, make_labeler: Callable[[Run], EntryLabeler]) -> None:
        self.run, self.plan, self.tally, self.make_labeler = run, plan, tally, make_labeler
        self.provenance = {
            "model_version": run.model_version,
            "detector_version": run.config.labeling.detector_version,
            "run_id": run.run_id,
        }

    def __call__(self, rows: pa.Table) -> pa.Table:
        with self._reported(), ThreadPoolExecutor(1) as writer:
            process = _Process.of(self)
            ray.get(self.tally.ready.remote())
            written: Future[bool] | None = None
            for row in rows.to_pylist():
                part = Part(**row)
                target = staged_file(self.run, self.plan, part)
                if self.run.storage.stat(target) is not None:
                    continue
                content = self._label_part(process, part)
                if written:
                    written.result()
                written = writer.submit(self.run.storage.write, target, content, replace=False)
            if written:
                written.result()
            ray.get(self.tally.add.remote({}))  # writing is part of labeling, and of its time
        return rows

    def _label_part(self, process: _Process, part: Part) -> bytes:
        """The file of a part."""
        manifest = process.read_manifest(part)
        sandboxed = ray.get(self.tally.start.remote(part.first_row)) > STARTS_BEFORE_SANDBOX
        images = list(self._label(process, manifest, sandboxed))
        with pa.BufferOutputStream() as buffer:
            pq.write_table(staging_table(manifest, images, self.provenance), buffer, compression="zstd")
            return bytes(buffer.getvalue())

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Ray Data loses the reason of a failure on the way to the driver."""
        try:
            yield
        except (FerRayError, OSError) as error:
            ray.get(self.tally.fail.remote(str(error)))
            raise

    def _label(self, process: _Process, manifest: pa.Table, sandboxed: bool) -> Iterator[LabeledImage]:
        entries = [ImageEntry(**{k: v for k, v in row.items() if k != "row_number"}) for row in manifest.to_pylist()]
        for start in range(0, len(entries), self.run.config.batch_size):
            batch = entries[start : start + self.run.config.batch_size]
            faulthandler.dump_traceback_later(SECONDS_PER_BATCH, exit=True)  # a codec that hangs must not stop the night
            images = process.labeler.label_entries(batch, sandboxed)
            faulthandler.cancel_dump_traceback_later()
            self.tally.add.remote(_counts(images))
            process.metrics.add(images, process.labeler.stage_seconds)
            yield from images


class _Process:
    """What a process of Ray keeps from one task of a run to the next: the labeler above all, which takes seconds to load."""

    _here: ClassVar[dict[str, _Process]] = {}

    def __init__(self, step: LabelParts) -> None:
        self.run, self.plan = step.run, step.plan
        self.labeler = step.make_labeler(step.run)
        if self.labeler.model_version != step.run.model_version:
            raise StorageError(f"The model {step.run.model} changed since the run was planned: start a new run.")
        self.metrics = LabelingMetrics()
        self.manifest: tuple[int, pq.ParquetFile] = (-1, None)
        self.opened = ExitStack()
        gc.freeze()  # what is loaded is there to stay; searching it for garbage again and again takes time

    @classmethod
    def of(cls, step: LabelParts) -> _Process:
        """This process's own; another run of the same driver takes its place."""
        key = f"{step.run.output} {step.run.run_id} {step.plan.started_at}"
        if key not in cls._here:
            if not cls._here:
                atexit.register(os._exit, 0)  # Ray 2.60 can lock up in its own exit handlers, and the process would stay in memory
            cls._here.clear()
            cls._here[key] = cls(step)
        return cls._here[key]

    def read_manifest(self, part: Part) -> pa.Table:
        """The rows of a part; the file stays open for the next."""
        if part.file != self.manifest[0]:
            self.opened.close()
            self.manifest = part.file, self.opened.enter_context(open_manifest(self.run, self.plan, part.file))
        return self.manifest[1].read_row_group(part.group)


class FetchingLabeler:
    """Fetches images ahead and labels them; those of a part that ended its process twice go through a sandbox first."""

    def __init__(self, models: ModelOnGpus | None, run: Run) -> None:
        self.config = run.config.labeling
        load = functools.partial(_load_here, run)
        self.labeler = Labeler(RemoteModel(models, load) if models else load(), self.config, threads=1)
        self.model_version, self.stage_seconds = self.labeler.model_version, self.labeler.stage_seconds
        self.fetcher = Fetcher(run.storage, self.config.max_file_megabytes)

    def label_entries(self, entries: Sequence[ImageEntry], sandboxed: bool) -> list[LabeledImage]:
        fetched = self._timed(self.fetcher.fetch(entries))
        return self.labeler.label_sources(self._survivors(fetched) if sandboxed else fetched)

    def _timed(self, fetched: Iterator[bytes | ImageError]) -> Iterator[bytes | ImageError]:
        """Adds up the time that labeling waits for images."""
        while True:
            started = time.perf_counter()
            image = next(fetched, None)
            self.stage_seconds["fetch"] += time.perf_counter() - started
            if image is None:
                return
            yield image

    def _survivors(self, fetched: Iterator[bytes | ImageError]) -> Iterator[bytes | ImageError]:
        kept, tried = itertools.tee(fetched)
        survived = survivors((image for image in tried if isinstance(image, bytes)), self.config)
        for image in kept:
            if isinstance(image, bytes) and not next(survived):
                yield ImageError(Status.UNDECODABLE, "The image ended the process that decoded it.")
            else:
                yield image


def _load_here(run: Run) -> Bundle[OnnxNetwork]:
    with bundle.local_copy(run.storage, run.model) as folder:
        return bundle.load(folder, run.config.labeling.flip, threads=1)


def _counts(images: Sequence[LabeledImage]) -> dict[str, int]:
    faces = sum(len(image.faces) for image in images)
    return {"images": len(images), "faces": faces, "failed": sum(image.error is not None for image in images)}
