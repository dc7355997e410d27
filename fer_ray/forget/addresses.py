"""The addresses of one request, and which rows, row groups and texts they are found in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from fer_ray.config.jobs.forget import ForgetConfig
from fer_ray.errors import UsageError
from fer_ray.io.folders import RAW_NAME_PREFIX
from fer_ray.io.inputs import is_film
from fer_ray.io.storage import Storage, absolute
from fer_ray.io.uri_list import read_list
from fer_ray.label.incremental.forgotten import Covered, normal
from fer_ray.schema import image_id

REPLACED = "(forgotten)"
_FRAME = re.compile(r"(.+)#t=\d+\.\d+", re.DOTALL)


class Addresses(Covered):
    """What is to be forgotten, by name: it lives as long as the command does."""

    def __init__(self, uris: Iterable[str]) -> None:
        super().__init__()
        self.uris = sorted({uri.rstrip("/") for uri in uris})
        self._names = {normal(uri) for uri in self.uris}
        self._seen: set[bytes] = set()

    def _has(self, name: bytes) -> bool:
        if name not in self._names:
            return False
        self._seen.add(name)
        return True

    @property
    def unknown(self) -> int:
        """How many of them nothing that was asked for was one of, or below."""
        return len(self._names - self._seen)

    @property
    def names(self) -> list[bytes]:
        """In the form that is hashed."""
        return sorted(self._names)

    @property
    def own_names(self) -> set[str]:
        """The last parts of the addresses: `anna.jpg` of `/photos/anna.jpg`, `1.png` of `/photos/a.tar#1.png`."""
        return {re.split("[/#]", uri)[-1] for uri in self.uris}

    @property
    def image_ids(self) -> set[str]:
        """Of the addresses that are images."""
        return {image_id(uri) for uri in self.uris}

    def may_lie_between(self, low: str, high: str) -> bool:
        """Whether one that they cover may stand in a column whose least and greatest values these are."""
        if low <= RAW_NAME_PREFIX + "\U0010ffff" and high >= RAW_NAME_PREFIX:
            return True  # names that are no text stand there in another form
        return any(uri <= high and low < f"{uri}0" for uri in self.uris)  # what lies below goes on with # or /, which come before 0

    def redacted(self, value: Any) -> Any:
        """The same JSON value with another text in the place of each that names one."""
        if isinstance(value, dict):
            return {name: self.redacted(one) for name, one in value.items()}
        if isinstance(value, list):
            return [self.redacted(one) for one in value]
        return REPLACED if isinstance(value, str) and self.is_named_in(value) else value

    def is_named_in(self, text: str) -> bool:
        """Whether a text holds one of the addresses."""
        return self.covers(text) or any(uri in text for uri in self.uris)

    def without_lines(self, lines: bytes) -> bytes:
        """Lines of JSON without those that name one."""
        return b"".join(line for line in lines.splitlines(keepends=True) if not self._is_named_in_json(line))

    def _is_named_in_json(self, line: bytes) -> bool:
        try:
            value = json.loads(line)
        except ValueError:
            return self.is_named_in(line.decode(errors="surrogateescape"))
        return bool(self.redacted(value) != value)


def read_addresses(storage: Storage, config: ForgetConfig) -> Addresses:
    """Those of the command line and of the list, as they stand in the tables.

    Raises:
        UsageError: one is no address, or none that can be forgotten; the list does not read.
    """
    uris = [absolute(storage.without_secret(given), "address") for given in config.addresses]
    if config.list:
        uri = absolute(config.list, "list")
        if storage.stat(uri) is None:
            raise UsageError(f"The list {config.list} is not there: name an existing one.")
        uris += [entry.image_uri for entry in read_list(storage, uri)]
    for uri in uris:
        if not uri.strip("/"):
            raise UsageError("The address / is everything: name a folder.")
        frame = _FRAME.fullmatch(uri)
        if frame and is_film(frame[1]):
            raise UsageError(f"The address {uri} is a frame: its neighbours show the same, so name the film {frame[1]}.")
    if not uris:
        raise UsageError(f"The list {config.list} names no image: nothing was written.")
    return Addresses(uris)
