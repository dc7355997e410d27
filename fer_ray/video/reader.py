"""The stretches of films, read one after the other in a process that labels them."""

from __future__ import annotations

from collections.abc import Iterator

from fer_ray.errors import ImageError
from fer_ray.io.outages import PatientReader
from fer_ray.schema import ImageEntry, Status
from fer_ray.video.frames import Film, Frame
from fer_ray.video.stretches import Stretch
from fer_ray.video.worker import FilmSettings, FilmWorker


class FilmReader:
    """Keeps a film open from one stretch to the next."""

    def __init__(self, settings: FilmSettings, reader: PatientReader) -> None:
        self.settings, self.reader = settings, reader
        self._opened: tuple[str, Film] | None = None

    def frames(self, stretch: Stretch, starts: int) -> Iterator[Frame | ImageError]:
        """The frames of a stretch; an ImageError comes last where something is the matter with its film.

        A stretch that is begun for the second time ended the process before: another process looks first how far it can be decoded.

        Raises:
            StorageError: the store cannot be used.
        """
        end_ms, trouble = stretch.end_ms, None
        if starts > 1:
            worker = FilmWorker(self.settings)
            try:
                good_until, trouble = worker.good_until(stretch, stretch.start_ms, end_ms)
            finally:
                worker.close()
            end_ms = end_ms if trouble is None else good_until
        count = 0
        try:
            if end_ms is None or end_ms > stretch.start_ms:
                for frame in self._film(stretch).frames(stretch.start_ms, end_ms, self.settings.rate):
                    count += 1
                    yield frame
            if trouble is None and not count and not stretch.start_ms:
                trouble = ImageError(Status.UNDECODABLE, "The film has no frame that can be decoded.")
        except ImageError as error:
            self.close()
            trouble = trouble or error
        if trouble:
            yield trouble

    def close(self) -> None:
        if self._opened:
            self._opened[1].close()
            self._opened = None

    def _film(self, entry: ImageEntry) -> Film:
        if self._opened is None or self._opened[0] != entry.image_uri:
            self.close()
            self._opened = entry.image_uri, self.settings.open(entry, self.reader)
        return self._opened[1]
