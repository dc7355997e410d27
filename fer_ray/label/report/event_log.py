"""The log of a run: one JSON object a line, for machines; what people read goes to the terminal."""

from __future__ import annotations

import datetime
import json
from contextlib import suppress
from typing import Any

from fer_ray.errors import StorageError
from fer_ray.io.storage import Storage, join

LOG_FILE = "log.jsonl"
MAX_BYTES = 8 << 20


class RunLog:
    """Events of a run with their times (UTC), in `reports/<run_id>/log.jsonl`; a run that is gone on with adds to it.

    A store has no way to add to an object, so each event writes the whole file anew: record some a minute, not more. A log
    that cannot be written is no trouble of the run.
    """

    def __init__(self, storage: Storage, output: str, run_id: str) -> None:
        self._storage, self.address = storage, join(output, "reports", run_id, LOG_FILE)
        self._lines: list[bytes] = []
        with suppress(StorageError, OSError):  # a new run, or a log that grew too large: it begins again
            self._lines = storage.read(self.address, MAX_BYTES).splitlines()

    def record(self, event: str, **facts: Any) -> None:
        """Add an event; what JSON does not know becomes text."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        self._lines.append(json.dumps({"time": now, "event": event, **facts}, default=str).encode())
        with suppress(StorageError, OSError):
            self._storage.write(self.address, b"\n".join(self._lines) + b"\n")
