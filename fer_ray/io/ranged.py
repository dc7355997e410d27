"""A file in a store, read by ranges."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Protocol

from fer_ray.schema import ImageEntry


class RangedStore(Protocol):
    """A store that reads parts of files."""

    def stat(self, uri: str) -> ImageEntry | None: ...

    def read(self, uri: str, limit: float, start: int = 0, length: int | None = None) -> bytes: ...


def open_by_ranges(store: RangedStore, uri: str, read_ahead: int) -> io.BufferedReader:
    """The file of a store, read by ranges of at least `read_ahead` bytes.

    Raises:
        FileNotFoundError: it is not there.
    """
    found = store.stat(uri)
    if found is None:
        raise FileNotFoundError(uri)

    def read_range(start: int, length: int) -> bytes:
        return store.read(uri, length, start, length)

    return io.BufferedReader(RangedFile(read_range, found.size_bytes or 0), read_ahead)


class RangedFile(io.RawIOBase):
    """A raw file over `read_range`, which takes a start and a length; each read is one request."""

    def __init__(self, read_range: Callable[[int, int], bytes], size: int) -> None:
        self._read_range, self._size, self._position = read_range, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self._size - self._position))
        view[:length] = self._read_range(self._position, length) if length else b""
        self._position += length
        return length
