"""Which images end, hold or fill the process that looks at them: each is tried alone in a process of its own, within limits.

    python -m fer_ray.vision.sandbox <settings as JSON>

loads what it needs, and forks for every image that it reads on standard input, so that each finds a sound process. Before the image come
its length and its limits of seconds and bytes, eight bytes each; the answer is one byte.
"""

from __future__ import annotations

import dataclasses
import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import psutil

from fer_ray.config.jobs.label import LabelingOptions
from fer_ray.errors import FerRayError, ImageError
from fer_ray.schema import Status

SLOW_SECONDS = 5.0  # what is decoded sooner is no burden: a sound image of 100 megapixels takes two
SECONDS_TO_START = 600.0  # for the sandbox itself, on a machine that is busy
CLOCK_SHARE = 2.0  # seconds by the clock for one of CPU time: on a machine that is busy a sound image takes as long
GRACE_SECONDS = 10.0  # beyond an image's own: then the sandbox itself hangs, and is ended
LOOK_SECONDS = 0.02  # between two looks at the memory of an image: it grows by some 100 MB meanwhile
FIRST_TO_DIE = "1000"  # in Linux's words: where memory runs out, this process is ended before any other

SURVIVED, DIED, SLOW, LARGE = b".", b"d", b"s", b"l"
_HEADER = struct.Struct("!QdQ")


@dataclass
class TimeBudget:
    """Seconds for each of many images, and for all that are slow together: once these are used up, each gets less."""

    each: float
    together: float
    least: float

    def seconds(self) -> float:
        """For the next image: a quarter of what is left is always kept for others."""
        return max(self.least, min(self.each, self.together / 4))

    def spend(self, seconds: float) -> None:
        """Say how long an image took."""
        if seconds >= min(SLOW_SECONDS, self.seconds()):
            self.together -= seconds


@dataclass
class SandboxLimits:
    """What an image may take in the sandbox. Where a try within them did not help, `smaller` ones may.

    An image that takes more than `is_final` limits is undecodable; where others left it less, it is due again in the next run.
    """

    seconds: float = 40.0  # of CPU time
    seconds_together: float = 200.0  # of the slow images of a part
    least_seconds: float = 0.5
    memory_bytes: int = 2 << 30  # of the process, about 0.2 GB of it before the image
    is_final: bool = True

    def smaller(self, times: int) -> SandboxLimits:
        """The same, halved so many times; a portrait still has room."""
        seconds, memory_bytes = max(self.seconds / 2**times, 2.0), max(self.memory_bytes >> times, 1 << 29)
        return dataclasses.replace(self, seconds=seconds, memory_bytes=memory_bytes, is_final=self.is_final and not times)


def sift(images: Iterable[bytes | ImageError], config: LabelingOptions, limits: SandboxLimits) -> Iterator[bytes | ImageError]:
    """Each image that can be decoded and searched for faces within the limits, and an ImageError in place of any other.

    Raises:
        FerRayError: the sandbox does not start.
    """
    process: subprocess.Popen[bytes] | None = None
    budget = TimeBudget(limits.seconds, limits.seconds_together, limits.least_seconds)
    try:
        for image in images:
            if isinstance(image, ImageError):
                yield image
                continue
            if process is None:
                process = _start(config)
            started, seconds = time.monotonic(), budget.seconds()
            answer = _try(process, image, seconds, limits.memory_bytes)
            budget.spend(time.monotonic() - started)
            if answer not in (SURVIVED, DIED, SLOW, LARGE):
                _end(process)
                process = None
            yield image if answer == SURVIVED else _error(answer, seconds, limits)
    finally:
        if process is not None:
            _end(process)


def _error(answer: bytes, seconds: float, limits: SandboxLimits) -> ImageError:
    if answer == LARGE:
        reason = f"takes more than {limits.memory_bytes / 1e9:.1f} GB of memory to decode"
    elif answer == SLOW:
        reason = f"takes more than {seconds:.2g} s to decode"
    else:
        return ImageError(Status.UNDECODABLE, "The image ended the process that decoded it.")
    if limits.is_final and (answer == LARGE or seconds >= SLOW_SECONDS):
        return ImageError(Status.UNDECODABLE, f"The image {reason}.")
    return ImageError(Status.UNREADABLE, f"The image {reason}, and there was no more beside the others: the next run tries it again.")


def _start(config: LabelingOptions) -> subprocess.Popen[bytes]:
    settings = json.dumps(dataclasses.asdict(config))
    command = [sys.executable, "-m", "fer_ray.vision.sandbox", settings]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if _answer(process, SECONDS_TO_START) != SURVIVED:
        _end(process)
        raise FerRayError("The sandbox process does not start: see whether python -m fer_ray.vision.sandbox '{}' runs.")
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # what the process did not take of an image
            cast("IO[bytes]", pipe).close()
    process.wait()


def _try(process: subprocess.Popen[bytes], image: bytes, seconds: float, memory_bytes: int) -> bytes:
    try:
        stdin = cast("IO[bytes]", process.stdin)
        stdin.write(_HEADER.pack(len(image), seconds, memory_bytes) + image)
        stdin.flush()
    except OSError:
        return b""
    return _answer(process, CLOCK_SHARE * seconds + GRACE_SECONDS)


def _answer(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    stdout = cast("IO[bytes]", process.stdout)
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        return stdout.read(1) if selector.select(seconds) else b""


def _serve(settings: str, images: IO[bytes], answers: IO[bytes]) -> None:
    import cv2

    from fer_ray.vision.decode import decode
    from fer_ray.vision.detector import FaceDetector

    config = LabelingOptions(**json.loads(settings))
    cv2.setNumThreads(1)  # a process with threads of its own cannot be forked safely
    detector = FaceDetector(config.detector_side, config.min_face_score, threads=1)

    def look(content: bytes) -> None:
        with suppress(Exception):  # the labeler records what goes wrong; here only survival counts
            detector.detect(decode(content, config.max_megapixels, config.detector_side * 3 // 2).pixels)

    answer = SURVIVED
    while True:
        answers.write(answer)
        answers.flush()
        header = images.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return
        length, seconds, memory_bytes = _HEADER.unpack(header)
        content = images.read(length)
        child = os.fork()
        if not child:
            signal.setitimer(signal.ITIMER_PROF, seconds)
            signal.setitimer(signal.ITIMER_REAL, CLOCK_SHARE * seconds)
            with suppress(OSError):  # only Linux has it
                Path("/proc/self/oom_score_adj").write_text(FIRST_TO_DIE, encoding="ascii")
            look(content)
            os._exit(0)
        answer = _watch(psutil.Process(child), memory_bytes)


def _watch(child: psutil.Process, memory_bytes: int) -> bytes:
    """How the process that looks at an image ended; it is made to where it takes too much memory."""
    while True:
        try:
            ended = child.wait(LOOK_SECONDS)
            return {0: SURVIVED, -signal.SIGALRM: SLOW, -signal.SIGPROF: SLOW}.get(ended, DIED)
        except psutil.TimeoutExpired:
            with suppress(psutil.NoSuchProcess):
                if child.memory_info().rss > memory_bytes:
                    child.kill()
                    child.wait()
                    return LARGE


if __name__ == "__main__":
    told = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a codec prints is no answer
    _serve(sys.argv[1], sys.stdin.buffer, told)
