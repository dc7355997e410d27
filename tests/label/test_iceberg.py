"""What an analyst's catalog has after each night: every committed row once, also after it was away, and no row that is gone."""

import dataclasses
import shutil
import socket
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from documents import section
from pyiceberg.catalog import load_catalog
from pyiceberg.table import Table
from rayless import label_without_ray
from run_tables import write_run
from tables_page import DOCUMENTS

from fer_ray.config.jobs.label import LabelConfig
from fer_ray.errors import PublishError, UsageError
from fer_ray.io.storage import Storage
from fer_ray.label import iceberg
from fer_ray.label.run import Run
from fer_ray.label.views import write_views
from fer_ray.schema import FACES, IMAGES, RUNS, since

VERSION_1 = Path(__file__).with_name("tables_version_1.zip")
SHARES = (0.5, 0.5, 0, 0, 0, 0, 0, 0)


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Table]:
    """The catalog `team` in a folder that has to be made, and no other; gives a table of its namespace."""
    for variable in ("HOME", "PYICEBERG_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("PYICEBERG_CATALOG__TEAM__URI", f"sqlite:///{tmp_path}/team/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__TEAM__WAREHOUSE", f"file://{tmp_path}/team")
    settings = {"uri": f"sqlite:///{tmp_path}/team/catalog.db", "warehouse": f"file://{tmp_path}/team"}
    return lambda name: load_catalog("team", **settings).load_table(f"emotions.{name}")


def rows(table: Table) -> list[dict[str, Any]]:
    return sorted(table.scan().to_arrow().to_pylist(), key=str)


def summary_of_last(table: Table) -> str:
    snapshot = table.current_snapshot()
    assert snapshot and snapshot.summary
    return snapshot.summary.additional_properties[iceberg.RUN_IDS]


def test_a_catalog_that_is_away_costs_no_run_and_the_next_night_registers_all_of_them_once(
    catalog: Callable[[str], Table], photographs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, output = tmp_path / "photos", tmp_path / "tables"
    photos.mkdir()
    shutil.copy(photographs["astronaut"], photos)
    night = LabelConfig((str(photos),), str(output), publish="iceberg:team.emotions", thumbnails=False)
    told = r"^Run night-1 is committed in \S+, but iceberg:team.emotions does not have it \(.*\): start the same command again, or leave "
    with pytest.raises(PublishError, match=told):
        label_without_ray(dataclasses.replace(night, run_id="night-1"))
    with monkeypatch.context() as patched:
        patched.setenv("PYICEBERG_CATALOG__TEAM__URI", "http://127.0.0.1:9")
        patched.setenv("PYICEBERG_CATALOG__TEAM__TOKEN", "refused")
        run = Run("night-1", night.date(), night.input, str(output), "m", "m-1", night, Storage())
        with pytest.raises(PublishError, match=r"\(\[Errno 111\] Connection \.\.\.\)") as away:  # what may be a secret is not shown
            iceberg.register(run)
        assert away.value.exit_code == 1
        with socket.create_server(("127.0.0.1", 0)) as silent:
            patched.setenv("PYICEBERG_CATALOG__TEAM__URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
            patched.setattr(iceberg, "MAX_SECONDS", 0.5)
            with pytest.raises(PublishError, match=r"\(it was not done within 0.5 s\)"):
                iceberg.register(run)

    (tmp_path / "team").mkdir()
    shutil.copy(photographs["chelsea"], photos)
    shutil.copy(photographs["grace_hopper"], photos)
    second = dataclasses.replace(night, run_id="night-2")
    assert label_without_ray(second)[0]["images_total"] == 2
    images, faces, tracks, runs = map(catalog, ("images", "faces", "tracks", "runs"))
    assert {summary_of_last(table) for table in (images, faces, tracks, runs)} == {"night-1,night-2"}

    label_without_ray(second)
    assert [len(catalog(name).metadata.snapshots) for name in iceberg.TABLES] == [1, 1, 1, 1], "a repetition registers nothing"
    assert [len(table.scan().to_arrow()) for table in (images, faces, tracks, runs)] == [3, 2, 0, 2]
    for table, name in ((images, "images"), (faces, "faces")):
        files = f"'{output}/{name}/*/*.parquet', hive_partitioning = false"
        written = sorted(duckdb.sql(f"FROM read_parquet({files})").to_arrow_table().to_pylist(), key=str)
        assert rows(table) == written
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its planner is another package
            assert sorted(polars.scan_iceberg(table).collect().to_dicts(), key=str) == written
    assert faces.scan().to_duckdb("faces").sql("SELECT count(*) FROM faces WHERE confidence > 0").fetchall() == [(2,)]
    for table in (images, faces):
        (task, *_) = table.scan().plan_files()
        bounded = {table.schema().find_column_name(number) for number in task.file.lower_bounds}
        assert {"run_id", "labeled_at"} <= bounded <= {"run_id", "labeled_at", "confidence"}, "the catalog's own files name no image"


def test_old_columns_grow_changed_files_are_registered_anew_and_a_race_doubles_nothing(
    catalog: Callable[[str], Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables that version 0.1 left and a catalog that has only its columns, then runs of now, one of them changed as by `forget`."""
    (tmp_path / "team").mkdir()
    with zipfile.ZipFile(VERSION_1) as recorded:
        recorded.extractall(tmp_path / "tables")
    run, _ = write_run(tmp_path / "tables", "night-2", 21, SHARES, 10, ("a",))
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, publish="iceberg:team.emotions"))
    late = [file.rename(file.with_suffix(".later")) for file in (tmp_path / "tables").rglob("night-2*.parquet")]
    with monkeypatch.context() as patched:
        schemas = {"images": IMAGES, "faces": FACES, "runs": RUNS}
        first = {name: pa.schema([field for field in schema if since(field) == 1]) for name, schema in schemas.items()}
        patched.setattr(iceberg, "TABLES", first)
        iceberg.register(run)
    assert "model_name" not in catalog("images").schema().column_names

    for file in late:
        file.rename(file.with_suffix(".parquet"))
    uninterrupted = iceberg._with_rows
    with monkeypatch.context() as patched:

        def overtaken(*arguments: Any) -> list[str]:
            patched.setattr(iceberg, "_with_rows", uninterrupted)
            iceberg.register(run)
            return uninterrupted(*arguments)

        patched.setattr(iceberg, "_with_rows", overtaken)
        iceberg.register(run)
    assert catalog("images").scan().to_arrow()["run_id"].value_counts().to_pylist() == [
        {"values": "night-2", "counts": 10},
        {"values": "night-1", "counts": 2},
    ]
    assert {row["relative_path"] for row in rows(catalog("images"))} == {None}
    assert catalog("runs").schema().find_field("error_share").doc == "share of the images that failed, of those that were tried, 0 to 1"

    changed = tmp_path / "tables/images/run_date=2026-11-21/night-2-0.parquet"
    pq.write_table(pq.read_table(changed, partitioning=None).slice(1), changed)
    shutil.rmtree(tmp_path / "tables/faces/run_date=2026-11-20")
    iceberg.register(run)
    assert [len(rows(catalog(name))) for name in ("images", "faces", "runs")] == [11, 10, 2]

    shutil.rmtree(tmp_path / "tables/images/run_date=2026-11-20")
    (tmp_path / "tables/runs/night-1.parquet").unlink()
    write_run(tmp_path / "tables", "night-3", 22, SHARES, 10, ("a",))  # the images of night-2
    write_run(tmp_path / "tables", "night-4", 23, SHARES, 10, ("a",), failed=3)
    iceberg.register(run)
    write_views(run.storage, run.output)
    (views := duckdb.connect()).sql((tmp_path / "tables/views/duckdb.sql").read_text(encoding="utf-8"))
    engine = duckdb.connect()
    for name in ("images", "faces", "runs"):
        catalog(name).scan().to_duckdb(name, engine)
    query = next(block.text for block in section(DOCUMENTS / "operate.md", "Tables in a catalog") if block.language == "sql")
    latest = dict(views.sql("SELECT emotion, count(*) FROM faces_latest GROUP BY emotion").fetchall())
    assert dict(engine.sql(query).fetchall()) == latest
    assert sum(latest.values()) == 7, "a later run that cannot read three of them says that they have no faces"

    with pytest.raises(PublishError, match=r"the table iceberg:team.emotions.images is that of \S+/tables: name another namespace"):
        iceberg.register(dataclasses.replace(run, output=str(tmp_path / "others")))


@pytest.mark.parametrize(
    ("publish", "sentence"),
    [
        (
            "iceberg:nowhere.emotions",
            "There is no catalog nowhere: describe it in ~/.pyiceberg.yaml, or by PYICEBERG_CATALOG__NOWHERE__",
        ),
        ("iceberg:team", "The setting publish must be iceberg:CATALOG.NAMESPACE"),
        ("hive:team.emotions", "The setting publish must be iceberg:CATALOG.NAMESPACE"),
    ],
)
def test_an_unknown_catalog_is_refused_before_anything_is_labeled(
    catalog: Callable[[str], Table], photographs: dict[str, Path], tmp_path: Path, publish: str, sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        label_without_ray(LabelConfig((str(photographs["astronaut"]),), str(tmp_path / "tables"), publish=publish))
    assert not (tmp_path / "tables").exists()


def test_what_iceberg_cannot_read_is_refused(catalog: Callable[[str], Table], tmp_path: Path) -> None:
    run, _ = write_run(tmp_path, "night-1", 21, SHARES, 1, ("a",))
    config = dataclasses.replace(run.config, publish="iceberg:team.emotions")
    with pytest.raises(UsageError, match=r"^The setting publish does not take az://box/tables: Iceberg tables are read from folders"):
        iceberg.check_catalog(Run("night-1", run.run_date, run.inputs, "az://box/tables", "m", "m-1", config, run.storage))
