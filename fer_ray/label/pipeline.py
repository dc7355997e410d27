"""The chain of Ray Data calls that labels the parts of a plan; what happens to a part in its process is in `parts`."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fer_ray.cluster import Watch, cluster_cpus, is_short_of_memory, may_grow, wait_for_cpus
from fer_ray.errors import FerRayError, MemoryShortError, StorageError
from fer_ray.label.gpu_models import ModelOnGpus, RemoteModel, start_models
from fer_ray.label.parts import EntryLabeler, PartLabeler, PartWorker, count, load_model, make_part_labeler
from fer_ray.label.plan import Part, Plan, unfinished
from fer_ray.label.result import LabeledImage
from fer_ray.label.run import Run
from fer_ray.label.telemetry import LabelingMetrics
from fer_ray.text import plural

LOGGER = logging.getLogger(__name__)
PROGRESS_SECONDS = 1.0  # between two looks at the counts
MAX_RESTARTS = 3  # of the process that counts, in one try of a run
MAX_TASKS = 4000  # of a run: each costs the driver some time and memory
TASKS_PER_WORKER = 8  # at least, so that all end at about the same time
MIN_IMAGES_PER_TASK = 512  # a task costs Ray as much as some images cost the labeler


def label_to_staging(
    run: Run,
    plan: Plan,
    parts: Sequence[Part],
    report_progress: Callable[[Counter[str], int], None],
    make_labeler: Callable[[Run], EntryLabeler] | None = None,
    make: Callable[..., PartWorker] = make_part_labeler,
) -> float:
    """Label the images of the parts and leave one file for each part in staging, which makes the part finished.

    Args:
        run: What is labeled, how, and where to.
        plan: The plan of the run.
        parts: Those of its parts that are not finished.
        report_progress: Called every second, once a process is ready, with the counts so far (images, faces, failed) and the
            number of images.
        make_labeler: Makes what labels in each process; the real one by default.
        make: What makes the real one, of the run, the plan, and the model where that is loaded already.

    Returns:
        The seconds that labeling took, from the moment when the first process was ready: start-up is left out.

    Raises:
        StorageError: a store cannot be used, or the model changed since the run was planned.
        MemoryShortError: a machine ran out of memory, and again with half the processes.
    """
    if not run.config.workers:
        wait_for_cpus()
    cpus = cluster_cpus()
    workers = min(run.config.workers or cpus, len(parts) if may_grow() else cpus, len(parts))
    with tempfile.TemporaryDirectory(prefix="fer-ray-") as folder:
        begun = str(Path(folder) / "begun")
        label = functools.partial(_label, run, plan, begun=begun, report_progress=report_progress, make_labeler=make_labeler, make=make)
        try:
            return label(parts, workers)
        except (FerRayError, ray.exceptions.RayError) as error:
            if not is_short_of_memory(error):
                raise
        fewer = max(1, workers // 2)
        LOGGER.warning("a machine ran out of memory under %s: trying with %d", plural(workers, "worker"), fewer)
        try:
            return label(unfinished(run, plan, parts), fewer)
        except (FerRayError, ray.exceptions.RayError) as error:
            if not is_short_of_memory(error):
                raise
            remedy = "lower --workers, or use machines with more memory" if fewer > 1 else "use machines with more memory"
            raise MemoryShortError(f"A machine ran out of memory, under {plural(fewer, 'worker')} too: {remedy}") from error


def _label(
    run: Run,
    plan: Plan,
    parts: Sequence[Part],
    workers: int,
    begun: str,
    report_progress: Callable[[Counter[str], int], None],
    make_labeler: Callable[[Run], EntryLabeler] | None,
    make: Callable[..., PartWorker],
) -> float:
    """As `label_to_staging`, in so many processes; the file `begun` keeps which parts were."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Where memory is short, Ray ends this process too, small as it is.
    actor = ray.remote(num_cpus=0, scheduling_strategy=here, max_restarts=MAX_RESTARTS, max_task_retries=-1)(Counts)
    tally = actor.remote(begun)

    models = None if make_labeler else start_models(run)
    images = sum(part.images for part in parts)
    blocks = min(len(parts), max(TASKS_PER_WORKER * workers, min(images // MIN_IMAGES_PER_TASK, MAX_TASKS)))
    made = functools.partial(_with_labeler, make_labeler) if make_labeler else functools.partial(_with_model, make, models)
    step = LabelParts(run, plan, tally, made)
    start = ray.remote(num_cpus=1)(_start)
    for _ in range(min(workers, cluster_cpus())):
        start.remote(step)  # all processes load their libraries now, while this one loads Ray Data
    dataset = (
        _ray_data()
        .from_items([vars(part) for part in parts], override_num_blocks=blocks)
        .map_batches(
            step,
            batch_size=None,
            batch_format="pyarrow",
            # Tasks, not actors: Ray gives them processes that have run others before, which keep their labeler, and repeats them
            # where a process or a node dies. (Actors would open every run with an error of Ray's about their arguments, issue 53727.)
            compute=_ray_data().TaskPoolStrategy(size=workers),
            num_cpus=1,
        )
    )
    consuming: Future[None] = Future()
    threading.Thread(target=_consume, args=(dataset, consuming), daemon=True).start()
    watch = Watch()
    while not wait([consuming], timeout=PROGRESS_SECONDS).done:
        counts, seconds = _get(tally.read.remote(), watch)
        if seconds is not None:
            report_progress(counts, images)
    if consuming.exception() and (reason := ray.get(tally.why_failed.remote())):
        raise reason from consuming.exception()
    consuming.result()
    if models and (lost := models.lost()):
        LOGGER.warning("%d of %d GPUs were lost on the way; the others or the CPUs did their part.", lost, len(models.actors))
    return float(ray.get(tally.read.remote())[1] or 0.0)


def _get(reference: Any, watch: Watch) -> Any:
    """What `ray.get` gives, as long as the cluster lives."""
    while True:
        watch.check()
        if ray.wait([reference], timeout=PROGRESS_SECONDS)[0]:
            return ray.get(reference)


def _ray_data() -> Any:
    """Ray Data, which takes a second to load, without its bars and lines."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.memory_usage_poll_interval_s = None
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is raised, and said once
    return ray.data


def _consume(dataset: Any, consuming: Future[None]) -> None:
    """Run the chain in a daemon thread, so that an interrupt of the main thread ends the job at once."""
    try:
        for _ in dataset.iter_internal_ref_bundles():
            pass
        consuming.set_result(None)
    except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
        consuming.set_exception(error)


class Counts:
    """The actor that counts what the labeling processes have done and since when, how often each part was begun, and why one gave up."""

    def __init__(self, begun: str) -> None:
        """Take up what the file says of parts that were begun, as one before this did that was ended."""
        self.counts: Counter[str] = Counter()
        with Path(begun).open("a+", encoding="ascii") as file:
            file.seek(0)
            self.starts = Counter(map(int, file))
        self.begun = Path(begun)
        self.reason: FerRayError | None = None
        self.first_ready: float | None = None
        self.last_done = 0.0

    def ready(self) -> None:
        self.first_ready = self.first_ready or time.monotonic()

    def start(self, first_row: int) -> int:
        self.starts[first_row] += 1
        with self.begun.open("a", encoding="ascii") as file:
            file.write(f"{first_row}\n")
        return self.starts[first_row]

    def add(self, counts: dict[str, int]) -> None:
        self.counts.update(counts)
        self.last_done = time.monotonic()

    def read(self) -> tuple[Counter[str], float | None]:
        """The counts, and the seconds from the first process that was ready to the last images; None while none is ready."""
        return self.counts, None if self.first_ready is None else max(0.0, self.last_done - self.first_ready)

    def fail(self, reason: FerRayError) -> None:
        self.reason = reason

    def why_failed(self) -> FerRayError | None:
        return self.reason


@dataclass
class RemoteTally:
    """Tells the actor, and Ray's metrics, what this process does."""

    counts: Any
    metrics: LabelingMetrics

    def ready(self) -> None:
        ray.get(self.counts.ready.remote())

    def start(self, part: Part) -> int:
        return int(ray.get(self.counts.start.remote(part.first_row)))

    def add(self, images: Sequence[LabeledImage], stage_seconds: Mapping[str, float]) -> None:
        self.counts.add.remote(count(images))
        self.metrics.add(images, stage_seconds)


class LabelParts:
    """A Ray Data step: parts of the plan in, their staged files left behind, the same rows out."""

    _here: ClassVar[dict[str, tuple[PartWorker, LabelingMetrics]]] = {}  # of the run that this process works for
    _leaves_at_once: ClassVar[bool] = False

    def __init__(self, run: Run, plan: Plan, counts: Any, make: Callable[[Run, Plan], PartWorker]) -> None:
        self.run, self.plan, self.counts, self.make = run, plan, counts, make

    def __call__(self, rows: pa.Table) -> pa.Table:
        try:
            labeler, metrics = self.labeler()
            labeler.label((Part(**row) for row in rows.to_pylist()), RemoteTally(self.counts, metrics))
        except (FerRayError, OSError) as error:
            LabelParts._here.clear()  # what it holds open may be restored before the run goes on
            reason = error if isinstance(error, MemoryShortError) else StorageError(str(error))
            ray.get(self.counts.fail.remote(reason))  # Ray Data loses the reason of a failure on the way to the driver
            raise
        return rows

    def labeler(self) -> tuple[PartWorker, LabelingMetrics]:
        """This process's own; another run of the same driver takes its place."""
        key, here = f"{self.run.output} {self.run.run_id} {self.plan.started_at}", LabelParts._here
        if key not in here:
            if not LabelParts._leaves_at_once:
                LabelParts._leaves_at_once = True
                atexit.register(os._exit, 0)  # Ray 2.60 can lock up in its own exit handlers, and the process would stay in memory
            here.clear()
            here[key] = self.make(self.run, self.plan), LabelingMetrics()
        return here[key]


def _start(step: LabelParts) -> None:
    """Load what a process needs, so that it is ready when its first part comes; what fails here fails again then, and is told."""
    with suppress(FerRayError, OSError):
        step.labeler()


def _with_model(make: Callable[..., PartWorker], models: ModelOnGpus | None, run: Run, plan: Plan) -> PartWorker:
    return make(run, plan, RemoteModel(models, functools.partial(load_model, run)) if models else None)


def _with_labeler(make_labeler: Callable[[Run], EntryLabeler], run: Run, plan: Plan) -> PartWorker:
    return PartLabeler(run, plan, make_labeler(run))
