"""What more CPUs bring to the labeling job: two of this machine against one, and up to 32 simulated nodes against one.

    .venv/bin/python benchmarks/scaling.py [--part cpus nodes gpu] [--scratch DIR]
        [--photos DIR] [--images 4000] [--rounds 3]
        [--nodes 1 2 4 8 16 32] [--images-per-node 16384] [--seconds-per-image 0.0114]

cpus: jobs/label.py over the same photographs with one worker and with two, in rounds in turn (1 2 1 2 ...), bound with Ray's
own processes to as many cores as there are workers. `with start-up` is that of the whole command, in which the labeling processes
load their libraries first; the other goes from the first part that is finished to the last, so that a second worker that
comes late counts. Without --photos, the demo photographs are cut to 250 x 250 pixels and to two megapixels, in turn.

nodes: clusters of Ray's `cluster_utils`, a head that runs no work and nodes of one CPU, each size in processes of its own.
The labeler is a wait of the measured length that holds the CPU of its node: two labelers on one node take turns. All else is
the job's: the processes, their tasks, the parts, the manifest, progress, staging. Each node has the same number of images.
The labelers wait for each other before the first task, and time runs from that moment until the step returns: how fast 32
processes start on this machine says nothing of 32 machines, but nodes without work while the last parts are labeled do
count. `middle` leaves both ends out: it is the rate from the first to the last tenth of the images. All nodes share the cores
of this machine. `cores busy`, by the engine and Ray on every node, has to stay well below their number: otherwise it is the
machine that is measured, and the engine is better than that.

gpu: what it costs to ask the process of a GPU instead of one's own model: 64 crops a time, by two labeling processes at once, to a
process that answers without calculating, so that Ray is all that is measured; and the arithmetic that the bundled model would ask of a
GPU at that rate. Where there is a GPU, then the same of the process that holds the model there.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import fcntl
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from gpu_asking import ask_gpus
from label_throughput import draw_photographs, link_images
from scale import FIRST_NIGHT, ROOT, NoLabeler, check, make_images, named_run, ray_apart

from fer_ray.label.incremental import Counts, find_due
from fer_ray.label.plan import Part, Plan, read_parts, staged_file, write_plan
from fer_ray.label.result import LabeledImage
from fer_ray.label.run import Run
from fer_ray.schema import ImageEntry

CPUS, NODES, GPU = "cpus", "nodes", "gpu"
GOAL_CPUS, GOAL_NODES = (1.9, 1.7), (0.95, 0.85)
START_SECONDS, POLL_SECONDS = 900.0, 0.05
NODE = {"object_store_memory": 512 << 20}  # taken only when used; a small one would make Ray Data hold tasks back
QUIET = {"REPORTER_UPDATE_INTERVAL_MS": "3600000"}  # every node's agent gathers statistics of its machine, which is one machine here


@dataclass
class JobRates:
    """Images per second of one run of the job."""

    labeling: float
    with_start_up: float


@dataclass
class ClusterRun:
    """One labeling step: `seconds` from the moment when all labelers were there; CPU is that of all processes since then."""

    nodes: int
    nodes_used: int
    images: int
    parts: int
    start_seconds: float
    seconds: float
    images_per_second: float
    middle_images_per_second: float
    cpu_us_per_image: float
    cores_busy: float


def compare_cpus(arguments: argparse.Namespace, scratch: Path) -> dict[str, object]:
    photographs = sorted(p for p in arguments.photos.rglob("*") if p.is_file()) if arguments.photos else draw_both_sizes(scratch)
    images = link_images(scratch / "images", photographs, arguments.images)
    runs: dict[int, list[JobRates]] = {1: [], 2: []}
    for number in range(1, arguments.rounds + 1):
        for cpus, measured in runs.items():
            rates = job_rates(images, scratch / f"output-{number}-{cpus}", cpus, arguments.images)
            measured.append(rates)
            print(f"round {number}, CPUs {cpus}: {rates.labeling:.1f} images/s, {rates.with_start_up:.1f} with start-up", flush=True)
    figures: dict[str, object] = {f"{cpus}_cpus": [dataclasses.asdict(rates) for rates in measured] for cpus, measured in runs.items()}
    for name, said in (("labeling", ""), ("with_start_up", ", with start-up")):
        ratios = [getattr(two, name) / getattr(one, name) for one, two in zip(runs[1], runs[2], strict=True)]
        print(f"two CPUs against one{said}, by round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
        figures[f"ratio_{name}"] = judge(f"two CPUs against one{said}", float(np.median(ratios)), *GOAL_CPUS)
    return figures


def draw_both_sizes(scratch: Path) -> list[Path]:
    """Small and large photographs in turn, so that every part has its share of both."""
    sizes = draw_photographs(scratch / "small", False), draw_photographs(scratch / "large", True)
    return list(itertools.chain.from_iterable(zip(*sizes, strict=True)))


def job_rates(images: Path, output: Path, cpus: int, count: int) -> JobRates:
    """Run the job on so many cores. Ray counts the machine's cores whatever it is bound to, so the job is told its workers."""
    command = [sys.executable, "jobs/label.py", "--input", str(images), "--output", str(output), "--workers", str(cpus), "--no-thumbnails"]
    bind = functools.partial(os.sched_setaffinity, 0, sorted(os.sched_getaffinity(0))[:cpus])
    with ray_apart() as environment:
        started = time.monotonic()
        job = subprocess.run(command, cwd=ROOT, env=environment, preexec_fn=bind, capture_output=True, text=True, check=False)
    elapsed = time.monotonic() - started
    check(job.returncode == 0, f"the job failed:\n{job.stderr}")
    summary = json.loads(job.stdout.splitlines()[-1])
    check(summary["images_total"] == count, f"not every image was labeled: {summary}")
    finished = pq.read_table(output / "images", columns=["labeled_at"])["labeled_at"]  # for all of a part: when it was finished
    seconds = finished.cast(pa.int64()).to_numpy() / 1e6
    return JobRates(float(np.sum(seconds > seconds.min()) / np.ptp(seconds)), count / elapsed)


def compare_nodes(arguments: argparse.Namespace, scratch: Path) -> dict[str, object]:
    runs = []
    for nodes in sorted(set(arguments.nodes)):
        with tempfile.TemporaryDirectory(prefix=f"nodes-{nodes}-", dir=scratch) as folder:
            runs.append(driven(nodes, arguments, Path(folder)))
        print_run(runs[-1], runs[0], arguments.seconds_per_image)
    figures: dict[str, object] = {"runs": [dataclasses.asdict(run) for run in runs]}
    if runs[0].nodes == 1 and len(runs) > 1:
        reached = efficiency(runs[-1], runs[0])
        figures["efficiency"] = judge(f"engine efficiency at {runs[-1].nodes} nodes against 1", reached, *GOAL_NODES)
    return figures


def driven(nodes: int, arguments: argparse.Namespace, folder: Path) -> ClusterRun:
    """One size in a fresh process."""
    command = [sys.executable, __file__, "--drive", str(nodes), "--scratch", str(folder)]
    command += ["--images-per-node", str(arguments.images_per_node), "--seconds-per-image", str(arguments.seconds_per_image)]
    with ray_apart() as environment:
        driver = subprocess.run(command, env=environment | QUIET, stdout=subprocess.PIPE, text=True, check=False)
    check(driver.returncode == 0, f"the labeling on {nodes} nodes failed")
    return ClusterRun(**json.loads(driver.stdout.splitlines()[-1]))


def drive(nodes: int, images_per_node: int, seconds_per_image: float, folder: Path) -> ClusterRun:
    make_images(folder / "images", nodes * images_per_node)
    run = named_run(folder / "images", folder / "output", FIRST_NIGHT)
    counts = Counts()
    plan = write_plan(run, find_due(run, counts), counts, datetime.datetime.now(datetime.UTC))
    parts = read_parts(run, plan)
    start = Start(folder / "start", nodes)
    labeler = functools.partial(WaitingLabeler, start=start, seconds_per_image=seconds_per_image)
    with cluster_of(nodes):
        from fer_ray.label.pipeline import label_to_staging

        meter, called = Meter(start), time.time()
        label_to_staging(run, plan, parts, meter.read, make_labeler=labeler)
        seconds = time.time() - meter.started
    return ClusterRun(
        nodes,
        start.nodes_used(),
        plan.images,
        len(parts),
        round(meter.started - called, 1),
        round(seconds, 2),
        round(plan.images / seconds, 2),
        round(middle_rate(run, plan, parts), 2),
        round(1e6 * meter.cpu_per_image, 1),
        round(meter.cpu_per_image * plan.images / seconds, 2),
    )


@contextmanager
def cluster_of(nodes: int) -> Iterator[None]:
    """Join a cluster of so many nodes with one CPU and a head with none."""
    import ray
    from ray.cluster_utils import Cluster

    from fer_ray.cluster import cluster_cpus, connect

    head = {"num_cpus": 0, "include_dashboard": False, "no_monitor": True, **NODE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, **NODE)
        os.environ["RAY_ADDRESS"] = cluster.address
        connect()
        check(cluster_cpus() == nodes, f"the cluster has {cluster_cpus()} CPUs, not {nodes}")
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


class Start:
    """A folder where the labelers of a cluster meet, so that all of them start at one moment."""

    def __init__(self, folder: Path, labelers: int) -> None:
        self.folder, self.labelers = folder, labelers
        folder.mkdir()

    def wait(self) -> None:
        """Of a labeler: wait until all are there and the driver gives the word.

        Raises:
            TimeoutError: some did not come.
        """
        (self.folder / f"{os.getpid()}.ready").touch()
        self._wait_for("go", 1)

    def give(self) -> float:
        """Of the driver: let them start when all are there; gives the time."""
        self._wait_for("*.ready", self.labelers)
        (self.folder / "go").touch()
        return time.time()

    def _wait_for(self, files: str, count: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while sum(1 for _ in self.folder.glob(files)) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"The start of {self.labelers} labelers took more than {START_SECONDS:g} s.")
            time.sleep(POLL_SECONDS)

    @contextmanager
    def cpu(self, node: str) -> Iterator[None]:
        """Hold the one CPU of a node."""
        with (self.folder / f"{node}.cpu").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def nodes_used(self) -> int:
        return sum(1 for _ in self.folder.glob("*.cpu"))


class WaitingLabeler(NoLabeler):
    """Answers when labeling would be done, after waiting on the CPU of its node."""

    def __init__(self, run: Run, start: Start, seconds_per_image: float) -> None:
        import ray

        super().__init__(run)
        self.start, self.seconds_per_image = start, seconds_per_image
        self.node = ray.get_runtime_context().get_node_id()
        start.wait()

    def label_batches(
        self, entries: Sequence[ImageEntry], starts: int, following: Sequence[ImageEntry] = ()
    ) -> Iterator[list[LabeledImage]]:
        for images in super().label_batches(entries, starts, following):
            with self.start.cpu(self.node):
                time.sleep(len(images) * self.seconds_per_image)
            yield images


class Meter:
    """Gives the word to start, and follows the CPU time of this process and all that it started from then on."""

    def __init__(self, start: Start) -> None:
        self.seen: dict[psutil.Process, float] = {}
        self.started, self.before, self.cpu_per_image = 0.0, 0.0, 0.0
        threading.Thread(target=self._begin, args=(start,), daemon=True).start()

    def _begin(self, start: Start) -> None:
        started = start.give()
        self.before = self._cpu_seconds()
        self.started = started

    def read(self, counts: Counter[str], images: int) -> None:
        if self.started and counts["images"]:
            self.cpu_per_image = (self._cpu_seconds() - self.before) / counts["images"]

    def _cpu_seconds(self) -> float:
        driver = psutil.Process()
        for process in (driver, *driver.children(recursive=True)):
            with suppress(psutil.Error):
                times = process.cpu_times()
                self.seen[process] = times.user + times.system
        return sum(self.seen.values())


def middle_rate(run: Run, plan: Plan, parts: Sequence[Part]) -> float:
    """Images per second between the moments when a tenth of them was finished and when a tenth was left."""
    finished = sorted((Path(staged_file(run, plan, part)).stat().st_mtime, part.rows) for part in parts)
    times, done = np.array([time for time, _ in finished]), np.cumsum([rows for _, rows in finished])
    first, last = np.searchsorted(done, [0.1 * done[-1], 0.9 * done[-1]])
    return float((done[last] - done[first]) / (times[last] - times[first]))


def efficiency(run: ClusterRun, one: ClusterRun) -> float:
    return run.images_per_second * one.nodes / (one.images_per_second * run.nodes)


def print_run(run: ClusterRun, one: ClusterRun, seconds_per_image: float) -> None:
    ideal, share = run.nodes / seconds_per_image, run.cpu_us_per_image / 1e6 / seconds_per_image
    print(f"nodes {run.nodes} ({run.nodes_used} used): {run.images:,} images, {run.parts:,} parts, in {run.seconds:.1f} s")
    print(
        f"  {run.images_per_second:.1f} images/s, {run.images_per_second / ideal:.3f} of the pure wait"
        f" (middle {run.middle_images_per_second / ideal:.3f}), {efficiency(run, one):.3f} of {one.nodes} node(s)"
    )
    cpu = f"  engine and Ray {run.cpu_us_per_image:.0f} CPU us/image ({share:.1%} of the wait), cores busy {run.cores_busy:.2f}"
    print(f"{cpu}; starting the labelers took {run.start_seconds:.1f} s", flush=True)


def judge(what: str, reached: float, goal: float, at_least: float) -> float:
    """As in scale.py, but higher is better; gives the rounded figure."""
    reached = round(reached, 3)
    verdict = "goal reached" if reached >= goal else "enough" if reached >= at_least else "MISSED"
    print(f"{what}: {reached:g} (goal {goal:g}, at least {at_least:g}): {verdict}", flush=True)
    return reached


PARTS = {CPUS: compare_cpus, NODES: compare_nodes, GPU: ask_gpus}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=tuple(PARTS), default=list(PARTS))
    parser.add_argument("--photos", type=Path, help="photographs for the job (default: made from the demo photographs)")
    parser.add_argument("--images", type=int, default=4000, help="images of one run of the job (default: 4000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], metavar="N")
    parser.add_argument("--images-per-node", type=int, default=16_384, metavar="N")
    parser.add_argument("--seconds-per-image", type=float, default=0.0114, metavar="S", help="of the labeler on one CPU (default: 0.0114)")
    parser.add_argument("--scratch", type=Path, help="where to make files (default: the temporary folder)")
    parser.add_argument("--drive", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        run = drive(arguments.drive, arguments.images_per_node, arguments.seconds_per_image, arguments.scratch)
        print(json.dumps(dataclasses.asdict(run)))
        return
    figures: dict[str, object] = {"cores": len(os.sched_getaffinity(0))}
    for part in arguments.part:
        with tempfile.TemporaryDirectory(prefix="fer-ray-scaling-", dir=arguments.scratch) as scratch:
            figures[part] = PARTS[part](arguments, Path(scratch))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
