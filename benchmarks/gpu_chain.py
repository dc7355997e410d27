"""Two forms of one chain beside each other: labeling processes that ask the processes of GPUs, as `label` does, and Ray Data's stages.

    .venv/bin/python benchmarks/gpu_chain.py [--gpus 1 4 8] [--milliseconds 10 0.5] [--images-per-gpu 1500] [--rounds 2]

No GPU and no image is needed: 16 processes on CPUs wait 2 ms for each image in place of finding its 1.2 faces, and a process for each
GPU waits so many milliseconds for each crop in place of the model. `asked` is label_to_staging with such a model: each labeling task
finds the faces of a batch, asks any one GPU, and stages its parts. `stages` is parts -> faces (16 tasks) -> model (an actor for
each GPU) -> staged file, with Ray Data between them. Printed for each is the share of the time in which the GPUs were in use, from
40 to 90 % of the crops, and the images per second; the two take turns.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scale import BATCH, FIRST_NIGHT, check, named_run, ray_apart

from fer_ray.config.crop import CropGeometry
from fer_ray.label.gpu_models import ModelOnGpus, RemoteModel
from fer_ray.label.incremental import Counts, due_images
from fer_ray.label.plan import Part, Plan, read_parts, staged_file, write_plan
from fer_ray.label.result import LabeledImage
from fer_ray.label.run import Run
from fer_ray.schema import ImageEntry, Status
from fer_ray.typing import Float32Array, Float64Array, UInt8Array
from fer_ray.vision.quality import OUTPUTS

CPUS = 16
SECONDS_PER_IMAGE = 0.002  # a portrait
CROPS_PER_IMAGE = 1.2
MIDDLE = 0.4, 0.9  # of the crops: before it the processes start, which two cores take long for; after it some have no work any more
SIDE = 48


class WaitingModel:
    """In the place of a GPU's process: waits, and writes down when."""

    def __init__(self, folder: str, seconds_per_crop: float) -> None:
        self.file, self.seconds = Path(folder) / f"{os.getpid()}-{time.monotonic_ns()}", seconds_per_crop

    def probabilities(self, images: UInt8Array, seen: Float32Array | None = None) -> Float64Array:
        begin = time.monotonic()
        time.sleep(self.seconds * len(images))
        with self.file.open("a") as file:
            file.write(f"{begin} {time.monotonic()} {len(images)}\n")
        return np.full((len(images), 8), 1 / 8)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """As a stage: crops in, answers out."""
        crops = np.frombuffer(rows["crops"][0].as_py(), np.uint8).reshape(-1, SIDE, SIDE)
        for start in range(0, len(crops), 77):  # as many as 64 images have
            self.probabilities(crops[start : start + 77])
        return rows.drop_columns("crops")


class Asking:
    """In the place of a labeler: waits for each image, and asks a GPU for the crops of a batch."""

    def __init__(self, models: ModelOnGpus, run: Run) -> None:
        self.remote, self.model_version = RemoteModel(models, _not_here), run.model_version
        self.stage_seconds: Mapping[str, float] = defaultdict(float)

    def label_batches(
        self, entries: Sequence[ImageEntry], starts: int, following: Sequence[ImageEntry] = ()
    ) -> Iterator[list[LabeledImage]]:
        """As `Labeler.label_batches` does, with waits in the place of decoding and detection."""
        waiting: list[tuple[int, Callable[[], Float64Array]]] = []
        for start in range(0, len(entries), BATCH):
            images = len(entries[start : start + BATCH])
            time.sleep(SECONDS_PER_IMAGE * images)
            crops = round(CROPS_PER_IMAGE * images)
            asked = self.remote.ask(np.zeros((crops, SIDE, SIDE), np.uint8), np.zeros((crops, len(OUTPUTS)), np.float32))
            waiting.append((images, asked))
            if len(waiting) > 1:
                yield self._answers(*waiting.pop(0))
        for one in waiting:
            yield self._answers(*one)

    def _answers(self, images: int, answer: Callable[[], Float64Array]) -> list[LabeledImage]:
        answer()
        return [LabeledImage(Status.NO_FACE, None, 1, 1, 1, None)] * images


def _not_here() -> Any:
    raise RuntimeError("the process in the GPU's place is gone")


def ask(run: Run, plan: Plan, gpus: int, seconds: float, folder: str) -> None:
    import ray

    from fer_ray.label.pipeline import label_to_staging

    actors = [ray.remote(num_cpus=0, num_gpus=1)(WaitingModel).remote(folder, seconds) for _ in range(gpus)]
    models = ModelOnGpus(actors, SIDE, "gray", CropGeometry(), (), run.model_version)
    label_to_staging(run, plan, read_parts(run, plan), lambda counts, images: None, functools.partial(Asking, models))
    for actor in actors:
        ray.kill(actor)


def find_faces(rows: pa.Table) -> pa.Table:
    (images,) = rows["rows"].to_pylist()
    time.sleep(SECONDS_PER_IMAGE * images)
    return rows.append_column("crops", pa.array([bytes(round(CROPS_PER_IMAGE * images) * SIDE * SIDE)], pa.large_binary()))


def stage(rows: pa.Table, run: Run, plan: Plan) -> pa.Table:
    for row in rows.to_pylist():
        run.storage.write(staged_file(run, plan, Part(**row)), b"staged", replace=False)
    return rows


def stages(run: Run, plan: Plan, gpus: int, seconds: float, folder: str) -> None:
    import ray.data

    parts = [vars(part) for part in read_parts(run, plan)]
    ray.data.DataContext.get_current().enable_progress_bars = False
    chain = (
        ray.data.from_items(parts, override_num_blocks=len(parts))
        .map_batches(find_faces, batch_size=None, batch_format="pyarrow", compute=ray.data.TaskPoolStrategy(size=CPUS))
        .map_batches(
            WaitingModel,
            batch_size=1,  # a part
            batch_format="pyarrow",
            fn_constructor_args=(folder, seconds),
            compute=ray.data.ActorPoolStrategy(size=gpus),
            num_cpus=0,
            num_gpus=1,
        )
        .map_batches(functools.partial(stage, run=run, plan=plan), batch_size=None, batch_format="pyarrow", num_cpus=0.1)
    )
    for _ in chain.iter_internal_ref_bundles():
        pass


def measured(form: Callable[..., None], gpus: int, seconds: float, images: int, scratch: Path) -> tuple[float, float]:
    """The share of the time in which the GPUs were in use, and the images per second."""
    with tempfile.TemporaryDirectory(dir=scratch) as work:
        run, counts = named_run(Path(work), Path(work) / "output", FIRST_NIGHT), Counts()
        due = due_images([ImageEntry(f"/{n:07d}.jpg", n, None) for n in range(images)], lambda: iter(()), None, counts)
        plan = write_plan(run, due, counts, datetime.datetime.now(datetime.UTC))
        times = Path(work) / "times"
        times.mkdir()
        form(run, plan, gpus, seconds, str(times))
        missing = [part for part in read_parts(run, plan) if run.storage.stat(staged_file(run, plan, part)) is None]
        check(not missing, f"{len(missing)} parts were not staged")
        spans = [tuple(map(float, line.split())) for file in times.iterdir() for line in file.read_text().splitlines()]
    spans.sort(key=lambda span: span[1])
    done = np.cumsum([span[2] for span in spans]) / sum(span[2] for span in spans)
    begin, end = (spans[int(np.searchsorted(done, share))][1] for share in MIDDLE)
    took = end - begin
    used = sum(min(span[1], end) - max(span[0], begin) for span in spans if span[1] > begin and span[0] < end)
    return used / took / gpus, images * (MIDDLE[1] - MIDDLE[0]) / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--milliseconds", type=float, nargs="+", default=[10.0, 0.5])
    parser.add_argument("--images-per-gpu", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fer-ray-") as scratch, ray_apart() as environment:
        os.environ["RAY_TMPDIR"] = environment["RAY_TMPDIR"]
        import ray

        for gpus in arguments.gpus:
            ray.init("local", num_cpus=CPUS + 2, num_gpus=gpus, include_dashboard=False, log_to_driver=False)
            for milliseconds in arguments.milliseconds:
                images = round(arguments.images_per_gpu * gpus * min(4.0, 10 / milliseconds))
                found = defaultdict(list)
                for _ in range(arguments.rounds):
                    for form in (ask, stages):
                        found[form.__name__].append(measured(form, gpus, milliseconds / 1000, images, Path(scratch)))
                for name, values in found.items():
                    share, rate = (statistics.median(column) for column in zip(*values, strict=True))
                    figures.append({"gpus": gpus, "ms_per_crop": milliseconds, "form": name, "in_use": share, "images_per_second": rate})
                    print(f"{gpus} GPUs, {milliseconds:g} ms a crop, {name}: in use {share:.0%}, {rate:,.0f} images/s", flush=True)
            ray.shutdown()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
