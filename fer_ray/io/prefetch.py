"""Images fetched ahead of the processor, so that the latency of a store costs nothing."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from fer_ray.errors import ImageError
from fer_ray.io.outages import PatientReader
from fer_ray.schema import ImageEntry

THREADS = 16
MAX_IMAGES_AHEAD = 64
MAX_BYTES_AHEAD = 64 << 20
UNKNOWN_SIZE = 4 << 20


class Fetcher:
    """Reads images in threads, a bounded number and size ahead of whoever consumes them."""

    def __init__(self, reader: PatientReader) -> None:
        self.reader = reader
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="fetch")

    def fetch(self, entries: Sequence[ImageEntry]) -> Iterator[bytes | ImageError]:
        """The bytes of each image, in order; an ImageError in place of one that cannot be read.

        Raises:
            StorageError: nothing can be read with these credentials, or the store was down for long.
        """
        waiting: deque[tuple[int, Future[bytes | ImageError]]] = deque()
        ahead = 0
        for entry in itertools.chain(entries, itertools.repeat(None)):
            size = 0 if entry is None else UNKNOWN_SIZE if entry.size_bytes is None else entry.size_bytes
            while waiting and (entry is None or len(waiting) >= MAX_IMAGES_AHEAD or ahead + size > MAX_BYTES_AHEAD):
                held, future = waiting.popleft()
                ahead -= held
                yield future.result()
            if entry is None:
                return
            waiting.append((size, self._threads.submit(self.reader.read, entry)))
            ahead += size
