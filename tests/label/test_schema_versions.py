"""Old tables beside new ones: what `fer-ray label` of version 0.1 wrote stays readable, by itself and with what later runs add."""

import dataclasses
import shutil
import zipfile
from pathlib import Path

import duckdb
import pytest
import sqlglot
from documents import read_as_documented
from rayless import label_without_ray
from sqlglot import expressions

from fer_ray.config.jobs.label import LabelConfig
from fer_ray.io.storage import Storage
from fer_ray.label.run import identify, read_run
from fer_ray.label.views import write_views
from fer_ray.schema import FACES, IMAGES, RUNS, SCHEMA_VERSION, since

RECORDED = Path(__file__).with_name("tables_version_1.zip")  # of night-1 over /archive/photos: a portrait, and a file cut short
SCHEMAS = {"runs": RUNS, "images": IMAGES, "faces": FACES}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    with zipfile.ZipFile(RECORDED) as recorded:
        recorded.extractall(tmp_path / "tables")
    write_views(Storage(), str(tmp_path / "tables"))
    return tmp_path / "tables"


def in_duckdb(output: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.sql((output / "views" / "duckdb.sql").read_text(encoding="utf-8"))
    return connection


def in_athena(output: Path) -> duckdb.DuckDBPyConnection:
    """Athena's tables have the columns that their statements declare, null where a file lacks one."""
    connection = duckdb.connect()
    for statement in sqlglot.parse((output / "views" / "athena.sql").read_text(encoding="utf-8"), dialect="athena"):
        assert isinstance(statement, expressions.Create)
        if statement.kind == "VIEW":
            connection.sql(statement.sql("duckdb"))
            continue
        name = statement.this.this.name
        kinds = ", ".join(f"NULL::{column.kind.sql('duckdb')} AS {column.name}" for column in statement.this.expressions)
        is_partitioned, folder = name in ("images_files", "faces_files", "tracks_files"), output / name.removesuffix("_files")
        files = f"'{folder}/{'*/' * is_partitioned}*.parquet'"
        hive = "hive_partitioning = true, hive_types = {'run_date': VARCHAR}, " if is_partitioned else ""
        there = f"FROM read_parquet({files}, {hive}union_by_name = true) UNION ALL BY NAME"
        is_there = folder.exists()  # 0.1 knew no tracks
        union = f"({there if is_there else 'SELECT NULL AS run_date,'} {'SELECT' * is_there} {kinds} WHERE false)"
        connection.sql(f"CREATE VIEW {name} AS FROM {union}")
    return connection


def test_tables_that_only_version_1_wrote_are_read_with_the_columns_of_now(output: Path) -> None:
    for connection in (in_duckdb(output), in_athena(output)):
        for table, schema in SCHEMAS.items():
            columns = [*schema.names, *(["run_date"] if table != "runs" else [])]
            assert connection.sql(f"FROM {table}").columns == columns
            added = [field.name for field in schema if since(field) > 1 and field.name != "model_name"]
            ((rows, *values),) = connection.sql(f"SELECT count(*), {', '.join(map('count({})'.format, added))} FROM {table}").fetchall()
            assert rows == {"runs": 1, "images": 2, "faces": 1}[table]
            assert values == [0] * len(added)
        found = connection.sql("SELECT DISTINCT model_name, schema_version FROM faces_latest").fetchall()
        assert found == [("residual-2f3bdffae54a", 1)]  # its version stands for the name that was not recorded


def test_rows_of_both_versions_are_one_archive(output: Path, tmp_path: Path, photographs: dict[str, Path]) -> None:
    (tmp_path / "photos").mkdir()
    shutil.copy(photographs["grace_hopper"], tmp_path / "photos" / "new.jpg")
    config = LabelConfig((str(tmp_path / "photos"),), str(output), run_id="night-2")
    assert label_without_ray(config)[1] == 0
    for connection in (in_duckdb(output), in_athena(output)):
        rows = connection.sql("SELECT run_id, schema_version, model_name FROM images_by_model ORDER BY image_uri").fetchall()
        assert rows == [("night-1", 1, "residual-2f3bdffae54a")] * 2 + [("night-2", SCHEMA_VERSION, "ferplus")]
        assert connection.sql("SELECT count(*) FROM faces_by_model").fetchall() == [(2,)]
    for names in read_as_documented(output):
        assert (len(names["runs"]), len(names["images"])) == (2, 3)
    older = read_run(dataclasses.replace(identify(config), run_id="night-1"))
    assert (older["schema_version"], older["images_total"], older["images_gone"]) == (1, 2, None)
