"""The committed files as Iceberg tables in a catalog: registered where they lie, each run once, and anew where a file changed."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.errors import PublishError, UsageError
from fer_ray.io.storage import Storage, join
from fer_ray.label.run import Run
from fer_ray.schema import FACES, IMAGES, RUNS, TRACKS, meaning_of
from fer_ray.text import plural, sanitize

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

LOGGER = logging.getLogger(__name__)
# `runs` is last, as it is in a commit. Crops are pictures of faces, which stay in the output.
TABLES = {"images": IMAGES, "faces": FACES, "tracks": TRACKS, "runs": RUNS}
RUN_IDS = "fer-ray.run-ids"  # in the summary of a snapshot: the runs that it registered
OUTPUT = "fer-ray.output"  # among the properties of a table: the output whose files it has
MAX_TRIES = 4  # of a commit that another one overtook
MAX_SECONDS = 1800.0  # for all of it: a first time registers a whole history
READER_THREADS = 16
REASON_LENGTH = 300  # characters
_SECRET = re.compile(r"password|secret|token|credential|key", re.IGNORECASE)
_PROPERTIES = {
    "gc.enabled": "false",  # the files are those of the output: no maintenance of a table may remove them
    "commit.retry.num-retries": "0",  # whoever was overtaken has to look again which runs are registered
    # The catalog's own files hold no least and greatest address, name or place: what is forgotten in the output is not kept there.
    "write.metadata.metrics.default": "counts",
    **{f"write.metadata.metrics.column.{name}": "full" for name in ("run_id", "labeled_at", "confidence", "finished_at")},
}


def check_catalog(run: Run) -> None:
    """Check what can be known of the catalog of `--publish` before anything is labeled; it is not asked, as it may be away.

    Raises:
        UsageError: pyiceberg is not installed, its configuration has no such catalog, or the output lies where Iceberg does not read.
    """
    if run.output.startswith("az://"):
        raise UsageError(f"The setting publish does not take {run.output}: Iceberg tables are read from folders, s3:// and gs://.")
    _settings(run)


def register(run: Run) -> None:
    """Register the files of all committed runs that the catalog does not have, and anew those that changed since.

    Raises:
        PublishError: the catalog could not be told, or has other tables of these names; the runs stay committed.
    """
    settings: Mapping[str, str] = {}
    try:
        settings = _settings(run)
        count = _in_time(lambda: _register(run, settings))
    except PublishError:
        raise
    except Exception as error:  # a catalog is one of a dozen programs, each with errors of its own
        raise PublishError(
            f"Run {run.run_id} is committed in {run.output}, but {run.config.publish} does not have it ({_reason(error, settings)}): "
            "start the same command again, or leave it to the next night, which registers whatever is missing."
        ) from error
    LOGGER.info("%s: %s", run.config.publish, f"{plural(count, 'run')} registered" if count else "has all runs")


def _in_time(work: Callable[[], int]) -> int:
    """What it gives, from a thread that holds up no end of the process: pyiceberg waits for ever for a server that says nothing."""
    answers: SimpleQueue[int | Exception] = SimpleQueue()

    def answer() -> None:
        try:
            answers.put(work())
        except Exception as error:  # noqa: BLE001 - raised below
            answers.put(error)

    Thread(target=answer, daemon=True).start()
    try:
        answered = answers.get(timeout=MAX_SECONDS)
    except Empty:
        raise TimeoutError(f"it was not done within {MAX_SECONDS:g} s") from None
    if isinstance(answered, Exception):
        raise answered
    return answered


def _register(run: Run, settings: Mapping[str, str]) -> int:
    """Register the tables; gives the count of runs."""
    catalog, count = _load(run, settings), 0
    committed = _files(run.storage, join(run.output, "runs"))
    for name, schema in TABLES.items():
        files = _files(run.storage, join(run.output, name), committed) if name != "runs" else committed
        count = max(count, _register_table(run, catalog, name, schema, files))
    return count


def _settings(run: Run) -> dict[str, str]:
    """What pyiceberg's configuration says of the catalog."""
    name = _names(run)[0]
    try:
        from pyiceberg.utils.config import Config

        found: Any = Config().get_catalog_config(name)
    except ImportError as error:
        raise UsageError("The setting publish needs pyiceberg: pip install 'fer-ray[iceberg]'.") from error
    except Exception as error:  # whatever a YAML file may have
        raise UsageError(f"The configuration of pyiceberg cannot be read ({_reason(error, {})}): correct ~/.pyiceberg.yaml.") from error
    if not found:
        variable = f"PYICEBERG_CATALOG__{name.upper().replace('-', '_')}__URI"
        raise UsageError(f"There is no catalog {name}: describe it in ~/.pyiceberg.yaml, or by {variable} and its like.")
    endpoint = {"s3.endpoint": run.storage.s3_endpoint} if run.storage.s3_endpoint else {}
    return {**endpoint, **found}


def _names(run: Run) -> tuple[str, tuple[str, ...]]:
    catalog, *namespace = run.config.publish.removeprefix("iceberg:").split(".")
    return catalog, tuple(namespace)


def _load(run: Run, settings: Mapping[str, str]) -> Catalog:
    from pyiceberg.catalog import load_catalog

    name, namespace = _names(run)
    catalog = load_catalog(name, **settings)
    for depth in range(1, len(namespace) + 1):
        catalog.create_namespace_if_not_exists(namespace[:depth])
    return catalog


def _files(storage: Storage, folder: str, committed: Mapping[str, Any] | None = None) -> dict[str, dict[str, int]]:
    """The sizes of a table's files by address, for each run of `committed`; `runs` has a file for each run, named after it."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for entry in storage.list_files(folder):
        stem = PurePosixPath(entry.image_uri).stem
        run_id = stem if committed is None else stem.rpartition("-")[0]
        if entry.image_uri.endswith(".parquet") and entry.size_bytes and (committed is None or run_id in committed):
            found[run_id][entry.image_uri] = entry.size_bytes
    return {run_id: found[run_id] for run_id in sorted(found)}


def _register_table(run: Run, catalog: Catalog, name: str, schema: pa.Schema, files: Mapping[str, Mapping[str, int]]) -> int:
    """Register what is missing, and begin anew where another process was faster; gives the count of runs."""
    from pyiceberg.exceptions import CommitFailedException

    for _ in range(MAX_TRIES - 1):
        try:
            return _commit(run, _open(run, catalog, name, schema), files)
        except CommitFailedException:
            continue
    return _commit(run, _open(run, catalog, name, schema), files)


def _open(run: Run, catalog: Catalog, name: str, schema: pa.Schema) -> Table:
    """The table as this version writes it: made where there is none, with the columns that it lacks."""
    from pyiceberg.exceptions import NoSuchTableError

    identifier = (*_names(run)[1], name)
    documented = pa.schema([field.with_metadata({"doc": meaning_of(field)}) for field in schema])
    try:
        table = catalog.load_table(identifier)
    except NoSuchTableError:
        properties = {**_PROPERTIES, OUTPUT: run.output}
        with catalog.create_table_transaction(identifier, documented, properties=properties) as made, made.update_spec() as spec:
            spec.add_identity("run_id")
        table = catalog.load_table(identifier)
    if (other := table.properties.get(OUTPUT)) != run.output:
        place = f"{run.config.publish}.{name}"
        raise PublishError(f"The run is committed, but the table {place} is that of {other or 'others'}: name another namespace.")
    if set(schema.names) - set(table.schema().column_names):
        with table.update_schema() as update:
            update.union_by_name(documented)
    return table


def _commit(run: Run, table: Table, files: Mapping[str, Mapping[str, int]]) -> int:
    """Register in one step what is missing, instead of what is there no more as it was registered; gives the count of runs."""
    registered = _registered(table)
    changed = {run_id for run_id, held in registered.items() if _has_changed(run, held, files.get(run_id, {}))}
    missing = [run_id for run_id in files if run_id in changed or run_id not in registered]
    if not missing and not changed:
        return 0
    added = _with_rows(run.storage, [uri for run_id in missing for uri in files[run_id]])
    summary = {RUN_IDS: ",".join(missing)}
    with table.transaction() as transaction:
        if changed:
            transaction.delete("run_id IN ({})".format(", ".join(f"'{run_id}'" for run_id in sorted(changed))))
        if added:
            transaction.add_files(added, snapshot_properties=summary)
        else:
            with transaction.update_snapshot(snapshot_properties=summary).fast_append():
                pass  # it says that these runs have no rows here
    return len(missing)


def _registered(table: Table) -> dict[str, dict[str, int]]:
    """The runs of the table, with the sizes of their files as registered.

    A run without rows stands in the summary of a snapshot alone; one whose snapshot expired is known by its files.
    """
    from pyiceberg.table.snapshots import ancestors_of

    held: dict[str, dict[str, int]] = {}
    for snapshot in ancestors_of(table.current_snapshot(), table.metadata):
        listed = snapshot.summary.additional_properties.get(RUN_IDS, "") if snapshot.summary else ""
        held.update({run_id: {} for run_id in listed.split(",") if run_id})
    for task in table.scan().plan_files():
        held.setdefault(str(task.file.partition[0]), {})[task.file.file_path] = task.file.file_size_in_bytes
    return held


def _has_changed(run: Run, held: Mapping[str, int], present: Mapping[str, int]) -> bool:
    """Whether a registered file of the output is gone or another one; what others made of it, as by compaction, is theirs."""
    return any(present.get(path) != size for path, size in held.items() if path.startswith(join(run.output, "")))


def _with_rows(storage: Storage, uris: Sequence[str]) -> list[str]:
    """The files that have rows: the others have no statistics that would name their run."""

    def count(uri: str) -> int:
        with storage.open(uri, read_ahead=1 << 16) as opened:
            return int(pq.read_metadata(opened).num_rows)

    with ThreadPoolExecutor(READER_THREADS) as threads:
        return [uri for uri, rows in zip(uris, threads.map(count, uris), strict=True) if rows]


def _reason(error: BaseException, settings: Mapping[str, str]) -> str:
    """The first line of the error, or of what the network or disk said beneath it, without what the configuration keeps secret."""
    told, inner = error, error.__cause__ or error.__context__
    while inner is not None:
        told, inner = inner if isinstance(inner, OSError) else told, inner.__cause__ or inner.__context__
    line = next(iter(str(told).strip().splitlines()), "") or type(told).__name__
    secrets = [value for key, value in settings.items() if _SECRET.search(key)] + [urlsplit(settings.get("uri", "")).password or ""]
    for secret in filter(None, secrets):
        line = line.replace(secret, "...")
    return sanitize(line[:REASON_LENGTH])
