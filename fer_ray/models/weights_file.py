"""Files of Keras weights, which may come from a stranger: what is in one is looked at before any of it is read into memory.

Only plain arrays of finite numbers are taken, at the length that they have in the file. Nothing else in the file is used.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import h5py

STORED = "model.weights.h5"  # inside a .keras file
BYTES_PER_WEIGHT = 8  # at most: trainings may have left the state of their optimizer beside the weights
ALLOWANCE = 16 << 20  # bytes for names and everything else
MAX_RATIO = 8  # bytes unpacked for one in the file; weights hardly shorten
MAX_ITEMS = 100_000  # groups and arrays

# What libraries raise over files that somebody made up. SystemError is h5py's.
BROKEN = (ValueError, LookupError, OSError, EOFError, OverflowError, RuntimeError, SystemError, zipfile.BadZipFile, zlib.error)


@contextmanager
def checked_weights(file: Path, weights: int) -> Iterator[Path]:
    """The HDF5 file of weights, unpacked where it lies in a .keras file.

    Args:
        file: a .keras file or one of HDF5.
        weights: how many numbers the network has.

    Raises:
        ValueError: the file holds too few numbers, too much, or something else than finite numbers.
        BROKEN: it is none of the two.
    """
    if not zipfile.is_zipfile(file):
        _check_numbers(file, weights)
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="fer-ray-") as folder:
        stored = Path(folder) / STORED
        _unpack(file, weights, stored)
        _check_numbers(stored, weights)
        yield stored


def _unpack(file: Path, weights: int, target: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        member = archive.getinfo(STORED)
        if member.file_size > min(BYTES_PER_WEIGHT * weights, MAX_RATIO * member.compress_size) + ALLOWANCE:
            raise ValueError("the archive unpacks to more than the network's weights need")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("the archive is packed in a way that is not usual")
        with archive.open(member) as packed, target.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)  # zipfile ends at the size that the member claims


def _check_numbers(file: Path, weights: int) -> None:
    import h5py

    with h5py.File(file, "r") as stored:
        arrays = list(_arrays(stored))
        if sum(array.nbytes for array in arrays) > BYTES_PER_WEIGHT * weights + ALLOWANCE:
            raise ValueError("the weights are larger than the network's description needs")
        numbers = sum(array.size for array in arrays)
        if numbers < weights:
            raise ValueError(f"the file holds {numbers:,} numbers where the network has {weights:,} weights")
        for array in arrays:
            if array.dtype.kind == "f" and not np.isfinite(array[()]).all():
                raise ValueError(f"the weight {array.name} holds values that are no numbers")


def _arrays(stored: h5py.File) -> Iterator[Any]:
    """Every array in the file, which is all that may be in it."""
    import h5py

    found: list[str] = []

    def visit(name: str, link: Any) -> str | None:  # it must not raise, which h5py makes a SystemError of; what it gives ends the visit
        found.append(name)
        return None if isinstance(link, h5py.HardLink) and len(found) <= MAX_ITEMS else name

    if wrong := stored.visititems_links(visit):
        raise ValueError(f"the entry {wrong[:80]} leads elsewhere, or there are too many")
    for name in found:
        item = stored[name]
        if isinstance(item, h5py.Dataset):
            _check_array(name, item)
            yield item


def _check_array(name: str, array: Any) -> None:
    plain = not array.external and not array.is_virtual and array.dtype.kind in "fiu" and array.shape is not None
    if not plain:
        raise ValueError(f"the weight {name[:80]} is no plain array of numbers")
    if array.nbytes > MAX_RATIO * array.id.get_storage_size() + (1 << 20):
        raise ValueError(f"the weight {name[:80]} is larger than what the file holds of it")
