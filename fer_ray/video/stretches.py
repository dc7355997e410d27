"""Films cut into stretches, the work that one process does at a time: a row of the manifest each."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fer_ray.errors import ImageError
from fer_ray.io.inputs import is_film
from fer_ray.schema import LISTING, STRETCH, ImageEntry
from fer_ray.video.frames import ALL_FRAMES
from fer_ray.video.worker import FilmSettings, FilmWorker

MIN_FRAMES = 64  # of a stretch, as many as the first parts of a run have
MIN_SECONDS = 40  # likewise: what a film's index leads to lies up to ten seconds before what is wanted
MAX_WORKERS = 4  # that look at films before they are labeled
FILMS_AT_A_TIME = 64
_PLANNED = pa.schema([*LISTING, *STRETCH])


@dataclass(frozen=True, slots=True)
class Stretch(ImageEntry):
    """The frames of a film from `start_ms` to before `end_ms`, or to its end."""

    start_ms: int = 0
    end_ms: int | None = None


class Cutter:
    """Cuts the films of tables of the schema LISTING; what is no film, or is known to fail, stays as it is."""

    def __init__(self, settings: FilmSettings) -> None:
        self.settings = settings
        self.films = self.stretches = self.frames = 0  # that read, so far
        self.seconds = 0.0
        count = min(MAX_WORKERS, os.cpu_count() or 1)
        self._workers = [FilmWorker(settings) for _ in range(count)]

    def cut(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The tables with the columns of STRETCH; a film that does not read is a row with the reason.

        Raises:
            StorageError: the store cannot be used.
        """
        try:
            for table in tables:
                yield from self._cut(table)
        finally:
            for worker in self._workers:
                worker.close()

    def _cut(self, table: pa.Table) -> Iterator[pa.Table]:
        listed = zip(table["image_uri"].to_pylist(), table["error"].to_pylist(), strict=True)
        films = [place for place, (uri, error) in enumerate(listed) if error is None and is_film(uri)]
        begin = 0
        for place, (rows, length_ms) in zip(films, self._looked_at(table, films), strict=True):
            if length_ms is not None:
                self.films, self.stretches = self.films + 1, self.stretches + len(rows)
                self.frames, self.seconds = self.frames + pc.sum(rows["frames"]).as_py(), self.seconds + length_ms / 1000
            if place > begin:
                yield _without_stretches(table.slice(begin, place - begin))
            yield rows
            begin = place + 1
        if begin < len(table):
            yield _without_stretches(table.slice(begin))

    def _looked_at(self, table: pa.Table, films: list[int]) -> Iterator[tuple[pa.Table, float | None]]:
        """The rows of each film and its length in milliseconds; several are looked at together."""
        idle = list(self._workers)

        def look(place: int) -> tuple[pa.Table, float | None]:
            worker = idle.pop()
            try:
                return self._rows(ImageEntry(**table.slice(place, 1).to_pylist()[0]), worker)
            finally:
                idle.append(worker)

        with ThreadPoolExecutor(len(self._workers)) as threads:
            for start in range(0, len(films), FILMS_AT_A_TIME):
                yield from threads.map(look, films[start : start + FILMS_AT_A_TIME])

    def _rows(self, film: ImageEntry, worker: FilmWorker) -> tuple[pa.Table, float | None]:
        """The stretches of a film; each begins where a slot of the rate does, so that none gives two frames."""
        try:
            facts = worker.probe(film)
        except ImageError as error:
            failed = replace(film, status=error.status, error=str(error))
            return _without_stretches(pa.Table.from_pylist([_listed(failed)], LISTING)), None
        rate, length_ms = self.settings.rate, 1000 * (facts.seconds or 0)
        slots = max(MIN_FRAMES, math.ceil(MIN_SECONDS * rate))
        starts = [0]
        while (start := math.ceil(len(starts) * slots * 1000 / rate - Fraction(1, 2))) < length_ms:
            starts.append(start)
        ends = [*starts[1:], None]
        lengths = [(length_ms if end is None else end) - start for start, end in zip(starts, ends, strict=True)]
        frames = [max(1, round(length * min(float(rate), facts.rate) / 1000)) for length in lengths]
        times = zip(starts, ends, frames, strict=True)
        rows = [{**_listed(film), **dict(zip(STRETCH.names, row, strict=True))} for row in times]
        return pa.Table.from_pylist(rows, _PLANNED), length_ms


def rate_of(frames_per_second: str) -> Fraction:
    """What `--video-fps` says, as frames a second; 0 where films are left out."""
    return ALL_FRAMES if frames_per_second == "all" else Fraction(frames_per_second)


def frame_uri(film_uri: str, time_ms: int) -> str:
    """The image_uri of a frame, a media fragment: `film.mp4#t=12.480`."""
    return f"{film_uri}#t={time_ms // 1000}.{time_ms % 1000:03d}"


def _listed(film: ImageEntry) -> dict[str, Any]:
    return {name: getattr(film, name) for name in LISTING.names}


def _without_stretches(table: pa.Table) -> pa.Table:
    nothing = [pa.nulls(len(table), field.type) for field in STRETCH]
    return pa.Table.from_arrays([*table.columns, *nothing], schema=_PLANNED)
