"""The chain of Ray Data calls from manifest to staging; everything about images is in `labeler`."""

from __future__ import annotations

import gc
import logging
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import pyarrow as pa
import ray
import ray.data

from fer_ray.labeler import LabeledImage, Labeler
from fer_ray.manifest import Run
from fer_ray.staging import staging_table

PROGRESS_SECONDS = 5.0


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names (as `ray job submit` sets it), or start a local one; nothing if joined already."""
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)


def label_to_staging(run: Run, images: int, report_progress: Callable[[Counter[str], int], None]) -> None:
    """Label every image of the manifest and leave one nested row for each in `run.staging`.

    `report_progress` is called every few seconds with the counts so far (images, faces, failed) and the number of images.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.memory_usage_poll_interval_s = None  # reading the memory map of a process with TensorFlow every second slows it
    context.use_datasource_v2 = False  # it starts an actor for each of many manifest files
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    workers = min(run.config.workers or cpus, cpus)
    progress = ray.remote(num_cpus=0)(Progress).remote()
    rows_per_block = max(32, min(512, images // (8 * workers)))

    dataset = (
        ray.data.read_parquet(str(run.manifest))
        .repartition(target_num_rows_per_block=rows_per_block)
        .map_batches(
            LabelImages,
            fn_constructor_args=(run, progress),
            batch_size=min(run.config.batch_size, rows_per_block),
            batch_format="pyarrow",
            # An actor keeps one CPU busy but asks for half of one, or of a single CPU for nothing: with all CPUs taken, the
            # tasks that read and write would never start.
            compute=ray.data.ActorPoolStrategy(
                size=min(workers, -(-images // 32)), max_tasks_in_flight_per_actor=2, max_concurrent_calls_per_actor=1
            ),
            num_cpus=0.5 if cpus > 1 else 0,
        )
    )
    writing: Future[None] = Future()
    threading.Thread(target=_write, args=(dataset, str(run.staging), writing), daemon=True).start()
    while not wait([writing], timeout=PROGRESS_SECONDS).done:
        report_progress(ray.get(progress.read.remote()), images)
    writing.result()


def _write(dataset: ray.data.Dataset, path: str, writing: Future[None]) -> None:
    """Run the chain in a daemon thread, so that an interrupt of the main thread ends the job at once."""
    try:
        writing.set_result(dataset.write_parquet(path))
    except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
        writing.set_exception(error)


class Progress:
    """Counts what the labeling processes have done, for display only; the true counts come from the published tables."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, counts: dict[str, int]) -> None:
        self.counts.update(counts)

    def read(self) -> Counter[str]:
        return self.counts


class LabelImages:
    """A Ray Data step: manifest rows in, the same images with their faces out."""

    def __init__(self, run: Run, progress: Any) -> None:
        self.labeler = Labeler(run.model, run.config.labeling, threads=1)
        self.provenance = {
            "model_version": run.model_version,
            "detector_version": run.config.labeling.detector_version,
            "run_id": run.run_id,
        }
        self.progress = progress
        gc.freeze()  # what TensorFlow brought is there to stay; searching it for garbage again and again takes time

    def __call__(self, batch: pa.Table) -> pa.Table:
        images = self.labeler.label(batch["image_uri"].to_pylist())
        self.progress.add.remote(_counts(images))
        return staging_table(batch, images, self.provenance)


def _counts(images: list[LabeledImage]) -> dict[str, int]:
    faces = sum(len(image.faces) for image in images)
    return {"images": len(images), "faces": faces, "failed": sum(image.error is not None for image in images)}
