"""The chain of Ray Data calls from manifest to staging; everything about images is in `labeler`."""

from __future__ import annotations

import datetime
import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import ray
import ray.data

from fer_ray.labeler import Face, LabeledImage, Labeler
from fer_ray.manifest import Run
from fer_ray.schema import EMOTIONS, LANDMARKS, SCHEMA_VERSION, STAGING, image_id

PROGRESS_SECONDS = 5.0


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names (as `ray job submit` sets it), or start a local one; nothing if joined already."""
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.WARNING, include_dashboard=None)


def label_to_staging(run: Run, images: int, report_progress: Callable[[Counter[str], int], None]) -> None:
    """Label every image of the manifest and leave one nested row for each in `run.staging`.

    `report_progress` is called every few seconds with the counts so far (images, faces, failed) and the number of images.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    workers = run.config.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
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
            # An actor keeps one CPU busy but asks for half: with all CPUs taken, the tasks that read and write would never start.
            compute=ray.data.ActorPoolStrategy(size=min(workers, -(-images // 32))),
            num_cpus=0.5,
        )
    )
    with ThreadPoolExecutor(1) as executor:
        writing = executor.submit(dataset.write_parquet, str(run.staging))
        last = time.monotonic()
        while not writing.done():
            time.sleep(0.1)
            if time.monotonic() - last >= PROGRESS_SECONDS:
                report_progress(ray.get(progress.read.remote()), images)
                last = time.monotonic()
        writing.result()


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
        self.constants = {
            "model_version": run.model_version,
            "detector_version": run.config.labeling.detector_version,
            "run_id": run.run_id,
            "schema_version": SCHEMA_VERSION,
        }
        self.progress = progress

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        images = self.labeler.label([row["image_uri"] for row in rows])
        labeled_at = datetime.datetime.now(datetime.UTC)
        self.progress.add.remote(_counts(images))
        return pa.Table.from_pylist(
            [
                {**row, **_image_row(row, image), **self.constants, "labeled_at": labeled_at}
                for row, image in zip(rows, images, strict=True)
            ],
            schema=STAGING,
        )


def _counts(images: list[LabeledImage]) -> dict[str, int]:
    faces = sum(len(image.faces) for image in images)
    return {"images": len(images), "faces": faces, "failed": sum(image.error is not None for image in images)}


def _image_row(row: dict[str, Any], image: LabeledImage) -> dict[str, Any]:
    return {
        "image_id": image_id(row["image_uri"]),
        "status": image.status.value,
        "error": image.error,
        "face_count": len(image.faces),
        "left_out_count": image.left_out_count,
        "width": image.width,
        "height": image.height,
        "size_bytes": row["size_bytes"] if image.size_bytes is None else image.size_bytes,
        "content_sha256": image.content_sha256,
        "faces": [_face_row(index, face) for index, face in enumerate(image.faces)],
    }


def _face_row(index: int, face: Face) -> dict[str, Any]:
    x, y, width, height = face.bbox
    points = {
        f"{landmark}_{axis}": float(value)
        for landmark, point in zip(LANDMARKS, face.landmarks, strict=True)
        for axis, value in zip("xy", point, strict=True)
    }
    return {
        "face_index": index,
        "bbox_x": x,
        "bbox_y": y,
        "bbox_width": width,
        "bbox_height": height,
        "detection_score": face.detection_score,
        **points,
        "sharpness": face.sharpness,
        "emotion": face.emotion,
        "confidence": face.confidence,
        **{f"prob_{emotion}": face.probabilities.get(emotion) for emotion in EMOTIONS},
    }
