"""Kills the labeling job at random moments until it is done, and compares its tables, row by row, with those of an undisturbed run.

Each round labels the same photographs, read from an S3-compatible store on loopback that counts what is fetched, into a
fresh folder. A round has one kind of kill, at a moment drawn from the printed seed; after the driver was killed the same
command is started again until it ends well.

    manifest    everything (as when a machine fails) while the manifest is written, before there is a plan
    driver      SIGKILL to the driver, while images are labeled
    machine     everything, while images are labeled
    commit      everything, at the moment a finished part is written
    publish     everything, while the tables are written
    run commit  everything, while the row in `runs` is written
    worker      SIGKILL to a Ray worker that labels; the run must survive
    node        removal of a node of a two-node Ray cluster; the run must survive

    .venv/bin/python benchmarks/faults.py [--images N] [--rounds R] [--kills K] [--seed S] [--kinds ...] [--one-round] [--submit]
        [--photos DIR]

With `--one-round` a single round has one kill of each kind, in the order given: each hits what the last one left. With `--submit` every
job goes through `ray job submit` to a cluster of a head that runs no work and two nodes: instead of everything, its driver on the head
is killed, and a node that was removed is replaced by another before the next round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import duckdb
import psutil
import pyarrow.parquet as pq
from label_throughput import ROOT, draw_photographs

sys.path.insert(0, str(ROOT / "tests" / "support"))
from heads import RAY, Head
from stores import FaultyProxy, S3Server

KINDS = ("manifest", "driver", "machine", "commit", "publish", "run commit", "worker", "node")
SURVIVED = ("worker", "node")
ROUND_SECONDS = 300
RUN_ID, RUN_DATE, BUCKET = "night", "2026-11-21", "archive"


class Job:
    """The labeling job with all the processes that it starts."""

    def __init__(self, endpoint: str, output: Path, environment: dict[str, str]) -> None:
        self.log = output.with_suffix(".log").open("ab")
        line = ["jobs/label.py", "--input", f"s3://{BUCKET}", "--output", str(output), "--s3-endpoint", endpoint]
        line += ["--run-id", RUN_ID, "--run-date", RUN_DATE, "--workers", "2"]
        line.append("--no-thumbnails")  # these are fetched again for the report
        self.process = self.start(line, environment)
        self.seen: dict[int, psutil.Process] = {}

    def start(self, line: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, *line], cwd=ROOT, env=os.environ | {"RAY_ADDRESS": "local"} | environment, stdout=self.log, stderr=self.log
        )

    def family(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            self.seen.update({child.pid: child for child in psutil.Process(self.process.pid).children(recursive=True)})
        return [process for process in self.seen.values() if process.is_running()]

    def kill_driver(self) -> None:
        """Its Ray processes notice and end; what has not ended after some seconds is killed."""
        self.family()
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(self.family(), timeout=10)
        for process in alive:
            process.kill()

    def kill_everything(self) -> None:
        """As when the machine fails: stop all processes first, so that none does more than another."""
        with suppress(psutil.NoSuchProcess):
            self.process.send_signal(19)
        family = self.family()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.kill()
        self.process.wait()
        psutil.wait_procs(family, timeout=10)

    def wait(self, seconds: float) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None


class SubmittedJob(Job):
    """The same through `ray job submit`, which waits for it; its processes are those of the cluster."""

    def __init__(self, head: Head, endpoint: str, output: Path) -> None:
        self.head = head
        super().__init__(endpoint, output, head.environment)

    def start(self, line: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        command = [RAY, "job", "submit", "--working-dir", ".", "--", "python", *line]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=self.log, stderr=self.log)

    def family(self) -> list[psutil.Process]:
        found = []
        for pid in self.head.processes():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    def kill_driver(self) -> None:
        self.head.kill_driver("label")
        self.process.wait(ROUND_SECONDS)

    def kill_everything(self) -> None:
        self.kill_driver()


def moment(to_come: Sequence[str], output: Path, images: int, generator: random.Random) -> Callable[[], bool]:
    """Whether the moment for the first of these kinds of kill has come."""
    if not to_come:
        return lambda: False
    manifest, staging, tables = output / "_manifest" / RUN_ID, output / "_staging" / RUN_ID, output / "images"
    share = generator.uniform(0.02, 0.9)

    def labeled() -> int:
        """The first row of the last part that is finished."""
        return max((int(file.stem) for file in staging.glob("*/[0-9]*.parquet")), default=0)

    enough = max(1, round(share * images) - 64)  # the first parts have 64 images
    return {
        "manifest": lambda: any(manifest.glob("*/_writing-*")) and not (manifest / "plan.json").exists(),
        "commit": lambda: labeled() >= enough // 2 and any(staging.glob("*/_writing-*")),
        "publish": lambda: any(tables.glob("*/_writing-*")),
        "run commit": lambda: any((output / "runs").glob("_writing-*")),
    }.get(to_come[0], lambda: labeled() >= enough)


def staged_images(output: Path) -> set[str]:
    """The images that are finished: their part is staged (and the plan that it belongs to is there)."""
    plan = output / "_manifest" / RUN_ID / "plan.json"
    if not plan.exists():
        return set()
    files = (output / "_staging" / RUN_ID / json.loads(plan.read_text())["attempt"]).glob("[0-9]*.parquet")
    return {uri for file in files for uri in pq.read_table(file, columns=["image_uri"])["image_uri"].to_pylist()}


def fetches(proxy: FaultyProxy) -> Counter[str]:
    return Counter(proxy.fetched)


def run_round(
    kinds: Sequence[str], output: Path, proxy: FaultyProxy, images: int, generator: random.Random, head: Head | None
) -> tuple[Counter[str], Counter[str]]:
    """One run with these kills, one after the other; gives those that came about and what the run did."""
    killed, figures = Counter(dict.fromkeys(kinds, 0)), Counter[str]()
    before, to_come = fetches(proxy), list(kinds)
    with submitted(head, proxy) if head else nodes("node" in kinds, proxy) as (start_job, remove_node):
        exit_code = None
        while exit_code != 0:
            at_start, done = fetches(proxy), staged_images(output)
            job = start_job(output)
            figures["starts"] += 1
            deadline = time.monotonic() + ROUND_SECONDS
            come, ended = moment(to_come, output, images, generator), False
            while (exit_code := job.wait(0.001)) is None:
                if time.monotonic() > deadline:
                    job.kill_everything()
                    sys.exit(f"round {kinds}: the job hangs, see {job.log.name}")
                if not ended and come() and kill(to_come[0], job, remove_node):
                    ended = to_come[0] not in SURVIVED
                    killed[to_come.pop(0)] += 1
                    come = moment(to_come, output, images, generator)
            job.log.close()
            figures["finished_again"] += sum(n for path, n in (fetches(proxy) - at_start).items() if path in {path_of(uri) for uri in done})
            if exit_code != 0 and not ended:
                sys.exit(f"round {kinds}: the job failed by itself with exit code {exit_code}, see {job.log.name}")
    figures["kills"] = killed.total()
    figures["fetched_again"] = sum(n - 1 for n in (fetches(proxy) - before).values() if n > 1)
    return killed, figures


def path_of(uri: str) -> str:
    return "/" + quote(uri.removeprefix("s3://"))


def kill(kind: str, job: Job, remove_node: Callable[[], None]) -> bool:
    if kind == "node":
        remove_node()
    elif kind == "worker":
        workers = [process for process in job.family() if "LabelParts" in command_of(process)]
        if not workers:
            return False
        workers[0].kill()
    elif kind == "driver":
        job.kill_driver()
    else:
        job.kill_everything()
    return True


def command_of(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):  # or a zombie
        return " ".join(process.cmdline())
    return ""


Cluster = tuple[Callable[[Path], Job], Callable[[], None]]  # how a job is started in it, and a node removed


@contextmanager
def nodes(two: bool, proxy: FaultyProxy) -> Iterator[Cluster]:
    """A Ray cluster of two nodes, of which one can be removed; otherwise the job starts its own."""
    if not two:
        yield lambda output: Job(proxy.endpoint, output, {}), lambda: None
        return
    from ray import cluster_utils

    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        second, environment = cluster.add_node(num_cpus=2), {"RAY_ADDRESS": cluster.address}
        yield lambda output: Job(proxy.endpoint, output, environment), lambda: cluster.remove_node(second, allow_graceful=False)
    finally:
        cluster.shutdown()


@contextmanager
def submitted(head: Head, proxy: FaultyProxy) -> Iterator[Cluster]:
    while len(head.nodes) < 2:
        head.add_node()
    yield lambda output: SubmittedJob(head, proxy.endpoint, output), lambda: head.kill(head.nodes[0])


def differences(reference: Path, output: Path) -> int:
    """Rows of both tables that one output has and the other has not, each row as often as it is there."""
    total = 0
    for table, own in (("images", "run_id, labeled_at"), ("faces", "run_id, labeled_at")):
        sides = [f"SELECT * EXCLUDE ({own}) FROM read_parquet('{folder}/{table}/*/*.parquet')" for folder in (reference, output)]
        for left, right in (sides, sides[::-1]):
            total += duckdb.sql(f"SELECT count(*) FROM ({left} EXCEPT ALL {right})").fetchall()[0][0]
    return total


def upload(server: S3Server, photographs: list[Path], images: int) -> None:
    client = server.client()
    client.create_bucket(Bucket=BUCKET)
    for number, photograph in zip(range(images), itertools.cycle(photographs), strict=False):
        client.put_object(Bucket=BUCKET, Key=f"{number:06d}{photograph.suffix}", Body=photograph.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--kills", type=int, default=3, help="kills of a round, one a start")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--one-round", action="store_true")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--submit", action="store_true", help="through ray job submit, on a head and two nodes")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    generator = random.Random(seed)
    server = S3Server()
    os.environ.update(server.environment)
    proxy = FaultyProxy(server.endpoint)
    head = Head(environment=dict(server.environment)) if arguments.submit else None
    try:
        if head:
            head.start()
        with tempfile.TemporaryDirectory() as scratch:
            photographs = sorted(arguments.photos.rglob("*.jpg")) if arguments.photos else draw_photographs(Path(scratch, "photos"), False)
            upload(server, photographs, arguments.images)
            report(list(rounds(arguments, Path(scratch), proxy, generator, head)), arguments.images)
    finally:
        if head:
            head.stop()
        proxy.stop()
        server.stop()


def rounds(
    arguments: argparse.Namespace, scratch: Path, proxy: FaultyProxy, generator: random.Random, head: Head | None
) -> Iterator[tuple[Counter[str], Counter[str]]]:
    reference = scratch / "undisturbed"
    if Job(proxy.endpoint, reference, {"RAY_ADDRESS": ""}).wait(ROUND_SECONDS) != 0:  # without Ray: so the rows of both ways are compared
        sys.exit(f"the undisturbed run failed, see {reference}.log: {reference.with_suffix('.log').read_text()[-2000:]}")
    of_one_kind = itertools.islice(itertools.cycle(arguments.kinds), arguments.rounds)
    plans = [arguments.kinds] if arguments.one_round else [[kind] * (1 if kind in SURVIVED else arguments.kills) for kind in of_one_kind]
    for number, kinds in enumerate(plans):
        output = scratch / f"round{number}"
        killed, figures = run_round(kinds, output, proxy, arguments.images, generator, head)
        figures["rows_lost_or_doubled"] = differences(reference, output)
        figures["left_over"] = sum(1 for name in ("_manifest", "_staging") for file in (output / name).rglob("*") if file.is_file())
        print(f"round {number + 1} {dict(killed)}: {json.dumps(figures)}", flush=True)
        yield killed, figures


def report(results: list[tuple[Counter[str], Counter[str]]], images: int) -> None:
    killed, total = Counter[str](), Counter[str]()
    for kills, figures in results:
        killed.update(kills)
        total.update(figures)
    missed = [kind for kind, n in killed.items() if not n]
    print(f"kills: {dict(killed)}")
    print(f"rows lost or doubled: {total['rows_lost_or_doubled']}")
    print(f"finished images fetched again: {total['finished_again'] / (images * len(results)):.2%}")
    per_kill = total["fetched_again"] / max(1, total["kills"])
    print(f"unfinished images fetched again, as they were under way: {per_kill:.1f} a kill, {per_kill / images:.2%} of the run")
    print(json.dumps({**total, "rounds": len(results), "never_killed": missed}))
    if total["rows_lost_or_doubled"] or total["left_over"] or missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
