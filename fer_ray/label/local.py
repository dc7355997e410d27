"""A few images, labeled in one process beside this one: Ray takes longer to start than they take to label.

    python -m fer_ray.label.local

reads the work on standard input, which its parent pickled, tells what it has done in lines of JSON, and ends with its parent. When it
dies, of an image that ends its decoder for example, its parent leaves the rest to Ray.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, cast

from fer_ray.errors import FerRayError, StorageError
from fer_ray.label.parts import FetchingLabeler, PartLabeler, count
from fer_ray.label.plan import Part, Plan
from fer_ray.label.result import LabeledImage
from fer_ray.label.run import Run

FEW_IMAGES = 200  # two seconds of work where each has several megapixels; Ray takes about five to start


def are_few(run: Run, parts: Sequence[Part]) -> bool:
    """Whether these parts are labeled sooner without Ray: they are few, and nobody has started Ray or asked for workers or GPUs."""
    ray = sys.modules.get("ray")
    asked = run.config.workers or run.config.gpus or os.environ.get("RAY_ADDRESS") or (ray and ray.is_initialized())
    return not asked and sum(part.rows for part in parts) <= FEW_IMAGES


def label_few(run: Run, plan: Plan, parts: Sequence[Part], report_progress: Callable[[Counter[str], int], None]) -> float:
    """Label and stage the parts in a process of its own, as far as it gets.

    Args:
        run: What is labeled, how, and where to.
        plan: The plan of the run.
        parts: Those of its parts that are not finished.
        report_progress: Called with the counts so far (images, faces, failed) and the number of images.

    Returns:
        The seconds that labeling took, start-up left out.

    Raises:
        StorageError: a store cannot be used, or the model changed since the run was planned.
    """
    counts: Counter[str] = Counter()
    images, first, last = sum(part.rows for part in parts), 0.0, 0.0
    command = [sys.executable, "-m", "fer_ray.label.local"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            stdin = cast("IO[bytes]", process.stdin)
            pickle.dump((run, plan, list(parts)), stdin)
            stdin.flush()
            for line in cast("IO[bytes]", process.stdout):
                told, last = json.loads(line), time.monotonic()
                if reason := told.get("failed_because"):
                    raise StorageError(reason)
                first = first or last
                counts.update(told)
                report_progress(counts, images)
        except BrokenPipeError:
            pass  # it died before it had read its work
        finally:
            process.kill()
    return last - first


class _Lines:
    """Tells the parent what this process does."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def ready(self) -> None:
        self._tell({})

    def start(self, part: Part) -> int:
        return 1

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
    lines = _Lines(os.fdopen(os.dup(sys.stdout.fileno()), "w"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a codec prints is no answer
    run, plan, parts = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started this one
    threading.Thread(target=_end_with, args=(sys.stdin.buffer,), daemon=True).start()
    try:
        PartLabeler(run, plan, FetchingLabeler(run)).label(parts, lines)
    except (FerRayError, OSError) as error:
        lines.fail(str(error))
    os._exit(0)  # threads that fetch or wait for the parent have nothing to say any more


if __name__ == "__main__":
    _serve()
