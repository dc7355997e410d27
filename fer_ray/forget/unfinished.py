"""Runs that are not committed yet: their plans, and what is staged of them, are theirs until they end."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa

from fer_ray.errors import StorageError
from fer_ray.forget.addresses import Addresses
from fer_ray.forget.tables import count
from fer_ray.io.storage import Storage, join
from fer_ray.label.plan import PLAN_FILE

FOLDERS = ("_manifest", "_staging")


@dataclass(frozen=True)
class Work:
    """What is there of an unfinished run. `reads_tables`: a relabeling, whose plan counts the rows of the tables."""

    run_id: str
    files: tuple[str, ...]
    reads_tables: bool = False

    def holds(self, storage: Storage, addresses: Addresses) -> bool:
        """Whether such an image stands in it; what cannot be read may hold one."""
        for uri in self.files:
            try:
                if uri.endswith(".parquet"):
                    if count(storage, uri, addresses):
                        return True
                elif addresses.redacted(value := json.loads(storage.read(uri))) != value:
                    return True
            except FileNotFoundError:
                continue  # it went meanwhile
            except (StorageError, ValueError, pa.ArrowException):
                return True
        return False

    def remove(self, storage: Storage, output: str) -> None:
        """Remove the plan first, as a run itself does: half removed, it must not look like work to take up."""
        storage.remove(join(output, "_manifest", self.run_id, PLAN_FILE))
        for folder in FOLDERS:
            storage.remove_folder(join(output, folder, self.run_id))


def find_work(storage: Storage, output: str) -> dict[str, Work]:
    """The work that lies in the output, by run, also what a committed run could not remove any more."""
    files: dict[str, list[str]] = {}
    for folder in FOLDERS:
        for entry in storage.list_files(join(output, folder)):
            run_id, mark, _ = entry.image_uri[len(join(output, folder)) + 1 :].partition("/")
            if mark:
                files.setdefault(run_id, []).append(entry.image_uri)
    return {run_id: Work(run_id, tuple(found), _reads_tables(storage, output, run_id)) for run_id, found in files.items()}


def _reads_tables(storage: Storage, output: str, run_id: str) -> bool:
    with suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        return bool(json.loads(storage.read(join(output, "_manifest", run_id, PLAN_FILE)))["request"].get("relabel"))
    return False
