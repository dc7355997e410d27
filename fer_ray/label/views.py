"""SQL for analysts: views over the committed runs, for DuckDB and for Athena."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from urllib.parse import urlsplit

import pyarrow as pa

from fer_ray.io.storage import S3, Storage, join
from fer_ray.schema import FACES, IMAGES, RUNS

UNKNOWN_ADDRESS = "s3://BUCKET/PREFIX"
NO_RUN_DATE = "2020-01-01"
_ATHENA_TYPES = {
    pa.string(): "string",
    pa.bool_(): "boolean",
    pa.int32(): "int",
    pa.int64(): "bigint",
    pa.float32(): "float",
    pa.date32(): "date",
    pa.timestamp("us", tz="UTC"): "timestamp",
}

_NEWEST = """(
    SELECT images.image_id, max_by(images.run_id, ranked.place) AS run_id
    FROM images JOIN (SELECT run_id, row_number() OVER (ORDER BY finished_at, run_id) AS place FROM runs) AS ranked
        ON images.run_id = ranked.run_id
    GROUP BY images.image_id
) AS newest"""

_DUCKDB = """\
-- Views over these tables, for DuckDB 1.4 and later; written by fer_ray with every run.
--     duckdb -init duckdb.sql                                       on the command line
--     duckdb.sql(open("duckdb.sql", encoding="utf-8").read())       in Python
-- They show committed runs only, new ones by themselves. images_latest has each image once, as its newest run left it.
-- "No files found" says that no run has labeled anything yet: load this file again when one has.
{access}
-- In every view what commits stands before what it commits: DuckDB lists files in the order of FROM, and a run that is
-- committed in between must be seen as a whole or not at all.

CREATE OR REPLACE VIEW runs AS
SELECT
{run_columns}
FROM read_parquet({runs}, union_by_name = true, hive_partitioning = false);

CREATE OR REPLACE VIEW images AS
SELECT
{image_columns},
    runs.run_date
FROM runs JOIN read_parquet({images}, union_by_name = true, hive_partitioning = false) AS files
    ON files.run_id = runs.run_id;

CREATE OR REPLACE VIEW faces AS
SELECT
{face_columns},
    runs.run_date
FROM runs JOIN read_parquet({faces}, union_by_name = true, hive_partitioning = false) AS files
    ON files.run_id = runs.run_id;

CREATE OR REPLACE VIEW images_latest AS
SELECT images.*
FROM {newest} JOIN images ON images.image_id = newest.image_id AND images.run_id = newest.run_id;

CREATE OR REPLACE VIEW faces_latest AS
SELECT faces.*
FROM images_latest JOIN faces ON faces.image_id = images_latest.image_id AND faces.run_id = images_latest.run_id;
"""

_DUCKDB_S3 = """\
-- To read S3: INSTALL httpfs; INSTALL aws; once, and then in each session, with credentials as the AWS tools find them,
--     CREATE SECRET (TYPE s3, PROVIDER credential_chain{endpoint});
"""

_ATHENA = """\
-- Tables and views over these files, for Athena; written by fer_ray with every run.
-- Run the statements one by one, in a database of their own (CREATE DATABASE fer_ray). The views show committed runs only,
-- new ones by themselves. images_latest has each image once, as its newest run left it.
-- Athena reads the run dates from {first_date} to tomorrow. After a run with an earlier date, or an upgrade that adds columns,
-- DROP TABLE runs, images_files and faces_files, which leaves the files alone, and run this file again.
{access}
CREATE EXTERNAL TABLE IF NOT EXISTS runs (
{run_columns}
)
STORED AS PARQUET
LOCATION {runs};

CREATE EXTERNAL TABLE IF NOT EXISTS images_files (
{image_types}
)
PARTITIONED BY (run_date string)
STORED AS PARQUET
LOCATION {images}
TBLPROPERTIES (
{projection}
);

CREATE EXTERNAL TABLE IF NOT EXISTS faces_files (
{face_types}
)
PARTITIONED BY (run_date string)
STORED AS PARQUET
LOCATION {faces}
TBLPROPERTIES (
{projection}
);

-- What is small stands last in every join: Athena holds that side in memory.

CREATE OR REPLACE VIEW images AS
SELECT
{image_columns},
    CAST(files.run_date AS date) AS run_date
FROM images_files AS files JOIN runs ON files.run_id = runs.run_id;

CREATE OR REPLACE VIEW faces AS
SELECT
{face_columns},
    CAST(files.run_date AS date) AS run_date
FROM faces_files AS files JOIN runs ON files.run_id = runs.run_id;

CREATE OR REPLACE VIEW images_latest AS
SELECT images.*
FROM images JOIN {newest} ON images.image_id = newest.image_id AND images.run_id = newest.run_id;

CREATE OR REPLACE VIEW faces_latest AS
SELECT faces.*
FROM faces JOIN images_latest ON faces.image_id = images_latest.image_id AND faces.run_id = images_latest.run_id;
"""

_ATHENA_FOLDER = f"""\
-- Athena reads S3 only, and these files lie in a folder: copy runs, images and faces there, and put the address in for {UNKNOWN_ADDRESS}.
"""


def write_views(storage: Storage, output: str) -> None:
    """Leave `views/duckdb.sql` and `views/athena.sql` beside the tables, unless they are there as they should be."""
    scripts = {
        "duckdb.sql": duckdb_views(output, storage.s3_endpoint),
        "athena.sql": athena_views(output, _first_run_date(storage, output)),
    }
    for name, script in scripts.items():
        uri, content = join(output, "views", name), script.encode(errors="surrogateescape")
        try:
            if storage.read(uri) == content:
                continue
        except FileNotFoundError:
            pass
        storage.write(uri, content)


def duckdb_views(output: str, s3_endpoint: str = "") -> str:
    """A script for DuckDB that makes the views `runs`, `images`, `faces`, `images_latest` and `faces_latest`.

    It works from any directory. run_date comes from `runs`: a folder above the output may look like a partition as well.
    """
    store = urlsplit(s3_endpoint)
    endpoint = (
        f", ENDPOINT {_quoted(store.netloc)}, URL_STYLE 'path', USE_SSL {str(store.scheme == 'https').lower()}" if s3_endpoint else ""
    )
    literal = re.sub(r"[*?\[]", r"[\g<0>]", output)  # a name is no pattern
    return _DUCKDB.format(
        access=_DUCKDB_S3.format(endpoint=endpoint) if output.startswith(S3) else "",
        runs=_quoted(join(literal, "runs", "*.parquet")),
        images=_quoted(join(literal, "images", "*", "*.parquet")),
        faces=_quoted(join(literal, "faces", "*", "*.parquet")),
        run_columns=_wrapped(RUNS.names),
        image_columns=_wrapped([f"files.{name}" for name in IMAGES.names]),
        face_columns=_wrapped([f"files.{name}" for name in FACES.names]),
        newest=_NEWEST,
    )


def athena_views(output: str, first_date: str = NO_RUN_DATE) -> str:
    """Statements for Athena that make the same views, over external tables whose types follow from the schemas.

    Partitions are projected from `first_date`, YYYY-MM-DD, on: no crawler and no MSCK REPAIR has to follow a run.
    """
    address = output if output.startswith(S3) else UNKNOWN_ADDRESS
    projection = {"enabled": "true", "run_date.type": "date", "run_date.format": "yyyy-MM-dd", "run_date.range": f"{first_date},NOW+1DAYS"}
    return _ATHENA.format(
        access="" if address == output else _ATHENA_FOLDER,
        first_date=first_date,
        projection=_listed(f"'projection.{name}' = '{value}'" for name, value in projection.items()),
        runs=_quoted_for_hive(join(address, "runs", "")),
        images=_quoted_for_hive(join(address, "images", "")),
        faces=_quoted_for_hive(join(address, "faces", "")),
        run_columns=_typed(RUNS),
        image_types=_typed(IMAGES),
        face_types=_typed(FACES),
        image_columns=_wrapped([f"files.{name}" for name in IMAGES.names]),
        face_columns=_wrapped([f"files.{name}" for name in FACES.names]),
        newest=_NEWEST,
    )


def _first_run_date(storage: Storage, output: str) -> str:
    """The oldest run date that has images: names are listed in order, so the first tells."""
    first = next(storage.walk(join(output, "images")), None)
    found = re.search(r"/run_date=(\d{4}-\d\d-\d\d)/[^/]*$", first.image_uri) if first else None
    return found[1] if found else NO_RUN_DATE


def _typed(schema: pa.Schema) -> str:
    return _listed(f"{field.name} {_ATHENA_TYPES[field.type]}" for field in schema)


def _listed(items: Iterable[str]) -> str:
    return ",\n".join(f"    {item}" for item in items)


def _wrapped(names: Iterable[str]) -> str:
    return textwrap.fill(", ".join(names), width=120, initial_indent="    ", subsequent_indent="    ")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _quoted_for_hive(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
