"""A few images, labeled in processes beside this one: on one machine Ray would cost more than it gives.

    python -m fer_ray.label.local

reads the work on standard input, which its parent pickled, tells what it has done in lines of JSON, and ends with its parent. When one
dies, of an image that ends its decoder for example, another takes the rest of its parts, and knows which of them was begun.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from fer_ray.errors import FerRayError, StorageError
from fer_ray.label.parts import PartWorker, count, make_part_labeler
from fer_ray.label.plan import Part, Plan, unfinished
from fer_ray.label.result import LabeledImage
from fer_ray.label.run import Run
from fer_ray.memory import free_bytes

FEW_IMAGES = 32_000  # 40 s of portraits or four minutes of photographs on two CPUs; Ray's own processes take 15 s of these
MAX_STARTS = 4  # of a part: one that ends so many processes is left to Ray
MAX_PROCESSES = 16
BYTES_PER_PROCESS = 700 << 20  # 0.35 GB, and as much again for the large ones among its images


def are_few(run: Run, images: int, few: int = FEW_IMAGES) -> bool:
    """Whether so many images are labeled sooner without Ray: they are few, and nobody started Ray, named a cluster or asked for GPUs."""
    ray = sys.modules.get("ray")
    asked = run.config.gpus or os.environ.get("RAY_ADDRESS") or (ray and ray.is_initialized())
    return not asked and images <= few


def label_few(
    run: Run,
    plan: Plan,
    parts: Sequence[Part],
    report_progress: Callable[[Counter[str], int], None],
    make: Callable[[Run, Plan], PartWorker] = make_part_labeler,
) -> float:
    """Label and stage the parts in processes of their own, as far as they get.

    Args:
        run: What is labeled, how, and where to.
        plan: The plan of the run.
        parts: Those of its parts that are not finished.
        report_progress: Called with the counts so far (images, faces, failed) and the number of images.
        make: What makes the labeler of a process.

    Returns:
        The seconds that labeling took, start-up left out.

    Raises:
        StorageError: a store cannot be used, or the model changed since the run was planned.
    """
    counts: Counter[str] = Counter()
    begun: Counter[int] = Counter()  # how often each part was, by its first row
    images, first, last = sum(part.images for part in parts), 0.0, 0.0
    processes = max(1, min(run.config.workers or MAX_PROCESSES, MAX_PROCESSES, _cpus(), free_bytes() // BYTES_PER_PROCESS, len(parts)))
    waiting, running = _shares(parts, processes), 0
    told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    with ExitStack() as started:
        while waiting or running:
            while waiting and running < processes:
                started.enter_context(_process((run, plan, waiting.pop(), begun, make), told))
                running += 1
            values = told.get()
            if "ended_with" in values:
                running -= 1
                rest = unfinished(run, plan, values["ended_with"])
                if rest and 0 < begun[rest[0].first_row] < MAX_STARTS:  # it had come to this part, in their order
                    waiting.append(rest)
                if values["code"] == -signal.SIGKILL:  # so the system ends processes where memory is short: fewer go on
                    processes = max(1, processes - 1)
                continue
            if "begun" in values:
                begun[values["begun"]] += 1
                continue
            last = time.monotonic()
            if reason := values.get("failed_because"):
                raise StorageError(reason)
            first = first or last
            counts.update(values)
            report_progress(counts, images)
    return last - first


def _cpus() -> int:
    """The CPUs that this process may use; a container often has fewer than its machine."""
    cpus = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):  # another kind of container, or no limit
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cpus = min(cpus, max(1, int(quota) // int(period)))
    return cpus


def _shares(parts: Sequence[Part], count: int) -> list[list[Part]]:
    """The parts divided so that each share has about as many images, in the order of their rows."""
    shares: list[list[Part]] = [[] for _ in range(count)]
    for part in sorted(parts, key=lambda part: -part.images):
        min(shares, key=lambda share: sum(one.images for one in share)).append(part)
    return [sorted(share, key=lambda part: part.first_row) for share in shares]


@contextmanager
def _process(work: tuple[Run, Plan, Sequence[Part], Counter[int], Any], told: queue.SimpleQueue[dict[str, Any]]) -> Iterator[None]:
    """A process that does the work while the context lasts; what it tells goes into the queue, and its parts when it ended."""
    command = [sys.executable, "-m", "fer_ray.label.local"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        threading.Thread(target=_listen, args=(process, work[2], told), daemon=True).start()
        try:
            with suppress(BrokenPipeError):  # it may have died before it has read its work
                pickle.dump(work, cast("IO[bytes]", process.stdin))
                cast("IO[bytes]", process.stdin).flush()
            yield
        finally:
            process.kill()


def _listen(process: subprocess.Popen[bytes], parts: Sequence[Part], told: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in cast("IO[bytes]", process.stdout):
        told.put(json.loads(line))
    told.put({"ended_with": parts, "code": process.wait()})


class _Lines:
    """Tells the parent what this process does."""

    def __init__(self, stream: IO[str], begun: Counter[int]) -> None:
        self._stream, self._begun = stream, begun

    def ready(self) -> None:
        self._tell({})

    def start(self, part: Part) -> int:
        self._tell({"begun": part.first_row})
        return self._begun[part.first_row] + 1

    def add(self, images: Sequence[LabeledImage], stage_seconds: Mapping[str, float]) -> None:
        self._tell(count(images))

    def _tell(self, values: dict[str, Any]) -> None:
        self._stream.write(json.dumps(values) + "\n")
        self._stream.flush()

    def fail(self, reason: str) -> None:
        self._tell({"failed_because": reason})


def _end_with(parent: IO[bytes]) -> None:
    parent.read()
    os._exit(1)


def _serve() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a codec prints is no answer
    run, plan, parts, begun, make = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started this one
    lines = _Lines(answers, begun)
    threading.Thread(target=_end_with, args=(sys.stdin.buffer,), daemon=True).start()
    try:
        make(run, plan).label(parts, lines)
    except (FerRayError, OSError) as error:
        lines.fail(str(error))
    os._exit(0)  # threads that fetch or wait for the parent have nothing to say any more


if __name__ == "__main__":
    _serve()
