"""Images are decoded for reports in a process beside the driver: one that ends, holds or fills it costs the pictures alone.

    python -m fer_ray.label.report.apart

reads a generator and its arguments on standard input, which its parent pickled, writes what comes out of it, and ends with its parent.
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar, cast

import psutil

from fer_ray.vision.sandbox import FIRST_TO_DIE

LOOK_SECONDS = 0.05  # between two looks at the time and the memory
MEMORY_BYTES = 2 << 30  # about 0.2 GB of it before the first image
_END = object()

Arguments = ParamSpec("Arguments")
Item = TypeVar("Item")


def run_apart(
    work: Callable[Arguments, Iterator[Item]], seconds: float, *arguments: Arguments.args, **named: Arguments.kwargs
) -> Iterator[Item]:
    """What `work` gives in a process of its own, as far as that comes in so many seconds and MEMORY_BYTES.

    Args:
        work: A function of a module.
        seconds: For all of it.
        arguments: Of the function; they are pickled.
        named: Likewise.
    """
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()
    deadline = time.monotonic() + seconds
    command = [sys.executable, "-m", "fer_ray.label.report.apart"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        threading.Thread(target=_listen, args=(process.stdout, items), daemon=True).start()
        try:
            stdin = cast("IO[bytes]", process.stdin)
            with suppress(BrokenPipeError):
                pickle.dump((work, arguments, named), stdin)
                stdin.flush()
            while _is_within(psutil.Process(process.pid), deadline):
                with suppress(queue.Empty):
                    if (item := items.get(timeout=LOOK_SECONDS)) is _END:
                        return
                    yield item
        finally:
            process.kill()


def _is_within(process: psutil.Process, deadline: float) -> bool:
    return time.monotonic() < deadline and process.memory_info().rss < MEMORY_BYTES


def _listen(stdout: IO[bytes], items: queue.SimpleQueue[Any]) -> None:
    with suppress(EOFError, pickle.UnpicklingError):  # it ended, perhaps in the middle of an item
        while True:
            items.put(pickle.load(stdout))  # noqa: S301 - from the process that this one started
    items.put(_END)


def _end_with(parent: IO[bytes]) -> None:
    parent.read()
    os._exit(1)


def _serve() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a codec prints is no answer
    with suppress(OSError):  # only Linux has it
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_DIE, encoding="ascii")
    work, arguments, named = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started this one
    threading.Thread(target=_end_with, args=(sys.stdin.buffer,), daemon=True).start()
    for item in work(*arguments, **named):
        pickle.dump(item, answers)
        answers.flush()
    os._exit(0)  # threads that read or wait for the parent have nothing to say any more


if __name__ == "__main__":
    _serve()
