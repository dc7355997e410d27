"""The forgetting job: it notes first what is to be forgotten, so that nothing labels it meanwhile, and then removes what is there.

Each step may be broken off and done again: files are replaced under their names, whole before and after, and what has to be known of
them for a later step stands in the note until the note says that all is done.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import os
from collections import Counter
from pathlib import PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from fer_ray.browse.runs import open_tables
from fer_ray.config.jobs.forget import ForgetConfig
from fer_ray.errors import EXIT_DONE, EXIT_FAILED, UsageError
from fer_ray.forget import pages, tables
from fer_ray.forget.addresses import Addresses, read_addresses
from fer_ray.forget.tables import Found
from fer_ray.forget.unfinished import Work, find_work
from fer_ray.io.storage import Storage, join
from fer_ray.label.incremental.forgotten import Record, hash_of, read_records, record_file
from fer_ray.label.outcome import PAGE_FILE
from fer_ray.label.publish import remove_stray_tables
from fer_ray.text import first_few, plural

LOGGER = logging.getLogger(__name__)
SALT_BYTES = 16
STALE_HOURS = 1.0  # half-written files of that age belong to nobody; without runs at work, as --drop-unfinished says, all of them


def forget(config: ForgetConfig) -> tuple[dict[str, Any], int]:
    """Remove what an output holds of some images, and let later runs leave them out.

    Args:
        config: Which images, and where.

    Returns:
        The summary and the exit code, which is 1 where unfinished runs hold some of the images still.

    Raises:
        UsageError: an address is none, or the output holds no tables; nothing was written.
        FerRayError: it stopped half-way; the same command goes on.
    """
    storage, output = open_tables(config)
    addresses = read_addresses(storage, config)
    if addresses.covers(output):
        raise UsageError(f"The output {output} lies in what is to be forgotten: name what lies beside it.")
    return _Forgetting(storage, output, addresses, config).run()


class _Forgetting:
    """One request at work on one output."""

    def __init__(self, storage: Storage, output: str, addresses: Addresses, config: ForgetConfig) -> None:
        self.storage, self.output, self.addresses, self.config = storage, output, addresses, config
        if not self._committed() and not find_work(storage, output):
            raise UsageError(f"{output} holds no tables: name the output of `fer-ray label`.")

    def run(self) -> tuple[dict[str, Any], int]:
        record = None if self.config.dry_run else self._note()
        # In this order, after the note: a run that is committed meanwhile has either read the note, or is seen here.
        work = find_work(self.storage, self.output)
        self.committed = self._committed()
        self.unfinished = {run_id: one for run_id, one in work.items() if run_id not in self.committed}
        held = [one for one in self.unfinished.values() if one.holds(self.storage, self.addresses)]
        files = tables.find(self.storage, self.output, self.addresses)
        found = [one for one in files if one.run_id not in self.unfinished]  # what is about to be published is its run's to write
        readers = [one for one in self.unfinished.values() if found and one.reads_tables]
        if record is None:
            return self._summary("dry_run", self._counts(found), held or readers), EXIT_DONE
        if self.config.drop_unfinished:
            self._drop({one.run_id: one for one in [*held, *readers]})
            held = []
        elif readers:
            LOGGER.warning(
                "the relabeling run %s is not finished and reads these tables: the images are noted, and nothing else is done yet. "
                "Start the same command again when it has ended, or with --drop-unfinished if it is not at work.",
                first_few(one.run_id for one in readers),
            )
            return self._summary("waiting", {}, readers), EXIT_FAILED
        record = self._note_found(record, found)
        for run_id in work.keys() & self.committed:
            work[run_id].remove(self.storage, self.output)  # what it could not remove itself
        removed = self._remove(found, record)
        if not held:  # one that held them may have been published meanwhile, and have read no note before
            self._write(dataclasses.replace(record, completed=record.completed + 1, is_complete=True, runs=(), reports=()))
        self._say(removed, held, is_first=not record.removed.get("images"))
        summary = self._summary("waiting" if held else "done", removed, held)
        return {**summary, "note": record_file(self.output, record)}, EXIT_FAILED if held else EXIT_DONE

    def _committed(self) -> set[str]:
        return {PurePosixPath(uri).stem for uri in tables.parquet_files(self.storage, join(self.output, "runs"))}

    def _note(self) -> Record:
        """Write the note, or take up that of the same command."""
        records = read_records(self.storage, self.output)
        salt = min((one.salt for one in records), default=os.urandom(SALT_BYTES))
        hashes = tuple(sorted(hash_of(salt, name) for name in self.addresses.names))
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record = Record(salt, hashes, now)
        record = dataclasses.replace(next((one for one in records if one.name == record.name), record), is_complete=False)
        self._write(record)
        return record

    def _note_found(self, record: Record, found: list[Found]) -> Record:
        """Add what was found to the note; what stands there was found by a start of this command that was broken off."""
        counts = Counter(record.removed)
        if not record.runs:
            counts.update(self._counts(found))
        runs = {one.run_id for one in found}.union(record.runs, filter(self._is_named_by, self.committed))
        reports = {run_id for run_id in runs if self._has_report(run_id)}.union(record.reports)
        record = dataclasses.replace(record, removed=dict(counts), runs=tuple(sorted(runs)), reports=tuple(sorted(reports)))
        self._write(record)
        return record

    def _has_report(self, run_id: str) -> bool:
        return self.storage.stat(join(self.output, "reports", run_id, PAGE_FILE)) is not None

    def _write(self, record: Record) -> None:
        self.storage.write(record_file(self.output, record), record.to_json())

    def _drop(self, unfinished: dict[str, Work]) -> None:
        for run_id, work in unfinished.items():
            work.remove(self.storage, self.output)
            remove_stray_tables(pages.run_of(self.storage, self.output, run_id), 0)
            del self.unfinished[run_id]
            LOGGER.info("removed the unfinished work of run %s", run_id)

    def _remove(self, found: list[Found], record: Record) -> dict[str, int]:
        """All steps, in an order in which each finds what it needs if it is done again: the rows of `images` go last."""
        storage, output, addresses = self.storage, self.output, self.addresses
        ids = addresses.image_ids.union(*(one.ids for one in found))
        exported, unknown = pages.Exports(storage, output).remove(addresses, ids)
        if unknown:
            LOGGER.warning("%s in the output that are not fer_ray's: look at them yourself", plural(len(unknown), "file"))
        pages.remove_reports(storage, output, record.runs)
        removed = {"images": 0, "faces": 0, "crops": 0, "tracks": 0}
        for rows in found:
            removed["crops"] += tables.remove_crops(storage, join(output, "crops", rows.file), rows.ids)
            for table in ("tracks", "faces", "images"):
                removed[table] += self._remove_rows(join(output, table, rows.file))
        self._remove_elsewhere()
        for run_id in sorted(self.committed.intersection(record.runs)):
            tables.recount(storage, output, run_id, addresses)
        pages.clean_logs(storage, output, addresses)
        reports = pages.write_reports(storage, output, record.reports)
        now, hours = datetime.datetime.now(datetime.UTC), 0.0 if self.config.drop_unfinished else STALE_HOURS
        storage.remove_stale(output, now - datetime.timedelta(hours=hours))
        versions = storage.remove_old_versions(output)
        if versions is None:
            LOGGER.warning("old versions and soft-deleted objects of this store are not reached from here: let its own rules remove them")
        return {**removed, "exported_files": exported, "reports": reports, "other_files": len(unknown), "old_versions": versions or 0}

    def _remove_rows(self, uri: str) -> int:
        return tables.remove_rows(self.storage, uri, self.addresses) if self.storage.stat(uri) is not None else 0

    def _remove_elsewhere(self) -> None:
        """From the tables of what is gone, and from the indexes of archives."""
        for uri in tables.parquet_files(self.storage, join(self.output, "gone")):
            self._remove_rows(uri)
        for uri in tables.parquet_files(self.storage, join(self.output, "_archives")):
            if self.addresses.covers(tables.archive_of_index(self.storage, uri)):
                self.storage.remove(uri)
            else:
                self._remove_rows(uri)

    def _is_named_by(self, run_id: str) -> bool:
        """Whether the inputs or settings of a run name one of the addresses, as they may without any row."""
        with self.storage.open(join(self.output, "runs", f"{run_id}.parquet")) as file:
            return tables.is_named_in(pq.read_table(file).to_pylist()[0], self.addresses)

    def _counts(self, found: list[Found]) -> dict[str, int]:
        return {"images": sum(one.images for one in found), "files": len(found)}

    def _summary(self, status: str, counts: dict[str, int], held: list[Work]) -> dict[str, Any]:
        return {
            "status": status,
            "output": self.output,
            "addresses": len(self.addresses.uris),
            "unknown_addresses": self.addresses.unknown,
            **counts,
            "unfinished_runs": [one.run_id for one in held],
        }

    def _say(self, removed: dict[str, int], held: list[Work], is_first: bool) -> None:
        what = f"{plural(removed['images'], 'row')} of images, {removed['faces']:,} of faces and {plural(removed['crops'], 'crop')}"
        LOGGER.info("removed %s; later runs leave out what was named", what)
        if self.addresses.unknown and (is_first or removed["images"]):  # else they were found when the command began
            LOGGER.info(
                "%d of %d addresses are of nothing in the output: noted none the less", self.addresses.unknown, len(self.addresses.uris)
            )
        if held:
            LOGGER.warning(
                "unfinished runs hold some of these images and will leave them out: %s. Start the same command again when they have "
                "ended, or with --drop-unfinished if none is at work.",
                first_few(one.run_id for one in held),
            )
