"""Which images are to be left out for good: what `fer-ray forget` noted, without their names.

    forgotten/<name>.json   of one request: a salt, and for each address the SHA-256 of the salt and the address

An address stands for itself and for everything below it: the images of a folder, of an archive, the frames of a film.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fer_ray.errors import StorageError
from fer_ray.io.folders import path_of_uri
from fer_ray.io.storage import Storage, join
from fer_ray.typing import BoolArray

FOLDER = "forgotten"  # beside the tables
FORMAT_VERSION = 1
_ENDS = re.compile(rb"[/#]")  # where the name of a folder, an archive or a film ends within an address


class Covered(ABC):
    """A set of addresses that is asked which images they cover."""

    def __init__(self) -> None:
        self._container = b"", False  # the last folder, and whether it is covered: neighbours are asked for one after the other

    def covers(self, uri: str) -> bool:
        """Whether this is one of the addresses, or lies below one."""
        name = normal(uri)
        ends = [match.start() for match in _ENDS.finditer(name)]
        container = name[: ends[-1]] if ends else b""
        if container != self._container[0]:
            self._container = container, any(self._has(name[:end]) for end in ends)
        return self._container[1] or self._has(name)

    def mask(self, uris: Iterable[str | None]) -> BoolArray:
        """(n,) bool, True for those that are covered."""
        return np.array([uri is not None and self.covers(uri) for uri in uris], bool)

    @abstractmethod
    def _has(self, name: bytes) -> bool: ...


class Forgotten(Covered):
    """What was noted in an output; `done` counts how often a request came to its end."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        super().__init__()
        self._hashes: dict[bytes, set[str]] = {}
        self.done = 0
        for record in records:
            self._hashes.setdefault(record.salt, set()).update(record.hashes)
            self.done += record.completed

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def _has(self, name: bytes) -> bool:
        return any(hash_of(salt, name) in hashes for salt, hashes in self._hashes.items())

    @classmethod
    def read(cls, storage: Storage, output: str) -> Forgotten:
        """What is noted now.

        Raises:
            StorageError: a note is broken; nothing may be labeled that it may name.
        """
        return cls(read_records(storage, output))


@dataclass(frozen=True)
class Record:
    """One note, which was `completed` so many times, as its command may be given again.

    Before it is complete, `runs` have to be counted again, and the `reports` of these to be written anew.
    """

    salt: bytes
    hashes: tuple[str, ...]
    noted_at: str
    completed: int = 0
    is_complete: bool = False
    removed: dict[str, int] = field(default_factory=dict)
    runs: tuple[str, ...] = ()
    reports: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The same for the same addresses."""
        return hash_of(self.salt, "".join(self.hashes).encode())[:16]

    def to_json(self) -> bytes:
        content = {"format_version": FORMAT_VERSION, **vars(self), "salt": self.salt.hex()}
        return (json.dumps(content, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> Record:
        """The note as it was written.

        Raises:
            ValueError: it is broken, or of a later version.
        """
        try:
            read: dict[str, Any] = json.loads(content)
            if read["format_version"] != FORMAT_VERSION:
                raise ValueError(f"its format is {read['format_version']}")
            hashes, runs, reports = (tuple(map(str, read[name])) for name in ("hashes", "runs", "reports"))
            removed = {str(name): int(count) for name, count in read["removed"].items()}
            said = str(read["noted_at"]), int(read["completed"]), bool(read["is_complete"])
            return cls(bytes.fromhex(read["salt"]), hashes, *said, removed, runs, reports)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it lacks {error}") from error


def read_records(storage: Storage, output: str) -> list[Record]:
    """All notes of an output.

    Raises:
        StorageError: one is broken.
    """
    records = []
    for entry in storage.list_files(join(output, FOLDER)):
        if entry.image_uri.endswith(".json"):
            try:
                records.append(Record.from_json(storage.read(entry.image_uri)))
            except ValueError as error:
                raise StorageError(f"The note {entry.image_uri} of what was forgotten cannot be read ({error}): restore it.") from error
    return records


def record_file(output: str, record: Record) -> str:
    """Where a note lies."""
    return join(output, FOLDER, f"{record.name}.json")


def hash_of(salt: bytes, name: bytes) -> str:
    """What stands for an address in a note."""
    return hashlib.sha256(salt + name).hexdigest()


def normal(uri: str) -> bytes:
    """The one form of an address that is compared."""
    return path_of_uri(uri).encode(errors="surrogateescape")
