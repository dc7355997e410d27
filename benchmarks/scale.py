"""What everything but the labels costs: 10 thousand, 100 thousand and 1 million images through a labeler that does nothing.

Each size runs in processes of its own, the drivers of its nights, over empty files in folders of 1,000. The first night
goes through the steps of `fer_ray.label.job` one by one: listing, planning, labeling, an interruption after which the second
half of the parts is labeled again, publishing. The second night is planned against the rows just published, and then run by
the command that a user starts, `jobs/label.py`, with nothing new. Memory is the peak of the resident memory of the driver.

    .venv/bin/python benchmarks/scale.py [--sizes 10000 100000 1000000] [--scratch DIR]
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fer_ray.config.jobs.label import LabelConfig
from fer_ray.emotions import EMOTIONS
from fer_ray.io.inputs import list_images
from fer_ray.label.incremental import Counts, find_due
from fer_ray.label.outcome import run_row
from fer_ray.label.plan import Part, Plan, read_parts, read_plan, staged_file, unfinished, write_plan
from fer_ray.label.publish import clean_up, commit, publish_tables
from fer_ray.label.result import Face, LabeledImage
from fer_ray.label.run import Run, identify
from fer_ray.models import bundle
from fer_ray.schema import ImageEntry, Status

ROOT = Path(__file__).parents[1]
IMAGES_PER_FOLDER = 1000
FIRST_NIGHT, SECOND_NIGHT = "2026-11-20", "2026-11-21"
BATCH = 64  # images, as label has them
FACES = 97

LISTING, PLANNING, RAY = "listing", "planning the first night", "starting Ray"
ACTORS, LABELING = "starting actors", "labeling with no labeler"
CHECKPOINT, REST = "loading the checkpoint", "labeling the lost half"
TASKS, PUBLISHING, COMMIT = "starting a task", "publishing", "committing, cleaning up"
LISTING_AGAIN, INCREMENTAL, NIGHT = "listing again", "planning the second night", "second night, the command"
NIGHTS = ((LISTING, PLANNING, RAY, ACTORS, LABELING, CHECKPOINT, REST, TASKS, PUBLISHING, COMMIT), (LISTING_AGAIN, INCREMENTAL, NIGHT))
PER_IMAGE = (PLANNING, LABELING, PUBLISHING, COMMIT)
CONSTANT = (RAY, ACTORS, TASKS)


@dataclass
class Phase:
    """A step of a run: wall seconds, the images or parts it went over, and the driver's peak memory meanwhile in MB."""

    seconds: float
    images: int
    peak_mb: float
    parts: int = 0


class Phases:
    """The steps of one size by name, in their order."""

    def __init__(self) -> None:
        self.by_name: dict[str, Phase] = {}

    @contextmanager
    def measured(self, name: str, images: int = 0, parts: int = 0) -> Iterator[None]:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew; where that is refused, peaks only rise
        started = time.perf_counter()
        yield
        self.by_name[name] = Phase(time.perf_counter() - started, images, peak_mb("self"), parts)
        print(f"  {name}: {self.by_name[name].seconds:.2f} s, {self.by_name[name].peak_mb:.0f} MB", file=sys.stderr, flush=True)


class NoLabeler:
    """Answers at once and reads nothing: nine images of ten have one of a few faces; it claims to be the model of the package."""

    def __init__(self, run: Run) -> None:
        self.model_version, self.stage_seconds = run.model_version, dict[str, float]()
        self.faces = [draw_face(random.Random(seed)) for seed in range(FACES)]

    def label_batches(
        self, entries: Sequence[ImageEntry], starts: int, following: Sequence[ImageEntry] = ()
    ) -> Iterator[list[LabeledImage]]:
        for start in range(0, len(entries), BATCH):
            yield [self.answer(entry) for entry in entries[start : start + BATCH]]

    def answer(self, entry: ImageEntry) -> LabeledImage:
        digest = hashlib.sha256(entry.image_uri.encode()).digest()
        faces = [self.faces[digest[1] % FACES]] if digest[0] < 0.9 * 256 else []
        return LabeledImage(Status.OK if faces else Status.NO_FACE, None, 250, 250, entry.size_bytes, digest.hex(), faces)


def draw_face(generator: random.Random) -> Face:
    side = generator.randrange(40, 160)
    landmarks = np.array([[generator.uniform(40, 200), generator.uniform(40, 200)] for _ in range(5)], np.float32)
    weights = [generator.random() ** 4 for _ in EMOTIONS]
    probabilities = {emotion: weight / sum(weights) for emotion, weight in zip(EMOTIONS, weights, strict=True)}
    emotion = max(probabilities, key=probabilities.__getitem__)
    corner = generator.randrange(90), generator.randrange(90)
    score, sharpness = generator.uniform(0.65, 0.99), generator.uniform(10, 900)
    return Face((*corner, side, side), score, landmarks, sharpness, emotion, probabilities[emotion], probabilities)


def peak_mb(process: str | int) -> float:
    """The highest resident memory of a process so far; 0 when it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return 0.0


def make_images(folder: Path, count: int) -> None:
    for first in range(0, count, IMAGES_PER_FOLDER):
        inside = folder / f"{first // IMAGES_PER_FOLDER:05d}"
        inside.mkdir(parents=True)
        for number in range(first, min(first + IMAGES_PER_FOLDER, count)):
            (inside / f"IMG_{number:08d}.jpg").touch()


def first_night(images: Path, output: Path, count: int) -> dict[str, Phase]:
    """What `job._execute` does, step by step."""
    phases = Phases()
    run = named_run(images, output, FIRST_NIGHT)
    with phases.measured(LISTING, count):
        list_all(run)
    with phases.measured(PLANNING, count):
        counts = Counts()
        plan = write_plan(run, find_due(run, counts), counts, datetime.datetime.now(datetime.UTC))
    check(plan.images == count, f"{plan.images} images were planned")
    row = label_and_publish(run, plan, phases)
    check(row["images_total"] == count, f"{row['images_total']} images were published")
    return phases.by_name


def second_night(images: Path, output: Path, count: int) -> dict[str, Phase]:
    """Its plan, without anything written: every image is known."""
    phases = Phases()
    run = named_run(images, output, SECOND_NIGHT)
    with phases.measured(LISTING_AGAIN, count):
        list_all(run)
    with phases.measured(INCREMENTAL, count):
        counts = Counts()
        due = sum(len(table) for table in find_due(run, counts))
    check(due == 0 and counts.known == count, f"{due} images were due again, {counts.known} known")
    return phases.by_name


def named_run(images: Path, output: Path, date: str) -> Run:
    return identify(LabelConfig(input=(str(images),), output=str(output), run_date=date))


@contextmanager
def ray_apart() -> Iterator[dict[str, str]]:
    """The environment of a job that joins no other Ray of this machine, and is joined by none."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # short: the paths of sockets are limited
        Path(folder, "ray").mkdir()
        yield {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"RAY_TMPDIR": folder}


def list_all(run: Run) -> None:
    for _ in list_images(run.storage, run.inputs, run.output):
        pass


def check(condition: bool, sentence: str) -> None:
    if not condition:
        sys.exit(f"This benchmark is broken: {sentence}.")


def label_and_publish(run: Run, plan: Plan, phases: Phases) -> dict[str, Any]:
    """As `job._label_and_publish`, but the second half of the staged parts is lost on the way."""
    parts = read_parts(run, plan)
    with phases.measured(RAY):
        import ray

        from fer_ray.cluster import connect

        connect()
    try:
        first, second, others = parts[:2], parts[2:4], parts[4:]
        label_parts(run, plan, first)  # the first actors of a cluster also wait for their processes
        with phases.measured(ACTORS, parts=len(second)):
            label_parts(run, plan, second)
        with phases.measured(LABELING, count_images(others), len(others)):
            label_parts(run, plan, others)
        interrupt(run, plan, parts, phases)
        with phases.measured(TASKS):
            ray.get(ray.remote(num_cpus=0)(load_publishing).remote())
        with phases.measured(PUBLISHING, plan.images, len(parts)):
            counts = publish_tables(run, plan)
        with phases.measured(COMMIT, plan.images, len(parts)):
            row = run_row(run, plan, counts, 0.0)
            commit(run, row)
            clean_up(run, run.config.keep_days)
        return row
    finally:
        ray.shutdown()


def interrupt(run: Run, plan: Plan, parts: Sequence[Part], phases: Phases) -> None:
    lost = parts[len(parts) // 2 :]
    run.storage.remove(*(staged_file(run, plan, part) for part in lost))
    with phases.measured(CHECKPOINT, plan.images, len(parts)):
        found = read_plan(run)
        missing = unfinished(run, found, read_parts(run, found)) if found else []
    check(missing == list(lost), f"{len(missing)} parts were missing, not {len(lost)}")
    with phases.measured(REST, count_images(lost), len(lost)):
        label_parts(run, plan, missing)


def label_parts(run: Run, plan: Plan, parts: Sequence[Part]) -> None:
    from fer_ray.label.pipeline import label_to_staging

    label_to_staging(run, plan, parts, lambda counts, images: None, make_labeler=NoLabeler)


def load_publishing() -> str:
    from fer_ray.label import publish

    return publish.__name__


def count_images(parts: Sequence[Part]) -> int:
    return sum(part.rows for part in parts)


def nothing_new(images: Path, output: Path, count: int) -> Phase:
    """The night after as a user has it: the whole command, from its start to its end."""
    command = [sys.executable, "jobs/label.py", "--input", str(images), "--output", str(output), "--run-date", SECOND_NIGHT]
    with tempfile.TemporaryFile("w+") as log:
        started, peak = time.perf_counter(), 0.0
        with subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) as process:
            while process.poll() is None:
                peak = max(peak, peak_mb(process.pid))
                time.sleep(0.02)
        seconds = time.perf_counter() - started
        log.seek(0)
        said = log.read()
    check(process.returncode == 0, f"the command failed:\n{said}")
    summary = json.loads(said.splitlines()[-1])
    check(summary["images_total"] == 0 and summary["images_skipped"] == count, f"the command had something to do: {summary}")
    return Phase(seconds, count, peak)


def measure(count: int, folder: Path) -> dict[str, Phase]:
    print(f"{count:,} images: making them", file=sys.stderr, flush=True)
    make_images(folder / "images", count)
    phases = {**driven(1, count, folder), **driven(2, count, folder)}
    phases[NIGHT] = nothing_new(folder / "images", folder / "output", count)
    return phases


def driven(night: int, count: int, folder: Path) -> dict[str, Phase]:
    """The steps of a night in a fresh process."""
    command = [sys.executable, __file__, "--night", str(night), "--sizes", str(count), "--scratch", str(folder)]
    driver = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    check(driver.returncode == 0, f"night {night} of {count:,} images failed")
    return {name: Phase(**values) for name, values in json.loads(driver.stdout.splitlines()[-1]).items()}


def per_image(phases: dict[str, Phase]) -> float:
    """Microseconds an image of engine and tables; what a run starts once is left out."""
    seconds = sum(phases[name].seconds for name in PER_IMAGE) - phases[ACTORS].seconds
    return 1e6 * seconds / phases[PLANNING].images


def driver_mb(phases: dict[str, Phase], night: int) -> float:
    return max(phases[name].peak_mb for name in NIGHTS[night - 1])


def report(sizes: dict[int, dict[str, Phase]]) -> None:
    print(f"{'':26}" + "".join(f"{f'{count:,} images':>34}" for count in sizes))
    print(f"{'':26}" + f"{'seconds':>12}{'us/image':>10}{'peak MB':>12}" * len(sizes))
    for name in next(iter(sizes.values())):
        print(f"{name:26}" + "".join(cells(phases[name]) for phases in sizes.values()))
    for name in (LABELING, REST):
        print(f"parts, {name:19}" + "".join(f"{phases[name].parts:>12,}{'':22}" for phases in sizes.values()))
    print(f"{'engine and tables':26}" + "".join(f"{'':12}{per_image(phases):>10.1f}{'':12}" for phases in sizes.values()))
    for night in (1, 2):
        print(f"{f'driver, night {night}':26}" + "".join(f"{'':22}{driver_mb(phases, night):>12.0f}" for phases in sizes.values()))
    print(f"(engine and tables: {' + '.join(PER_IMAGE)}; without {', '.join(CONSTANT)})")
    figures = goals(sizes)
    steps = {count: {name: dataclasses.asdict(phase) for name, phase in phases.items()} for count, phases in sizes.items()}
    print(json.dumps({"phases": steps, "goals": figures}))


def cells(phase: Phase) -> str:
    each = f"{1e6 * phase.seconds / phase.images:.1f}" if phase.images else ""
    return f"{phase.seconds:>12.2f}{each:>10}{phase.peak_mb:>12.0f}"


def goals(sizes: dict[int, dict[str, Phase]]) -> dict[str, float]:
    least, most = min(sizes), max(sizes)
    small, large = sizes[least], sizes[most]
    against = f"{most:,} against {least:,} images"
    figures = {
        **{f"driver_mb_more_night_{night}": round(driver_mb(large, night) - driver_mb(small, night), 1) for night in (1, 2)},
        "time_per_image_ratio": round(per_image(large) / per_image(small), 2),
        "night_beyond_listing_s": round(large[NIGHT].seconds - large[LISTING_AGAIN].seconds, 1),
    }
    judge(f"driver memory, first night, {against}", figures["driver_mb_more_night_1"], " MB more", 100, 300)
    judge(f"driver memory, second night, {against}", figures["driver_mb_more_night_2"], " MB more", 100, 300)
    judge(f"time per image, {against}", figures["time_per_image_ratio"], "", 1.0, 1.2)
    judge(f"a night with nothing new, {most:,} known, beyond listing", figures["night_beyond_listing_s"], " s", 20, 60)
    for fewer, more in itertools.pairwise(sorted(sizes)):
        seconds = [per_image(sizes[n]) * n for n in (fewer, more)]
        print(f"each further image from {fewer:,} to {more:,}: {(seconds[1] - seconds[0]) / (more - fewer):.1f} us")
    return figures


def judge(what: str, reached: float, unit: str, goal: float, at_least: float) -> None:
    verdict = "goal reached" if reached <= goal else "enough" if reached <= at_least else "MISSED"
    print(f"{what}: {reached:g}{unit} (goal {goal:g}, at least {at_least:g}): {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], metavar="N")
    parser.add_argument("--scratch", type=Path, help="where to make files: a disk, or fsync costs nothing (default: the temporary folder)")
    parser.add_argument("--night", type=int, choices=(1, 2), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.night:
        drive = first_night if arguments.night == 1 else second_night
        phases = drive(arguments.scratch / "images", arguments.scratch / "output", arguments.sizes[0])
        print(json.dumps({name: dataclasses.asdict(phase) for name, phase in phases.items()}))
        return
    sizes = {}
    for count in sorted(set(arguments.sizes)):
        with tempfile.TemporaryDirectory(prefix="fer-ray-scale-", dir=arguments.scratch) as folder:
            sizes[count] = measure(count, Path(folder))
    print(f"{os.cpu_count()} CPUs, model {bundle.read_metadata(bundle.resolve(''))['model_version']}")
    report(sizes)


if __name__ == "__main__":
    main()
