"""A film as FFmpeg reads it: a file object over a store, read block by block, so that nothing else can be opened through it."""

from __future__ import annotations

import io
import signal
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from fer_ray.errors import FerRayError, ImageError
from fer_ray.io.outages import Outcome
from fer_ray.io.storage import is_remote
from fer_ray.schema import ImageEntry, Status

BLOCK_BYTES = 2 << 20  # of one request
MAX_BLOCKS = 4  # that are kept: sound and picture may lie apart

Read = Callable[[ImageEntry], Outcome]


class FilmFile:
    """Reads the bytes of a film through `read`, which waits for stores that are down (`io.outages.PatientReader.read`).

    FFmpeg is told of an end where the film cannot be read; `failure` has the reason, which counts. While a block is waited for, the
    process's timer stands still: what takes long is not the film.
    """

    def __init__(self, entry: ImageEntry, read: Read) -> None:
        self.entry, self.size = entry, entry.size_bytes or 0
        self.failure: FerRayError | None = None
        self._read, self._position = read, 0
        self._blocks: OrderedDict[int, Future[Outcome]] = OrderedDict()
        self._ahead = ThreadPoolExecutor(1) if is_remote(entry.archive_uri or entry.image_uri) else None

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, none at the end."""
        length = min(size if size >= 0 else self.size, self.size - self._position)
        if length <= 0 or self.failure:
            return b""
        number, start = divmod(self._position, BLOCK_BYTES)
        found = self._block(number)[start : start + length]
        self._position += len(found)
        return found

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}.get(whence, 0)
        if position < 0:
            raise OSError("before the beginning")
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._blocks.clear()
        if self._ahead:
            self._ahead.shutdown(wait=False, cancel_futures=True)

    def check(self) -> None:
        """Raise what went wrong with the store, if anything did.

        Raises:
            ImageError: the film cannot be read.
            StorageError: the store cannot be used.
        """
        if self.failure:
            raise self.failure

    def _block(self, number: int) -> bytes:
        wanted = [number, number + 1] if self._ahead and (number + 1) * BLOCK_BYTES < self.size else [number]
        for one in wanted:
            if one not in self._blocks:
                self._blocks[one] = self._start(one)
        self._blocks.move_to_end(number)
        while len(self._blocks) > MAX_BLOCKS:
            self._blocks.popitem(last=False)
        with timer_stopped():
            try:
                found = self._blocks[number].result()
            except FerRayError as error:
                self.failure = error
                return b""
        if isinstance(found, ImageError):
            self.failure = found
            return b""
        return found

    def _start(self, number: int) -> Future[Outcome]:
        entry, start = self.entry, number * BLOCK_BYTES
        holder, inside = entry.archive_uri or entry.image_uri, (entry.data_offset or 0) + start
        length = min(BLOCK_BYTES, self.size - start)
        part = ImageEntry(entry.image_uri, length, entry.modified_at, entry.etag, archive_uri=holder, data_offset=inside)
        if self._ahead:
            return self._ahead.submit(self._read, part)
        done: Future[Outcome] = Future()
        with timer_stopped():
            try:
                done.set_result(self._read(part))
            except FerRayError as error:
                done.set_exception(error)
        return done


@contextmanager
def timer_stopped() -> Iterator[None]:
    """Let the timer that ends this process stand still meanwhile."""
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)


def check_kind(entry: ImageEntry) -> None:
    """Raise an ImageError where a film lies so that it cannot be read by ranges."""
    if entry.packed_bytes is not None:
        raise ImageError(Status.UNDECODABLE, "Films in zips are not read: unpack it, or pack a .tar.")
    if not entry.size_bytes:
        reason = "is empty" if entry.size_bytes == 0 else "has no known size, which is needed to read it by parts"
        raise ImageError(Status.UNDECODABLE, f"The film {reason}.")
