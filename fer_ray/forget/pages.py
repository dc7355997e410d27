"""Reports, logs and what was exported into the output: pages are written anew from the tables, or removed where that cannot be."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Collection, Iterable
from typing import Any

from fer_ray.config.jobs.label import LabelConfig
from fer_ray.errors import FerRayError
from fer_ray.forget.addresses import Addresses
from fer_ray.io.storage import Storage, join
from fer_ray.label.outcome import PAGE_FILE
from fer_ray.label.report.aggregates import AGGREGATES_FILE
from fer_ray.label.report.event_log import LOG_FILE, MAX_BYTES
from fer_ray.label.report.page import write_report
from fer_ray.label.run import Run, read_run

LOGGER = logging.getLogger(__name__)
PICTURE_FILE = "faces.jpg"
FACES_FILE = "faces.csv"  # of `fer-ray crops`
SAMPLE_FILE = "sample.json"  # of `fer-ray audit`, beside which the others lie
AUDIT_FILES = ("audit.html", "label_studio_tasks.json", "result.json", SAMPLE_FILE)
_ASKED = ("thumbnails", "max_error_share", "max_drift", "max_face_drop")  # what a report asks of the settings of its run
MAX_EXPORT_BYTES = 256 << 20
OWN_FOLDERS = frozenset(
    ("images", "faces", "tracks", "crops", "runs", "gone", "views", "reports", "forgotten", "_manifest", "_staging", "_archives")
)


def remove_reports(storage: Storage, output: str, run_ids: Collection[str]) -> None:
    """Remove what the reports of these runs say and show, but their logs, and the pages about all runs, which come with each report."""
    for run_id in run_ids:
        storage.remove(*(join(output, "reports", run_id, name) for name in (PICTURE_FILE, PAGE_FILE, AGGREGATES_FILE)))
    if run_ids:
        folder = join(output, "reports", "")
        storage.remove(
            *(one.image_uri for one in storage.list_files(folder) if one.error is None and "/" not in one.image_uri[len(folder) :])
        )


def write_reports(storage: Storage, output: str, run_ids: Iterable[str]) -> int:
    """Write the reports of these runs anew, the oldest first, since the later ones compare; gives how many could be written."""
    runs = []
    for run_id in run_ids:
        run = run_of(storage, output, run_id)
        if run.is_published():
            runs.append((read_run(run), run))
    written = 0
    for row, run in sorted(runs, key=lambda pair: (pair[0]["finished_at"], pair[1].run_id)):
        try:
            write_report(_as_it_was(run, row), row)
            written += 1
        except (FerRayError, OSError, ValueError) as error:
            LOGGER.warning("the report of run %s is removed, and could not be written anew: %s", run.run_id, error)
    return written


def clean_logs(storage: Storage, output: str, addresses: Addresses) -> None:
    """Take the lines that name one of the addresses out of the logs of runs."""
    for entry in list(storage.list_files(join(output, "reports"))):
        if entry.image_uri.endswith(f"/{LOG_FILE}"):
            try:
                lines = storage.read(entry.image_uri, 2 * MAX_BYTES)
            except FileNotFoundError:
                continue
            if (kept := addresses.without_lines(lines)) != lines:
                storage.write(entry.image_uri, kept)


class Exports:
    """What other commands wrote into the output, and what lies there besides."""

    def __init__(self, storage: Storage, output: str) -> None:
        self._storage = storage
        self.files: list[str] = []
        for entry in storage.list_files(output):
            below = entry.image_uri[len(output.rstrip("/")) + 1 :]
            if below.partition("/")[0] not in OWN_FOLDERS and entry.error is None and not below.rpartition("/")[2].startswith("_writing-"):
                self.files.append(entry.image_uri)

    def remove(self, addresses: Addresses, ids: set[str]) -> tuple[int, list[str]]:
        """Remove exported faces, and whole audits that show one.

        Returns:
            How many files are gone, and the addresses of those that nothing is known of.
        """
        removed, known = 0, set[str]()
        for uri in self.files:
            folder, _, name = uri.rpartition("/")
            if name == FACES_FILE:
                known.update(other for other in self.files if other.startswith(f"{folder}/"))
                removed += self._remove_faces(uri, addresses)
            elif name == SAMPLE_FILE and (shown := _image_ids(self._read(uri))):
                known.update(other for other in self.files if other.startswith(f"{folder}/"))
                if shown & ids:
                    self._storage.remove(*(join(folder, other) for other in AUDIT_FILES))
                    removed += 1
        return removed, [uri for uri in self.files if uri not in known]

    def _remove_faces(self, uri: str, addresses: Addresses) -> int:
        rows = list(csv.DictReader(io.StringIO(self._read(uri).decode(errors="surrogateescape"))))
        gone = [row for row in rows if addresses.covers(row.get("image_uri") or "")]
        if gone:
            self._storage.remove(*(join(uri.rpartition("/")[0], row["file"].rpartition("/")[2]) for row in gone))
            text = io.StringIO()
            written = csv.DictWriter(text, list(rows[0]))
            written.writeheader()
            written.writerows(row for row in rows if row not in gone)
            self._storage.write(uri, text.getvalue().encode(errors="surrogateescape"))
        return len(gone)

    def _read(self, uri: str) -> bytes:
        return self._storage.read(uri, MAX_EXPORT_BYTES)


def _image_ids(content: bytes) -> set[str]:
    """Those of an audit's sample; none of another file of that name."""
    try:
        faces: list[dict[str, Any]] = json.loads(content)["faces"]
        return {str(face["image_id"]) for face in faces}
    except (ValueError, KeyError, TypeError):
        return set()


def run_of(storage: Storage, output: str, run_id: str) -> Run:
    """A run by its name alone, to find its files by."""
    config = LabelConfig((), output, run_id=run_id)
    return Run(run_id, config.date(), (), output, "", "", config, storage)


def _as_it_was(run: Run, row: dict[str, Any]) -> Run:
    """With what its report asks of its settings."""
    settings = json.loads(row["config_json"]).get("config", {})
    asked = {name: settings[name] for name in _ASKED if name in settings}
    config = LabelConfig((), run.output, run_id=run.run_id, run_date=row["run_date"].isoformat(), **asked)
    return Run(run.run_id, row["run_date"], (), run.output, "", row["model_version"], config, run.storage)
