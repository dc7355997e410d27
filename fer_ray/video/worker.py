"""A process that looks at films which nobody has looked at yet: one that ends it, hangs or fills it costs nothing else.

    python -m fer_ray.video.worker

reads pickled requests on standard input, after the settings that its parent pickled first, and answers each in lines of JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import IO, Any, cast

from fer_ray.errors import FerRayError, ImageError, StorageError
from fer_ray.io.outages import PatientReader
from fer_ray.io.prefetch import HUNG_SECONDS
from fer_ray.io.storage import Storage
from fer_ray.schema import ImageEntry, Status
from fer_ray.video.file import FilmFile
from fer_ray.video.frames import SECONDS_PER_FRAME, Film, FilmFacts

MEMORY_BYTES = 2 << 30  # of a worker
BLOCK_MEGABYTES = 256.0  # more than any block that is asked for


@dataclass(frozen=True)
class FilmSettings:
    """What a worker has to know: where films are, how long a store is waited for, and how films are read."""

    storage: Storage
    roots: tuple[str, ...]
    wait_for_store: float
    max_megapixels: float
    enough_pixels: int
    max_hours: float
    rate: Fraction

    def reader(self) -> PatientReader:
        return PatientReader(self.storage, BLOCK_MEGABYTES, self.wait_for_store, self.roots)

    def open(self, entry: ImageEntry, reader: PatientReader) -> Film:
        """As `Film`, and with its errors."""
        return Film(FilmFile(entry, reader.read), self.max_megapixels, self.enough_pixels)


class FilmWorker:
    """The process, as its parent sees it; started when it is first asked, and again after it ended."""

    def __init__(self, settings: FilmSettings) -> None:
        self.settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def probe(self, entry: ImageEntry) -> FilmFacts:
        """What a film says of itself.

        Raises:
            ImageError: it cannot be read, or is longer or larger than the limits.
            StorageError: the store cannot be used.
        """
        answer = list(self._ask("probe", entry, 0, None))[-1]
        return FilmFacts(**answer)

    def good_until(self, entry: ImageEntry, start_ms: int, end_ms: int | None) -> tuple[int, ImageError | None]:
        """How far a stretch can be decoded: the time after its last good frame, and what is the matter with the next, if anything."""
        until = start_ms
        try:
            for answer in self._ask("decode", entry, start_ms, end_ms):
                until = answer["time_ms"] + 1
        except ImageError as error:
            return until, error
        return until, None

    def close(self) -> None:
        if self._process:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                with suppress(OSError):
                    cast("IO[bytes]", pipe).close()
            self._process.wait()
            self._process = None

    def _ask(self, what: str, entry: ImageEntry, start_ms: int, end_ms: int | None) -> Iterator[dict[str, Any]]:
        process = self._process or self._start()
        stdout, alarm = cast("IO[bytes]", process.stdout), threading.Timer(self.settings.wait_for_store + HUNG_SECONDS, process.kill)
        alarm.start()
        try:
            with suppress(BrokenPipeError):
                pickle.dump((what, entry, start_ms, end_ms), cast("IO[bytes]", process.stdin))
                cast("IO[bytes]", process.stdin).flush()
            for line in stdout:
                answer = json.loads(line)
                if "done" in answer:
                    return
                if "status" in answer:
                    raise ImageError(answer["status"], answer["error"])
                if "failed_because" in answer:
                    raise StorageError(answer["failed_because"])
                yield answer
        finally:
            alarm.cancel()
        ended_with = process.wait()
        self.close()
        if ended_with == -signal.SIGALRM:
            raise ImageError(Status.UNDECODABLE, f"The film takes more than {SECONDS_PER_FRAME:.0f} s to decode a frame.")
        raise ImageError(Status.UNDECODABLE, "The film ended the process that decoded it.")

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "fer_ray.video.worker"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        with suppress(BrokenPipeError):
            pickle.dump(self.settings, cast("IO[bytes]", self._process.stdin))
        return self._process


def _serve(requests: IO[bytes], answers: IO[str]) -> None:
    settings: FilmSettings = pickle.load(requests)  # noqa: S301 - from the process that started this one
    reader = settings.reader()

    def tell(values: dict[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    while True:
        try:
            what, entry, start_ms, end_ms = pickle.load(requests)  # noqa: S301
        except EOFError:
            return
        try:
            film = settings.open(entry, reader)
            if what == "probe":
                tell(dataclasses.asdict(_facts(film, settings.max_hours)))
            else:
                for frame in film.frames(start_ms, end_ms, settings.rate):
                    tell({"time_ms": frame.time_ms})
            film.close()
            tell({"done": True})
        except ImageError as error:
            tell({"status": error.status, "error": str(error)})
        except FerRayError as error:
            tell({"failed_because": str(error)})


def _facts(film: Film, max_hours: float) -> FilmFacts:
    """Those of a film, with its length: where it says none, all of it is read.

    Raises:
        ImageError: it is longer than `max_hours`, or cannot be read.
    """
    facts = film.facts
    if not facts.seconds:
        facts = dataclasses.replace(facts, seconds=film.last_packet_ms() / 1000)
    if (facts.seconds or 0) > max_hours * 3600:
        limit = f"{max_hours:g} hours" if max_hours >= 1 else f"{max_hours * 3600:g} s"
        raise ImageError(Status.TOO_LARGE, f"The film has {facts.seconds:,.3f} s, the limit is {limit} (max_video_hours).")
    return facts


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a codec prints is no answer
    _serve(sys.stdin.buffer, told)
    os._exit(0)  # threads that read ahead have nothing to say any more
