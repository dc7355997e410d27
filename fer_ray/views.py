"""SQL for analysts: tables and views over the committed runs, for DuckDB and for Athena."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pyarrow as pa

from fer_ray.schema import FACES, IMAGES, RUNS
from fer_ray.storage import S3, Storage, join

LINE_LENGTH = 120
TO_FILL_IN = "s3://BUCKET/PREFIX"
FIRST_RUN_DATE = "2020-01-01"  # where no file tells
_ATHENA_TYPES = {
    pa.string(): "string",
    pa.bool_(): "boolean",
    pa.int32(): "int",
    pa.int64(): "bigint",
    pa.float32(): "float",
    pa.date32(): "date",
    pa.timestamp("us", tz="UTC"): "timestamp",
}

_DUCKDB = """\
-- The views runs, images, faces, images_latest and faces_latest, for DuckDB 1.4 and later. Written by fer_ray at every run.
--
--     duckdb -init duckdb.sql                                          the command line
--     duckdb.sql(open("duckdb.sql", encoding="utf-8").read())          Python
--
-- All views show committed runs only. images_latest has each image once, as its newest run found it.
-- "No files found" means that no run has labeled anything yet: load this file again when one has.{access}

CREATE OR REPLACE VIEW runs AS
SELECT
{runs_columns}
FROM read_parquet({runs_files}, union_by_name = true, hive_partitioning = false);

-- In every view what commits stands before what it commits: DuckDB lists files in the order of FROM, and a run that is
-- committed between two listings must be seen whole or not at all. run_date comes from runs, as folders above these
-- tables may be called like a column, too.{views}"""

_S3_ACCESS = """
--
-- Reading S3 needs the extensions httpfs and aws (INSTALL httpfs; INSTALL aws; once), and credentials, such as those of the AWS chain:
--     CREATE SECRET (TYPE s3, PROVIDER credential_chain{endpoint});"""

_ATHENA = """\
-- The tables images_files, faces_files and runs, and over them the views images, faces, images_latest and faces_latest, for Athena.
-- Written by fer_ray at every run. Athena takes one statement at a time; run them in order, in a database of their own
-- (CREATE DATABASE fer_ray). New runs need nothing more: partition projection finds their files by date.
-- Run dates from {first_date} to tomorrow are read: after a run with an earlier date, or an upgrade that adds columns,
-- DROP TABLE images_files, faces_files and runs (that removes no data) and run this file again.{access}

CREATE EXTERNAL TABLE IF NOT EXISTS runs (
{runs_columns}
)
STORED AS PARQUET
LOCATION {runs_files};

CREATE EXTERNAL TABLE IF NOT EXISTS images_files (
{images_columns}
)
PARTITIONED BY (run_date string)
STORED AS PARQUET
LOCATION {images_files}
TBLPROPERTIES ({projection});

CREATE EXTERNAL TABLE IF NOT EXISTS faces_files (
{faces_columns}
)
PARTITIONED BY (run_date string)
STORED AS PARQUET
LOCATION {faces_files}
TBLPROPERTIES ({projection});

-- All views show committed runs only. What is larger stands first in every join: Athena holds the other side in memory.{views}"""

_NOT_IN_S3 = """
-- These tables lie in a folder, and Athena reads S3 only: copy runs, images and faces there, and put the address for """ + TO_FILL_IN + "."

_COMMITTED = "(SELECT DISTINCT run_id, run_date FROM runs) AS committed"
_VIEWS = """

CREATE OR REPLACE VIEW images AS
SELECT
{images_columns}
FROM {images} ON files.run_id = committed.run_id;

CREATE OR REPLACE VIEW faces AS
SELECT
{faces_columns}
FROM {faces} ON files.run_id = committed.run_id;

CREATE OR REPLACE VIEW images_latest AS
SELECT images.*
FROM {latest} ON images.image_id = newest.image_id AND images.run_id = newest.run_id;

CREATE OR REPLACE VIEW faces_latest AS
SELECT faces.*
FROM {latest_faces} ON faces.image_id = images_latest.image_id AND faces.run_id = images_latest.run_id;
"""
_NEWEST = """(
    SELECT images.image_id, max_by(images.run_id, ranked.place) AS run_id
    FROM images JOIN (SELECT run_id, row_number() OVER (ORDER BY finished_at, run_id) AS place FROM runs) AS ranked
        ON images.run_id = ranked.run_id
    GROUP BY images.image_id
) AS newest"""
