"""Images that are more than memory holds: the same arrays, on disk."""

from __future__ import annotations

import mmap
import shutil
import tempfile
from math import prod
from typing import Any

import numpy as np

from fer_ray.errors import DatasetError
from fer_ray.memory import free_bytes
from fer_ray.typing import UInt8Array

MEMORY_SHARE = 0.25  # of the free memory that images may take: several workers may be on one machine
RESIDENT_BYTES = 256 << 20  # of an array on disk that stay in memory at a time


def empty_images(shape: tuple[int, ...]) -> UInt8Array:
    """An array of zeros, uint8; one that is large for the memory lies in a file without a name in the folder for temporary files.

    Raises:
        DatasetError: neither memory nor disk has the room.
    """
    size = prod(shape)
    if size <= MEMORY_SHARE * free_bytes():
        return np.zeros(shape, np.uint8)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size > free:
        needed = f"its images take {size / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f}"
        raise DatasetError(f"The data set is too large for this machine ({needed}): point TMPDIR to a larger disk, or lower --image-size.")
    with tempfile.TemporaryFile(prefix="fer-ray-images-", dir=folder) as file:
        return DiskImages(file, np.uint8, "w+", shape=shape)


class DiskImages(np.memmap[Any, np.dtype[np.uint8]]):
    """An array in a file, of which a bounded part is in memory: what was read or written longer ago is dropped, and read again when needed.

    Selections by index are copies in memory, slices are arrays like this one.
    """

    _resident: list[int]  # bytes since the last time that all were dropped; one for an array and its slices

    def __array_finalize__(self, source: Any) -> None:
        """Slices share the count."""
        super().__array_finalize__(source)
        self._resident = getattr(source, "_resident", [0])

    def __getitem__(self, index: Any) -> Any:
        """What was selected."""
        taken = super().__getitem__(index)
        self._count(taken)
        is_copy = isinstance(taken, DiskImages) and getattr(taken, "_mmap", None) is None
        return taken.view(np.ndarray) if is_copy else taken

    def __setitem__(self, index: Any, value: Any) -> None:
        """Write."""
        super().__setitem__(index, value)
        self._count(value)

    def _count(self, taken: Any) -> None:
        mapping = getattr(self, "_mmap", None)
        if mapping is None:
            return
        self._resident[0] += getattr(taken, "nbytes", 0)
        if self._resident[0] > RESIDENT_BYTES:
            mapping.madvise(mmap.MADV_DONTNEED)
            self._resident[0] = 0
