"""Images are read while their store has trouble: an outage is waited for, and never taken for what is wrong with an image.

An image that cannot be read is tried again beside a witness, an image of the same place that was read before. Where the witness can
be read and the image still cannot, the trouble is the image's own. Where neither can, the place is down: everybody waits, and after
a bounded time gives up with a StorageError, which ends the run. Each process finds a witness of its own, so none has to ask another.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeGuard, TypeVar

from fer_ray.errors import DeniedError, FerRayError, ImageError, OutageError, StorageError
from fer_ray.io.archives import first_byte, is_unlisted
from fer_ray.io.folders import path_of_uri
from fer_ray.io.storage import Storage, is_remote, server_of
from fer_ray.schema import ImageEntry, Status

LOGGER = logging.getLogger(__name__)
WAIT_SECONDS = 300.0  # for a place that is down
PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)  # seconds between two tries; the last again and again
SEVERAL = 5  # images that are refused one after the other where no witness is known; fewer are rows, after three pauses
QUIET_SECONDS = 15.0  # that a place must be free of trouble before a failure is the image's own
OWN_PLACE_IMAGES = 20  # read from a server or bucket of a list make it a place of its own; before, lists share one
SHARED_WITNESSES = 3  # of as many servers
WITNESS_SECONDS = 60.0  # then a newer one takes its place: archives are tidied up
WITNESS_BYTES = 8 << 20
_HERE = "this machine"
_PAGES = (b"<!doctype html", b"<html")

_LISTED_TOO_EARLY = ImageError(Status.UNREADABLE, "The archive could not be read when it was listed: the next run tries it again.")

Outcome = bytes | ImageError
Result = TypeVar("Result")


def wait_out(work: Callable[[], Result], wait_seconds: float) -> Result:
    """What the work gives; where a store is down or denies access, it is begun again until the time is over.

    Raises:
        OutageError, DeniedError: the store did not come back.
    """
    failed_at = None
    for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
        try:
            return work()
        except (OutageError, DeniedError) as error:
            now = time.monotonic()
            if now - (failed_at or now) + pause > wait_seconds:
                raise
            if failed_at is None:
                LOGGER.warning("%s It is tried again for %g s.", error, wait_seconds)
            failed_at = failed_at or now
        time.sleep(pause)
    raise AssertionError("the last try ends the loop")


@dataclass
class _Place:
    """What is up or down as one: an input of the run, a server, a bucket."""

    name: str
    is_shared: bool
    witnesses: dict[str, tuple[ImageEntry, bytes]] = field(default_factory=dict)  # by server or bucket, with the bytes that came
    witnessed_at: float = 0.0
    proven_at: float = 0.0  # when the last look began that found a witness readable
    looked_at: float = 0.0
    ill_at: float = -QUIET_SECONDS  # the last failure that was the place's own
    refused: set[str] = field(default_factory=set)  # images that failed since one was read
    lock: threading.Lock = field(default_factory=threading.Lock)


class PatientReader:
    """Reads images for the threads of a process.

    Args:
        storage: Where the images are.
        max_megabytes: Larger ones are not read.
        wait_seconds: How long to wait for a place that is down.
        roots: The inputs of the run: each is up or down as one.
        candidates: Gives images that may be witnesses where none was read yet; asked in trouble only.
    """

    def __init__(
        self,
        storage: Storage,
        max_megabytes: float,
        wait_seconds: float = WAIT_SECONDS,
        roots: Iterable[str] = (),
        candidates: Callable[[], Iterable[ImageEntry]] = tuple,
    ) -> None:
        self.storage, self.max_megabytes, self.wait_seconds = storage, max_megabytes, wait_seconds
        self._roots = sorted((f"{root.rstrip('/')}/" for root in roots), key=len, reverse=True)
        self._candidates = candidates
        self._places: dict[str, _Place] = {}
        self._read: Counter[str] = Counter()  # images, by server or bucket

    def read(self, entry: ImageEntry) -> Outcome:
        """The bytes of an image, or why it has none, which is then its own fault.

        Raises:
            StorageError: its store was down for longer than is waited, or cannot be used with these credentials.
        """
        if not is_unlisted(entry):
            return self._outcome_of(entry, entry.size_bytes is None)
        outcome = self._outcome_of(first_byte(entry), entry.size_bytes is None)
        return _LISTED_TOO_EARLY if isinstance(outcome, bytes) else outcome

    def _outcome_of(self, entry: ImageEntry, is_listed_blindly: bool) -> Outcome:
        outcome = self._try(entry)
        if entry.error is not None:  # which is known since the listing
            return outcome
        if _is_sound(outcome, entry):
            self._remember(entry, outcome)
            return outcome
        if isinstance(outcome, ImageError):
            never_was = is_listed_blindly and isinstance(outcome.__cause__, FileNotFoundError)
            if outcome.status != Status.UNREADABLE or never_was:
                return outcome
        return self._settle(entry, outcome)

    def _settle(self, entry: ImageEntry, outcome: Outcome) -> Outcome:
        """Whose fault it is, found out by trying again."""
        place, started = self._place_of(entry), time.monotonic()
        place.refused.add(entry.image_uri)
        was_up = self._is_up(place, entry, outcome)
        for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
            is_up = was_up
            if not was_up or entry.size_bytes is not None or self._read[_server_of(entry)]:  # not of a server that never answered
                outcome = self._try(entry)
                if _is_sound(outcome, entry):
                    place.ill_at = place.ill_at if place.is_shared else time.monotonic()
                    self._remember(entry, outcome)
                    return outcome
                is_up = self._is_up(place, entry, outcome)
            now = time.monotonic()
            is_last = now - started + pause > self.wait_seconds
            is_sure = place.is_shared or not _is_outage(outcome) or pause > PAUSES[1]  # an outage may have been shorter than the try
            if was_up and is_up and (is_last or (is_sure and now - place.ill_at > QUIET_SECONDS)):
                replaced = self._find_replaced(entry)
                return self._try(replaced) if replaced else outcome
            if not place.witnesses and len(place.refused) < SEVERAL and now - started > sum(PAUSES[:3]) and not _is_outage(outcome):
                return outcome
            if is_last:
                raise StorageError(f"No image of {place.name} can be read any more ({_reason(outcome)}): see to the store and the network.")
            was_up = is_up
            time.sleep(pause)
        raise AssertionError("the last try ends the loop")

    def _is_up(self, place: _Place, failed: ImageEntry, outcome: Outcome) -> bool:
        """Whether something that is known to be good can be read, looked at from now on by this thread or another."""
        since = time.monotonic()
        with place.lock:
            if place.looked_at > since:
                return place.proven_at > since
            place.looked_at = began = time.monotonic()
            outcomes = [outcome]
            for entry, expected in list(place.witnesses.values()):
                outcomes.append(found := self._try(entry))
                if found == expected:
                    place.proven_at = began
                    return True
                place.ill_at = place.ill_at if place.is_shared else time.monotonic()
            if not _is_outage(outcomes[-1]) or place.is_shared or not place.witnesses:
                for entry in self._candidates_of(place):
                    outcomes.append(found := self._try(entry))
                    if _is_sound(found, entry):
                        place.witnessed_at = 0.0
                        self._remember(entry, found)
                        place.proven_at = began
                        return True
                    if _is_outage(found) and not place.is_shared:
                        return False
            if not place.witnesses and self._is_list_old(failed):
                place.proven_at = began
                return True
            are_gone = all(isinstance(one, ImageError) and isinstance(one.__cause__, FileNotFoundError) for one in outcomes)
            place.proven_at = began if are_gone and self._lists(_server_of(failed) if place.is_shared else place.name) else place.proven_at
            return place.proven_at >= began

    def _candidates_of(self, place: _Place) -> list[ImageEntry]:
        try:
            return [
                entry
                for entry in self._candidates()
                if entry.error is None and self._place_of(entry) is place and entry.image_uri not in place.refused
            ]
        except (FerRayError, OSError):  # they stand in the same store, perhaps
            return []

    def _is_list_old(self, failed: ImageEntry) -> bool:
        """Whether an image is there whole, under another etag than was listed; then it is a witness."""
        found = self._find_replaced(failed)
        if found is None or (is_remote(found.image_uri) and not found.etag):
            return False
        content = self._try(found)
        if not isinstance(content, bytes) or _is_page(content):
            return False
        self._remember(found, content)
        return True

    def _lists(self, place: str) -> bool:
        """Whether the place lists images, or answers that it has none: then those that are gone were deleted.

        A folder without any is one that is not mounted.
        """
        try:
            first = next(iter(self.storage.list_files(place)), None) if place != _HERE else None
        except (FerRayError, OSError):
            return False
        return is_remote(place) if first is None else first.size_bytes is not None

    def _find_replaced(self, entry: ImageEntry) -> ImageEntry | None:
        """The image as it is now, where it was replaced since it was listed; the next run finds that it changed, and labels it again."""
        if entry.size_bytes is None or entry.archive_uri is not None:
            return None
        try:
            found = self.storage.stat(entry.image_uri)
        except StorageError:
            return None
        if found is None or found.size_bytes is None:
            return None
        is_same = found.etag == entry.etag and (entry.etag or found.size_bytes == entry.size_bytes)
        return None if is_same else found

    def _try(self, entry: ImageEntry) -> Outcome:
        try:
            return self.storage.read_image(entry, self.max_megabytes)
        except ImageError as error:
            return error

    def _remember(self, entry: ImageEntry, content: bytes) -> None:
        """An image was read: its place is up, and has a witness."""
        server = _server_of(entry)
        self._read[server] += 1
        place, now = self._place_of(entry), time.monotonic()
        if place.refused:
            place.refused.clear()
        if (now - place.witnessed_at > WITNESS_SECONDS or not place.witnesses) and len(content) <= WITNESS_BYTES:
            witnesses = {name: kept for name, kept in place.witnesses.items() if name != server} if place.is_shared else {}
            kept = list(witnesses.items())[-SHARED_WITNESSES + 1 :]
            place.witnesses, place.witnessed_at = dict([*kept, (server, (entry, content))]), now

    def _place_of(self, entry: ImageEntry) -> _Place:
        address = path_of_uri(entry.archive_uri or entry.image_uri)
        root = next((root for root in self._roots if address.startswith(root)), None)
        server = _server_of(entry)
        is_own = root is not None or not is_remote(address) or self._read[server] >= OWN_PLACE_IMAGES
        name = root or (server or _HERE if is_own else f"{server.partition('/')[0]}//...")
        return self._places.get(name) or self._places.setdefault(name, _Place(name, not is_own))


def _server_of(entry: ImageEntry) -> str:
    return server_of(entry.archive_uri or entry.image_uri)


def _is_sound(outcome: Outcome, entry: ImageEntry) -> TypeGuard[bytes]:
    """Whether this may be the image; a page is the answer of a gateway, unless as many bytes were listed."""
    return isinstance(outcome, bytes) and (entry.size_bytes is not None or not _is_page(outcome))


def _is_page(content: bytes) -> bool:
    return content[:64].lstrip().lower().startswith(_PAGES)


def _is_outage(outcome: Outcome) -> bool:
    return isinstance(outcome, ImageError) and isinstance(outcome.__cause__, OutageError)


def _reason(outcome: Outcome) -> str:
    if isinstance(outcome, bytes):
        return "a page came instead"
    return str(outcome).removeprefix("The file cannot be read (").rstrip(".)")
