"""What analysts do with the tables of several nights: views, example queries, and four ways to read the files."""

import datetime
import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import sqlglot
from documents import read_as_documented
from fsspec.implementations.local import LocalFileSystem
from rayless import label_without_ray
from run_tables import run_row
from sqlglot import expressions
from tables_page import DOCUMENTS, example_queries, tables_document

from fer_ray.config.jobs.label import LabelConfig
from fer_ray.errors import StorageError
from fer_ray.io.storage import Storage
from fer_ray.label.incremental import published_images
from fer_ray.label.publish import commit, table_file
from fer_ray.label.run import Run
from fer_ray.label.views import athena_views, duckdb_views, write_views
from fer_ray.models import bundle
from fer_ray.schema import FACES, IMAGES, RUNS

VIEWS = (
    *("runs", "images", "faces", "images_latest", "faces_latest", "images_by_model", "faces_by_model"),
    *("images_gone", "images_present", "faces_present", "emotion_shares"),
)
ALL_VIEWS = (*VIEWS, "tracks", "tracks_latest")
SCHEMAS = {"runs": RUNS, "images": IMAGES, "faces": FACES}


@dataclass(frozen=True)
class Archive:
    """The tables of four nights, and what is known about them from how they were made. Folders and names are relative to `folder`."""

    folder: Path
    output: Path
    model: str
    other_model: str
    latest_run: dict[str, str]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, Path]) -> Archive:
    """Night 1 labels all, night 2 a changed and a new image, the backfill a folder with another model, night 3 finds nothing new.

    So the model is that of night 3 again, at no cost. A run that never committed left files beside them.
    """
    root = tmp_path_factory.mktemp("archive")
    folder, output = root / "photos", root / "analyst's tables"
    placed = {"astronaut": ["2019/a.png", "2019/a again.png"], "camera": ["2019/c.png", "2020/c.png"], "coffee": ["2020/x.png"]}
    for photograph, names in placed.items():
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photographs[photograph], folder / name)
    (folder / "2018").mkdir()
    (folder / "2018" / "a.png").write_bytes(photographs["astronaut"].read_bytes() + b"the same picture in other bytes")
    (folder / "broken.jpg").write_bytes(photographs["grace_hopper"].read_bytes()[:2000])
    model = str(bundle.read_metadata(bundle.resolve(""))["model_version"])
    other = other_bundle(root / "other model")

    def run(run_id: str, run_date: str, inputs: Path = folder, **options: Any) -> None:
        _, exit_code = label_without_ray(LabelConfig((str(inputs),), str(output), run_id=run_id, run_date=run_date, workers=1, **options))
        assert exit_code == 0

    run("night-1", "2026-11-20")
    shutil.copy(photographs["grace_hopper"], folder / "2020" / "x.png")
    shutil.copy(photographs["grace_hopper"], folder / "2020" / "new.jpg")
    run("night-2", "2026-11-21")
    run("backfill", "2026-11-01", folder / "2019", all=True, model=str(root / "other model"))
    run("night-3", "2026-11-22")
    leave_uncommitted_files(output)
    latest = {
        "2019/a.png": "night-1",
        "2019/a again.png": "night-1",
        "2019/c.png": "night-1",
        "2018/a.png": "night-1",
        "2020/c.png": "night-1",
        "2020/x.png": "night-2",
        "2020/new.jpg": "night-2",
        "broken.jpg": "night-1",
    }
    return Archive(folder, output, model, other, latest)


def other_bundle(folder: Path) -> str:
    """A model that is never sure, and says happy for surprise and surprise for happy."""
    shutil.copytree(bundle.resolve(""), folder)
    file = folder / bundle.METADATA_FILE
    content = json.loads(file.read_text())
    swapped = {"happy": "surprise", "surprise": "happy"}
    content["classes"] = [swapped.get(name, name) for name in content["classes"]]
    content["calibration"]["temperature"] = 20.0
    content["model_version"] = bundle._model_version(content)
    file.write_text(json.dumps(content))
    return str(content["model_version"])


def leave_uncommitted_files(output: Path) -> None:
    for table in ("images", "faces"):
        rows = pq.read_table(output / table / "run_date=2026-11-20" / "night-1-0.parquet", partitioning=None)
        run_ids = pa.array(["night-4"] * len(rows), pa.string())
        target = output / table / "run_date=2026-11-23" / "night-4-0.parquet"
        target.parent.mkdir()
        pq.write_table(rows.set_column(rows.column_names.index("run_id"), "run_id", run_ids), target)


def committed_rows(archive: Archive, table: str) -> list[dict[str, Any]]:
    """The oracle: the rows of the files of committed runs, by their names."""
    files = sorted((archive.output / table).glob("*/*.parquet"))
    assert {file.stem for file in files} == {"night-1-0", "night-2-0", "backfill-0", "night-4-0"}
    return [row for file in files if file.stem != "night-4-0" for row in pq.read_table(file, partitioning=None).to_pylist()]


def latest_rows(archive: Archive, table: str) -> list[dict[str, Any]]:
    newest = {str(archive.folder / name): run_id for name, run_id in archive.latest_run.items()}
    return [row for row in committed_rows(archive, table) if newest[row["image_uri"]] == row["run_id"]]


def open_duckdb(output: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.sql((output / "views" / "duckdb.sql").read_text(encoding="utf-8"))
    return connection


def open_as_athena(archive: Archive) -> duckdb.DuckDBPyConnection:
    """The statements of athena.sql in DuckDB: its tables over the same files, its views translated."""
    connection = duckdb.connect()
    source = str(archive.output).replace("'", "''")
    connection.sql(f"CREATE VIEW runs AS FROM read_parquet('{source}/runs/*.parquet')")
    for table in ("images", "faces", "tracks"):
        files = f"read_parquet('{source}/{table}/*/*.parquet', hive_partitioning = true, hive_types = {{'run_date': VARCHAR}})"
        connection.sql(f"CREATE VIEW {table}_files AS FROM {files}")
    connection.sql(f"CREATE VIEW gone_files AS FROM read_parquet('{source}/gone/*.parquet')")
    for statement in athena_statements(archive.output):
        if statement.kind == "VIEW":
            connection.sql(statement.sql("duckdb"))
    return connection


def athena_statements(output: Path) -> list[expressions.Create]:
    statements = sqlglot.parse((output / "views" / "athena.sql").read_text(encoding="utf-8"), dialect="athena")
    return [statement for statement in statements if isinstance(statement, expressions.Create)]


def rows_of(connection: duckdb.DuckDBPyConnection, sql: str) -> list[tuple[Any, ...]]:
    """Rows without times, which need a time zone that Athena does not have."""
    relation = connection.sql(sql)
    columns = [f'"{name}"' for name, kind in zip(relation.columns, relation.types, strict=True) if "TIMESTAMP" not in str(kind)]
    return list(relation.project(", ".join(columns)).fetchall())


def test_each_image_counts_once_as_its_newest_committed_run_left_it(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    connection = open_duckdb(archive.output)
    counts = {view: connection.sql(f"SELECT count(*) FROM {view}").fetchall()[0][0] for view in ALL_VIEWS}
    places = 3 * 9  # 2018, 2019 and 2020, for each emotion and unknown
    by_model = {"images_by_model": 11, "faces_by_model": 10}
    assert counts == {
        "runs": 4,
        "images": 12,
        "faces": 10,
        "images_latest": 8,
        "faces_latest": 7,
        **by_model,
        "emotion_shares": places,
        "tracks": 0,
        "tracks_latest": 0,
        "images_gone": 0,
        "images_present": 8,
        "faces_present": 7,
    }
    latest = connection.sql("SELECT image_uri, run_id, run_date::VARCHAR FROM images_latest").fetchall()
    dates = {"night-1": "2026-11-20", "night-2": "2026-11-21"}
    assert sorted(latest) == sorted((str(archive.folder / name), run, dates[run]) for name, run in archive.latest_run.items())
    identity = ("image_uri", "run_id", "face_index", "emotion", "confidence")
    expected = sorted(tuple(row[name] for name in identity) for row in latest_rows(archive, "faces"))
    assert sorted(connection.sql(f"SELECT {', '.join(identity)} FROM faces_latest").fetchall()) == expected
    for table, schema in SCHEMAS.items():
        added = [] if table == "runs" else ["run_date"]
        assert connection.sql(f"FROM {table}").columns == [*schema.names, *added]
        assert table == "runs" or connection.sql(f"FROM {table}_latest").columns == [*schema.names, *added]


def test_what_is_latest_is_of_one_model_and_to_go_back_costs_nothing(
    archive: Archive, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = shutil.copytree(archive.output, tmp_path / "tables")
    other, folder = str(archive.folder.parent / "other model"), archive.folder / "2019"
    newest, seen = "SELECT latest_model_version FROM runs ORDER BY finished_at DESC LIMIT 1", []
    for run_id, model, latest in (("trial", other, False), ("switch", other, True), ("back", "", True)):
        caplog.clear()
        summary, _ = label_without_ray(LabelConfig((str(folder),), str(output), run_id=run_id, model=model, latest=latest))
        assert (summary["images_total"], summary["images_skipped"]) == (0, 3)
        connection = open_duckdb(output)
        models = connection.sql("SELECT DISTINCT model_version, model_name FROM images_latest").fetchall()
        assert len(models) == 1
        assert connection.sql(newest).fetchall() == [models[0][:1]]
        said = [record.message for record in caplog.records if "the model changes to" in record.message]
        seen.append((models[0][1], connection.sql("SELECT count(*) FROM images_latest").fetchall()[0][0], len(said)))
    assert seen == [("ferplus", 8, 1), ("other model", 3, 1), ("ferplus", 8, 1)]
    assert connection.sql("SELECT count(DISTINCT model_version) FROM faces_by_model").fetchall() == [(2,)]


def test_shares_are_counts_and_sums_of_probabilities_by_folder(archive: Archive) -> None:
    faces = latest_rows(archive, "faces")
    for connection in (open_duckdb(archive.output), open_as_athena(archive)):
        shares = connection.sql("SELECT folder, emotion, faces, expected_faces, faces_in_folder FROM emotion_shares").fetchall()
        for folder, emotion, counted, expected, total in shares:
            here = [face for face in faces if str(Path(face["image_uri"]).parent.relative_to(archive.folder)) == folder]
            assert (counted, total) == (sum(face["emotion"] == emotion for face in here), len(here))
            assert expected == (None if emotion == "unknown" else pytest.approx(sum(face[f"prob_{emotion}"] for face in here)))


def test_a_tie_goes_to_the_greater_run_id_and_a_folder_of_any_name_will_do(archive: Archive, tmp_path: Path) -> None:
    copied = tmp_path / "run_date=1999-01-01" / "status=x" / "it's {a} [b] *?"
    shutil.copytree(archive.output, copied)
    for file in (copied / "runs").iterdir():
        row = pq.read_table(file)
        same = pa.array([0], RUNS.field("finished_at").type)
        pq.write_table(row.set_column(row.column_names.index("finished_at"), RUNS.field("finished_at"), same), file)
    write_views(Storage(), str(copied))
    latest = open_duckdb(copied).sql("SELECT image_uri, run_id, run_date::VARCHAR, status = 'x' FROM images_latest").fetchall()
    dates = {"night-1": "2026-11-20", "night-2": "2026-11-21"}
    assert sorted(latest) == sorted((str(archive.folder / name), run, dates[run], False) for name, run in archive.latest_run.items())


def test_an_image_that_could_not_be_read_keeps_its_label_and_the_run_that_commits_last_is_the_newest(
    archive: Archive, tmp_path: Path
) -> None:
    """Whatever the clock of its machine said."""
    output = tmp_path / "tables"
    shutil.copytree(archive.output, output)
    for run_id, status in (("night-5", "unreadable"), ("night-6", "no_face")):
        config = LabelConfig((str(archive.folder),), str(output), run_id=run_id, run_date="2026-11-25")
        run = Run(run_id, config.date(), config.input, str(output), "m", archive.model, config, Storage())
        rows = pq.read_table(output / "images" / "run_date=2026-11-20" / "night-1-0.parquet", partitioning=None).to_pylist()
        kept = "" if run_id == "night-5" else "2020/c.png"
        rows = [row | {"run_id": run_id, "status": status} for row in rows if row["image_uri"].endswith(kept)]
        rows += [rows[0] | {"image_uri": "/never read.jpg", "image_id": "0"}]
        file = Path(table_file(run, "images", 0))
        file.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, IMAGES), file)
        commit(run, run_row(run, datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC), len(rows), 0))
        write_views(Storage(), str(output))
        found = dict(open_duckdb(output).sql("SELECT image_uri, run_id FROM images_latest").fetchall())
        expected = {str(archive.folder / name): run for name, run in archive.latest_run.items()} | {"/never read.jpg": run_id}
        assert found == expected | ({str(archive.folder / "2020/c.png"): run_id} if status == "no_face" else {})


def test_a_copy_reads_the_copy_and_a_look_from_elsewhere_reads_what_was_named(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied, other = shutil.copytree(archive.output, tmp_path / "copy"), shutil.copytree(archive.output, tmp_path / "other")
    (copied / "runs" / "night-2.parquet").unlink()
    write_views(Storage(), str(other))
    assert len(list((other / "views").glob("place-*"))) == 1
    runs = {}
    for name, here, script in (
        ("inside the copy", copied, copied),
        ("inside another output", other, archive.output),
        ("elsewhere", tmp_path, archive.output),
    ):
        monkeypatch.chdir(here)
        runs[name] = open_duckdb(script).sql("SELECT count(*) FROM runs").fetchall()[0][0]
    assert runs == {"inside the copy": 3, "inside another output": 4, "elsewhere": 4}
    connection = duckdb.connect()
    connection.execute("SET VARIABLE fer_ray_output = ?", [str(copied)])
    connection.sql((archive.output / "views" / "duckdb.sql").read_text(encoding="utf-8"))
    assert connection.sql("SELECT count(*) FROM runs").fetchall() == [(3,)]


@pytest.mark.parametrize("name", ["runs/night-1.parquet", "images/run_date=2026-11-20/night-1-0.parquet"])
def test_a_table_file_that_was_cut_short_is_named(archive: Archive, tmp_path: Path, name: str) -> None:
    copied = shutil.copytree(archive.output, tmp_path / "copy")
    (copied / name).write_bytes((copied / name).read_bytes()[:-100])
    with pytest.raises(StorageError, match=f"{re.escape(name)} cannot be read"):
        list(published_images(Storage(), str(copied), archive.model))


def test_a_run_that_commits_while_a_query_starts_is_seen_whole_or_not_at_all(archive: Archive, tmp_path: Path) -> None:
    late = ["images/run_date=2026-11-21/night-2-0.parquet", "faces/run_date=2026-11-21/night-2-0.parquet", "runs/night-2.parquet"]
    output, aside = shutil.copytree(archive.output, tmp_path / "tables"), tmp_path / "aside"
    for name in late:
        (aside / name).parent.mkdir(parents=True)
        (output / name).rename(aside / name)
    listings: list[str] = []
    commit_at = 0

    class Watched(LocalFileSystem):  # type: ignore[misc]
        protocol = "watched"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return str(path).removeprefix("watched://")

        def glob(self, path: str, **options: Any) -> list[str]:
            found = list(super().glob(self._strip_protocol(path), **options))
            listings.append(path)
            if len(listings) == commit_at:
                for name in late:
                    (aside / name).rename(output / name)
            return found

    connection = duckdb.connect()
    connection.register_filesystem(Watched())
    connection.sql(duckdb_views(f"watched://{output}"))
    for view in (view for view in VIEWS if view != "images_gone"):
        columns = {"runs": "run_id", "emotion_shares": "folder, emotion, faces"}.get(view, "image_uri, run_id")
        query = f"SELECT {columns} FROM {view} ORDER BY ALL"
        before = connection.execute(query).fetchall()
        listings.clear()
        connection.execute(query)
        moments, seen = len(listings), []
        for commit_at in range(1, moments + 1):
            listings.clear()
            seen.append(connection.execute(query).fetchall())
            commit_at = 0
            after = connection.execute(query).fetchall()
            for name in late:
                (output / name).rename(aside / name)
        assert after != before
        assert [rows in (before, after) for rows in seen] == [True] * moments, view


def test_athena_gets_the_types_of_the_files_and_the_rows_of_duckdb(archive: Archive) -> None:
    statements = athena_statements(archive.output)
    assert [statement.this.find(expressions.Table).name for statement in statements] == [
        *("runs", "images_files", "faces_files", "tracks_files", "gone_files"),
        *ALL_VIEWS[1:],
    ]
    in_duckdb, in_athena = open_duckdb(archive.output), open_as_athena(archive)
    for statement in statements[:5]:
        name = statement.this.this.name
        declared = {column.name: column.kind.sql("duckdb") for column in statement.this.expressions}
        stored = in_athena.sql(f"FROM {name}")
        kinds = {column: str(kind).removesuffix(" WITH TIME ZONE") for column, kind in zip(stored.columns, stored.types, strict=True)}
        partition = statement.find(expressions.PartitionedByProperty)
        if partition:
            assert partition.this.sql() == "(run_date TEXT)"
            del kinds["run_date"]
        same = {"TEXT": "VARCHAR", "INT": "INTEGER", "REAL": "FLOAT"}
        assert [(column, same.get(kind, kind)) for column, kind in declared.items()] == list(kinds.items())
    for view in ALL_VIEWS:
        assert sorted(rows_of(in_athena, f"FROM {view}"), key=str) == sorted(rows_of(in_duckdb, f"FROM {view}"), key=str)
    script = athena_views("s3://archive/tables/emotion", "2026-11-01")
    assert "LOCATION 's3://archive/tables/emotion/images/'\nTBLPROPERTIES (" in script
    assert "'projection.run_date.range' = '2026-11-01,NOW+1DAYS'" in script
    assert "2026-11-01,NOW" in (archive.output / "views" / "athena.sql").read_text(encoding="utf-8")  # the backfill's


def test_the_example_queries_tell_the_truth_in_duckdb_and_in_athena(archive: Archive) -> None:
    in_duckdb, in_athena = open_duckdb(archive.output), open_as_athena(archive)
    answers = {}
    for title, _, query in example_queries():
        answers[title] = rows_of(in_duckdb, query)
        (translated,) = sqlglot.transpile(query, read="athena", write="duckdb")
        assert rows_of(in_athena, translated) == answers[title], title
    shares, doubtful, errors, duplicates, agreement, state, *of_others = answers.values()
    assert of_others == [[]] * 5  # no films, dates or moves are here: test_films.py and test_when_where_what.py ask of some
    overdue = next(query for title, _, query in example_queries() if "26 hours" in title).replace("'26'", "'0'")
    assert len(rows_of(in_duckdb, overdue)) == 1

    faces = latest_rows(archive, "faces")
    counted = Counter((str(Path(face["image_uri"]).parent), face["run_id"], face["emotion"]) for face in faces)
    assert sorted((folder, emotion, n) for _, folder, emotion, n, _ in shares) == sorted(
        (place, e, n) for (place, _, e), n in counted.items()
    )
    percents: Counter[tuple[str, str]] = Counter()
    for date, folder, *_, percent in shares:
        percents[str(date), Path(folder).name] += percent
    places = [("2026-11-20", "2019"), ("2026-11-20", "2018"), ("2026-11-20", "2020"), ("2026-11-21", "2020")]
    assert percents == pytest.approx(dict.fromkeys(places, 100), abs=0.2)
    of_2019 = Counter(face["emotion"] for face in faces if Path(face["image_uri"]).parent.name == "2019").most_common()
    assert sum(count for _, count in of_2019) == 3
    assert [row[2:] for row in shares if row[1].endswith("2019")] == [(emotion, n, round(n / 3 * 100, 1)) for emotion, n in of_2019]

    assert doubtful == []  # of the model that is shown; the other one is never sure
    query = next(query for title, _, query in example_queries() if "confidence" in title)
    doubtful = rows_of(in_duckdb, query.replace("0.5", "0.99"))
    expected = sorted((face["confidence"], face["image_uri"]) for face in faces if face["confidence"] < 0.99)
    assert [(row[7], row[0]) for row in doubtful] == expected
    assert 0 < len(expected) < len(faces)

    assert [(run_id, images, percent) for _, run_id, images, percent, *_ in errors] == [
        ("backfill", 3, 0.0),
        ("night-1", 7, 14.29),
        ("night-2", 2, 0.0),
    ]
    assert [row[4:7] for row in errors] == [(0, 0, 0), (0, 1, 0), (0, 0, 0)]
    assert "cannot" in errors[1][7] or "decode" in errors[1][7]

    sizes = {name: (archive.folder / name).stat().st_size for name in archive.latest_run}
    twins = [["2019/a again.png", "2019/a.png"], ["2019/c.png", "2020/c.png"], ["2020/new.jpg", "2020/x.png"]]
    found = [([str(Path(uri).relative_to(archive.folder)) for uri in uris], copies, saved) for _, copies, saved, uris in duplicates]
    assert sorted(found) == [(names, 2, sizes[names[0]]) for names in twins]

    models = sorted([archive.model, archive.other_model])
    assert agreement == [(*models, 2, 50.0)]  # of two different pictures, one is happy
    counts = {(model, status): (images, faces) for _, model, _, status, images, faces in state}
    assert counts == {
        (archive.model, "ok"): (7, 7),
        (archive.model, "undecodable"): (1, 0),
        (archive.other_model, "ok"): (3, 3),
    }


def test_pandas_polars_and_pyarrow_read_the_committed_rows_as_the_document_says(archive: Archive) -> None:
    expected = sorted((row["image_uri"], row["run_id"]) for row in committed_rows(archive, "images"))
    for names in read_as_documented(archive.output):
        images = names["images"]
        assert len(names["runs"]) == 4
        assert sorted(zip(list(map(str, images["image_uri"])), map(str, images["run_id"]), strict=True)) == expected
        assert {str(date)[:10] for date in images["run_date"]} == {"2026-11-01", "2026-11-20", "2026-11-21"}
        assert str(pc.max(pa.array(images["labeled_at"])).as_py())[:2] == "20"


def test_the_document_says_what_the_schema_and_the_queries_say() -> None:
    assert (DOCUMENTS / "tables.md").read_text(encoding="utf-8") == tables_document(), "python tools/tables_page.py > docs/tables.md"
    assert len(example_queries()) == 11


def test_the_views_are_written_once_and_name_the_store(archive: Archive) -> None:
    views = archive.output / "views"
    before = {file.name: file.stat().st_ino for file in views.iterdir()}
    write_views(Storage(), str(archive.output))
    assert {file.name: file.stat().st_ino for file in views.iterdir()} == before
    assert {name.partition("-")[0] for name in before} == {"duckdb.sql", "athena.sql", "place"}
    script = duckdb_views("s3://archive/tables", "http://127.0.0.1:9000")
    assert "'s3://archive/tables') || '/faces/*/*.parquet'" in script
    assert "ENDPOINT '127.0.0.1:9000', URL_STYLE 'path', USE_SSL false);" in script
