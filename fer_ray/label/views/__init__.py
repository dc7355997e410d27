"""SQL for analysts: views over the committed runs, for DuckDB and for Athena; their text is in the templates beside this file."""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections.abc import Iterable
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader, StrictUndefined

from fer_ray.emotions import EMOTIONS, UNKNOWN
from fer_ray.io.storage import S3, Storage, join
from fer_ray.label.incremental import gone
from fer_ray.schema import FACES, GONE, IMAGES, RUNS, TRACKS, since

UNKNOWN_ADDRESS = "s3://BUCKET/PREFIX"
NO_RUN_DATE = "2020-01-01"
_ATHENA_TYPES = {
    pa.string(): "string",
    pa.bool_(): "boolean",
    pa.int32(): "int",
    pa.int64(): "bigint",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.date32(): "date",
    pa.timestamp("us"): "timestamp",
    pa.timestamp("us", tz="UTC"): "timestamp",
}
# Of every run its place in time, and the model that the views of what is latest show: all from one look at the runs.
_RANKED_RUNS = """\
        SELECT run_id, row_number() OVER (ORDER BY finished_at, run_id) AS place,
            last_value(coalesce(latest_model_version, model_version)) OVER (
                ORDER BY finished_at, run_id ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
            ) AS shown
        FROM runs"""
_DUCKDB_TYPES = {"string": "VARCHAR", "timestamp": "TIMESTAMP"}  # the others have the same name


def write_views(storage: Storage, output: str) -> None:
    """Leave `views/duckdb.sql` and `views/athena.sql` beside the tables, unless they are there as they should be.

    An empty file names the place that they were written for: in a copy of the output it stands below another one.
    """
    scripts = {
        "duckdb.sql": duckdb_views(output, storage.s3_endpoint, _has_tracks(storage, output)),
        "athena.sql": athena_views(output, _first_run_date(storage, output)),
        _place(output): "",
    }
    _write_no_gone(storage, output)
    stale = [entry.image_uri for entry in storage.list_files(join(output, "views")) if "/place-" in entry.image_uri[len(output) :]]
    storage.remove(*(uri for uri in stale if not uri.endswith(_place(output))))
    for name, script in scripts.items():
        uri, content = join(output, "views", name), script.encode(errors="surrogateescape")
        try:
            if storage.read(uri) == content:
                continue
        except FileNotFoundError:
            pass
        storage.write(uri, content)


def _write_no_gone(storage: Storage, output: str) -> None:
    """A file of no rows, without which DuckDB finds nothing to read where no image has ever gone."""
    file = gone.file_of(output, gone.NONE)
    if storage.stat(file) is None:
        with storage.writing(file) as path:
            pq.write_table(GONE.empty_table(), path)


def _place(output: str) -> str:
    return f"place-{hashlib.sha256(output.encode()).hexdigest()[:12]}"


def duckdb_views(output: str, s3_endpoint: str = "", has_tracks: bool = False) -> str:
    """A script for DuckDB that makes the views that docs/tables.md lists.

    With `has_tracks` also `tracks` and `tracks_latest`: DuckDB reads no table without files, and 0.1 left none.

    Files of every schema version are read: columns that none of them has are null. It works from any directory; in a copy of the
    output, from inside of the copy. run_date comes from `runs`: a folder above the output may look like a partition as well.
    """
    store = urlsplit(s3_endpoint)
    endpoint = (
        f", ENDPOINT {_quoted(store.netloc)}, URL_STYLE 'path', USE_SSL {str(store.scheme == 'https').lower()}" if s3_endpoint else ""
    )
    literal = re.sub(r"[*?\[]", r"[\g<0>]", output)  # a name is no pattern
    return _render(
        "duckdb.sql.j2",
        on_s3=output.startswith(S3),
        endpoint=endpoint,
        place=_place(output),
        output=_quoted(literal),
        run_columns=_wrapped(RUNS.names),
        image_columns=_selected(IMAGES),
        face_columns=_selected(FACES),
        added_to_runs=_added(RUNS),
        added_to_images=_added(IMAGES),
        added_to_faces=_added(FACES),
        track_columns=_selected(TRACKS),
        has_tracks=has_tracks,
        gone_files=gone.FOLDER,
    )


def athena_views(output: str, first_date: str = NO_RUN_DATE) -> str:
    """Statements for Athena that make the same views, over external tables whose types follow from the schemas.

    Partitions are projected from `first_date`, YYYY-MM-DD, on: no crawler and no MSCK REPAIR has to follow a run.
    """
    address = output if output.startswith(S3) else UNKNOWN_ADDRESS
    projection = {"enabled": "true", "run_date.type": "date", "run_date.format": "yyyy-MM-dd", "run_date.range": f"{first_date},NOW+1DAYS"}
    return _render(
        "athena.sql.j2",
        in_folder=address != output,
        unknown_address=UNKNOWN_ADDRESS,
        first_date=first_date,
        projection=_listed(f"'projection.{name}' = '{value}'" for name, value in projection.items()),
        runs=_quoted_for_hive(join(address, "runs", "")),
        images=_quoted_for_hive(join(address, "images", "")),
        faces=_quoted_for_hive(join(address, "faces", "")),
        tracks=_quoted_for_hive(join(address, "tracks", "")),
        run_types=_typed(RUNS),
        image_types=_typed(IMAGES),
        face_types=_typed(FACES),
        track_types=_typed(TRACKS),
        gone=_quoted_for_hive(join(address, gone.FOLDER, "")),
        gone_types=_typed(GONE),
        image_columns=_selected(IMAGES),
        face_columns=_selected(FACES),
        track_columns=_selected(TRACKS),
    )


def _render(template: str, **values: object) -> str:
    environment = Environment(
        loader=PackageLoader(__name__, ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - SQL; names are quoted below
    )
    return environment.get_template(template).render(values, ranked_runs=_RANKED_RUNS, labels=(*EMOTIONS, UNKNOWN))


def _first_run_date(storage: Storage, output: str) -> str:
    """The oldest run date that has images: names are listed in order, so the first tells."""
    first = next(storage.list_files(join(output, "images")), None)
    found = re.search(r"/run_date=(\d{4}-\d\d-\d\d)/[^/]*$", first.image_uri) if first else None
    return found[1] if found else NO_RUN_DATE


def _has_tracks(storage: Storage, output: str) -> bool:
    return any(entry.image_uri.endswith(".parquet") for entry in storage.list_files(join(output, "tracks")))


def _typed(schema: pa.Schema) -> str:
    return _listed(f"{field.name} {_ATHENA_TYPES[field.type]}" for field in schema)


def _selected(schema: pa.Schema) -> str:
    """The columns of a view; where there is no name of a model yet, its version is one."""
    named = {"model_name": "coalesce(files.model_name, files.model_version) AS model_name"}
    return _wrapped(named.get(name, f"files.{name}") for name in schema.names)


def _added(schema: pa.Schema) -> str:
    """Columns of no rows, for those that files of schema version 1 lack: were there no others, the view would not know them."""
    kinds = {field.name: _ATHENA_TYPES[field.type] for field in schema if since(field) > 1}
    return _wrapped(f"NULL::{_DUCKDB_TYPES.get(kind, kind.upper())} AS {name}" for name, kind in kinds.items())


def _listed(items: Iterable[str]) -> str:
    return ",\n".join(f"    {item}" for item in items)


def _wrapped(names: Iterable[str]) -> str:
    return textwrap.fill(", ".join(names), width=120, initial_indent="    ", subsequent_indent="    ")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _quoted_for_hive(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
