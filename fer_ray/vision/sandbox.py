"""Which images end the process that looks at them: each is tried in a process of its own that may die.

    python -m fer_ray.vision.sandbox <settings as JSON>

reads images on standard input, each behind its length in eight bytes, and answers every one it survives with a byte.
"""

from __future__ import annotations

import dataclasses
import json
import selectors
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import IO, cast

from fer_ray.config.label import LabelingOptions

SECONDS_PER_IMAGE = 60.0
SURVIVED = b"."


def survive_decoding(images: Iterable[bytes], config: LabelingOptions, seconds: float = SECONDS_PER_IMAGE) -> Iterator[bool]:
    """For each image: whether it can be decoded and searched for faces without a crash, within so many seconds."""
    process: subprocess.Popen[bytes] | None = None
    try:
        for image in images:
            if process is None:
                process = _start(config)
            survived = _try(process, image, seconds)
            yield survived
            if not survived:
                _end(process)
                process = None
    finally:
        if process is not None:
            _end(process)


def _start(config: LabelingOptions) -> subprocess.Popen[bytes]:
    settings = json.dumps(dataclasses.asdict(config))
    command = [sys.executable, "-m", "fer_ray.vision.sandbox", settings]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    if not _answers(process, 10 * SECONDS_PER_IMAGE):
        raise RuntimeError("The sandbox process does not start: see whether python -m fer_ray.vision.sandbox runs.")
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # what the process did not take of an image
            cast("IO[bytes]", pipe).close()
    process.wait()


def _try(process: subprocess.Popen[bytes], image: bytes, seconds: float) -> bool:
    try:
        stdin = cast("IO[bytes]", process.stdin)
        stdin.write(len(image).to_bytes(8, "big") + image)
        stdin.flush()
    except OSError:
        return False
    return _answers(process, seconds)


def _answers(process: subprocess.Popen[bytes], seconds: float) -> bool:
    stdout = cast("IO[bytes]", process.stdout)
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        return bool(selector.select(seconds)) and stdout.read(1) == SURVIVED


def _serve(settings: str, images: IO[bytes], answers: IO[bytes]) -> None:
    from fer_ray.vision.decode import decode
    from fer_ray.vision.detector import FaceDetector

    config = LabelingOptions(**json.loads(settings))
    detector = FaceDetector(config.detector_side, config.min_face_score, threads=1)
    while True:
        answers.write(SURVIVED)
        answers.flush()
        header = images.read(8)
        if len(header) < 8:
            return
        with suppress(Exception):  # the labeler records what goes wrong; here only survival counts
            detector.detect(decode(images.read(int.from_bytes(header, "big")), config.max_megapixels, config.detector_side * 3 // 2).pixels)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.stdin.buffer, sys.stdout.buffer)
