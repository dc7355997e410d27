"""Images fetched ahead of the processor, so that the latency of a store costs nothing."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from fer_ray.errors import ImageError, StorageError
from fer_ray.io.outages import PatientReader
from fer_ray.io.storage import is_remote
from fer_ray.schema import ImageEntry, Status

THREADS = 16
MAX_IMAGES_AHEAD = 64
MAX_BYTES_AHEAD = 64 << 20
UNKNOWN_SIZE = 4 << 20
LOCAL_SECONDS = 60.0  # for a file of this machine, as long as others come: a hung mount answers to nothing
PROBE_SECONDS = 10.0  # for another, which was read before
HUNG_SECONDS = 300.0  # beyond what the reader waits for a store: then a read has come to a place without a limit of its own

_Outcome = Future[bytes | ImageError]
_Waiting = tuple[ImageEntry, int, _Outcome]  # with the bytes that are held for it


class Fetcher:
    """Reads images in threads, a bounded number and size ahead of whoever consumes them."""

    def __init__(self, reader: PatientReader) -> None:
        self.reader = reader
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="fetch")
        self._witness: ImageEntry | None = None  # the last that was read
        self._begun: deque[_Waiting] = deque()  # for the next call

    def fetch(self, entries: Sequence[ImageEntry], following: Iterable[ImageEntry] = ()) -> Iterator[bytes | ImageError]:
        """The bytes of each image, in order; an ImageError in place of one that cannot be read.

        Args:
            entries: The images.
            following: Where the next call begins; these are begun once the others are on their way.

        Raises:
            StorageError: nothing can be read with these credentials, or the store was down for long.
        """
        waiting = self._begun
        if [entry for entry, _, _ in waiting] != list(entries[: len(waiting)]):
            waiting = self._begun = deque()
        upcoming = itertools.chain(entries[len(waiting) :], following)
        coming = next(upcoming, None)
        ahead = sum(size for _, size, _ in waiting)
        for _ in entries:
            while coming and len(waiting) < MAX_IMAGES_AHEAD and (not waiting or ahead + _size_of(coming) <= MAX_BYTES_AHEAD):
                waiting.append((coming, _size_of(coming), self._threads.submit(self.reader.read, coming)))
                ahead += _size_of(coming)
                coming = next(upcoming, None)
            first, held, future = waiting.popleft()
            ahead -= held
            outcome = future.result() if future.done() else self._wait_for(first, future, waiting)
            if isinstance(outcome, bytes):
                self._witness = first
            yield outcome

    def _wait_for(self, entry: ImageEntry, future: _Outcome, others: Iterable[_Waiting]) -> bytes | ImageError:
        """The image when it has come; a row where it hangs and another can be read again. Its thread is lost then."""
        longest = self.reader.wait_seconds + HUNG_SECONDS
        for seconds in (longest,) if is_remote(entry.archive_uri or entry.image_uri) else (LOCAL_SECONDS, longest):
            if wait([future], seconds).done:
                return future.result()
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="fetch")
            witness = next((other for other, _, read in others if read.done() and not read.exception()), self._witness)
            probe = self._threads.submit(self.reader.read, witness) if witness else None
            if probe and wait([probe], PROBE_SECONDS).done and isinstance(probe.result(), bytes):
                return ImageError(Status.UNREADABLE, f"The file cannot be read (no answer in {seconds:.0f} s).")
        raise StorageError(f"{entry.image_uri} gave no answer in {longest:.0f} s: see to the store, the file system and the network.")


def _size_of(entry: ImageEntry) -> int:
    return UNKNOWN_SIZE if entry.size_bytes is None else entry.size_bytes
