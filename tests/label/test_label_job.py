"""The labeling job on real Ray and real photographs: what an operator runs and an analyst queries."""

import csv
import datetime
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pages import Page
from pictures import SHARED_DATA
from rayless import label_without_ray

from fer_ray import Labeler
from fer_ray.config.jobs.label import LabelConfig
from fer_ray.emotions import EMOTIONS
from fer_ray.errors import PublishError, UsageError
from fer_ray.io.storage import Storage
from fer_ray.label.incremental import Counts, due_images
from fer_ray.label.job import label
from fer_ray.label.outcome import CHANGE_KEYS
from fer_ray.label.plan import read_parts, staged_file, write_plan
from fer_ray.label.publish import write_tables
from fer_ray.label.run import Run
from fer_ray.models import bundle
from fer_ray.schema import FACES, IMAGES, RUNS, STAGING, ImageEntry, image_id

ROOT = Path(__file__).parents[2]
PORTABLE = {"double", "timestamp[us]", "string", "bool", "int32", "int64", "float", "date32[day]", "timestamp[us, tz=UTC]"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, Path]) -> Path:
    """Photographs under odd names, twins, broken and empty files, and the tables of an earlier run in the middle."""
    root = tmp_path_factory.mktemp("archive")
    (root / "2019" / "ärger & co").mkdir(parents=True)
    for number in range(12):
        for name, path in photographs.items():
            shutil.copy(path, root / "2019" / f"{name} {number:02d}{path.suffix}")
    shutil.copy(photographs["astronaut"], root / "2019" / "ärger & co" / "100%+'quote\".png")
    (root / "broken.jpg").write_bytes(photographs["grace_hopper"].read_bytes()[:2000])
    (root / "empty.jpg").touch()
    (root / "notes").write_text("no image")
    (root / "notes.txt").write_text("a sidecar")
    (root / "broken link.jpg").symlink_to("nowhere")
    return root


@pytest.fixture(scope="module")
def labeled(archive: Path, ray_cluster: None) -> tuple[dict[str, object], Path, int]:
    """The archive labeled into tables inside itself, as a careless user would."""
    output = archive / "tables"
    summary, exit_code = label(LabelConfig((str(archive),), str(output), run_id="night-1", run_date="2026-11-20", picture=3))
    return summary, output, exit_code


def query(output: Path, sql: str) -> list[tuple[object, ...]]:
    tables = {table: f"'{output}/{table}/**/*.parquet'" for table in ("images", "faces", "runs")}
    return list(duckdb.sql(sql.format(**tables)).fetchall())


def test_every_file_has_one_row_and_every_face_belongs_to_one(labeled: tuple[dict[str, object], Path, int], archive: Path) -> None:
    summary, output, exit_code = labeled
    files = [str(p) for p in archive.rglob("*") if not p.is_dir() and output not in p.parents and p.name != "notes.txt"]
    assert exit_code == 0
    assert len(files) == 65
    assert query(output, "SELECT image_uri FROM {images}") == [(name,) for name in sorted(files, key=os.fsencode)]
    statuses = query(output, "SELECT status, count(*) FROM {images} GROUP BY status ORDER BY status")
    assert statuses == [("no_face", 24), ("ok", 37), ("undecodable", 3), ("unreadable", 1)]
    assert query(output, "SELECT count(*) FROM {images} WHERE (error IS NULL) <> (status IN ('ok', 'no_face'))") == [(0,)]
    lost = "SELECT count(*) FROM {images} i FULL JOIN (SELECT image_id, count(*) n FROM {faces} GROUP BY 1) f USING (image_id) "
    assert query(output, lost + "WHERE coalesce(i.face_count, -1) <> coalesce(f.n, 0)") == [(0,)]
    expected = {"images_total": 65, "images_ok": 37, "images_no_face": 24, "images_failed": 4, "images_skipped": 0, "faces_total": 37}
    assert summary["images_ignored"] == 1
    assert {key: summary[key] for key in expected} == expected


def test_the_rows_say_what_the_library_says_about_the_image(
    labeled: tuple[dict[str, object], Path, int], labeler: Labeler, photographs: dict[str, Path]
) -> None:
    _, output, _ = labeled
    (image,) = labeler.label([photographs["grace_hopper"]])
    (face,) = image.faces
    columns = ", ".join(f"prob_{emotion}" for emotion in EMOTIONS)
    rows = query(
        output, f"SELECT bbox_x, bbox_y, bbox_width, bbox_height, emotion, {columns} FROM {{faces}} WHERE image_uri LIKE '%hopper%'"
    )
    assert len(rows) == 12
    for row in rows:
        assert (row[:4], row[4]) == (face.bbox, face.emotion)
        expected = [face.probabilities.get(emotion) for emotion in EMOTIONS]
        assert [value is None for value in row[5:]] == [value is None for value in expected]
        assert [v for v in row[5:] if v is not None] == pytest.approx([v for v in expected if v is not None], abs=1e-4)
    facts = "SELECT DISTINCT width, height, size_bytes, content_sha256, run_date::VARCHAR FROM {images} WHERE image_uri LIKE '%hopper%'"
    assert query(output, facts) == [(512, 600, photographs["grace_hopper"].stat().st_size, image.content_sha256, "2026-11-20")]
    (uri, identity), *_ = query(output, "SELECT image_uri, image_id FROM {images} LIMIT 1")
    assert identity == image_id(str(uri))


def test_the_files_are_the_published_interface(labeled: tuple[dict[str, object], Path, int]) -> None:
    _, output, _ = labeled
    visible = sorted(
        str(file.relative_to(output))
        for file in output.rglob("*")
        if file.is_file() and not file.relative_to(output).parts[0].startswith("_")
    )
    assert visible == [
        "faces/run_date=2026-11-20/night-1-0.parquet",
        "gone/_none.parquet",
        "images/run_date=2026-11-20/night-1-0.parquet",
        "reports/index.html",
        "reports/night-1/aggregates.json",
        "reports/night-1/faces.jpg",
        "reports/night-1/log.jsonl",
        "reports/night-1/report.html",
        "runs/night-1.parquet",
        "tracks/run_date=2026-11-20/night-1-0.parquet",
        "views/athena.sql",
        "views/duckdb.sql",
        f"views/place-{hashlib.sha256(str(output).encode()).hexdigest()[:12]}",
    ]
    for name, schema in zip((visible[0], visible[2], "runs/night-1.parquet"), (FACES, IMAGES, RUNS), strict=True):
        stored = pq.read_schema(output / name)
        assert stored.equals(schema)
        assert {str(field.type) for field in stored} <= PORTABLE
        assert pq.ParquetFile(output / name).metadata.row_group(0).column(0).compression == "ZSTD"
    run = pq.read_table(output / "runs" / "night-1.parquet").to_pylist()[0]
    assert all(run[name] is not None for name in run if name not in ("git_commit", *CHANGE_KEYS)), "one run has none to compare it with"
    assert sum(json.loads(run["top_errors_json"]).values()) == 4


def test_a_published_run_is_not_done_again_and_its_id_is_not_reused(
    labeled: tuple[dict[str, object], Path, int], archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    summary, output, _ = labeled
    before = {file: file.stat().st_mtime_ns for file in output.rglob("*.parquet")}
    again, exit_code = label(LabelConfig((str(archive),), str(output), run_id="night-1", run_date="2026-11-20"))
    assert (again, exit_code) == (summary, 0)
    assert "published already" in caplog.text
    with pytest.raises(UsageError, match="used with another input"):
        label(LabelConfig((str(archive / "2019"),), str(output), run_id="night-1", run_date="2026-11-20"))
    with pytest.raises(UsageError, match="used with another limit"):
        label(LabelConfig((str(archive),), str(output), run_id="night-1", run_date="2026-11-20", limit=3))
    assert {file: file.stat().st_mtime_ns for file in output.rglob("*.parquet")} == before


def test_a_second_model_a_limit_and_too_many_failures(archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One small run without a run id: named by itself, with the commit row last, and exit code 3."""
    config = LabelConfig((str(archive),), str(tmp_path / "out"), limit=2, max_error_share=0.1)
    (tmp_path / "out" / "_staging" / "other-run").mkdir(parents=True)
    summary, exit_code = label_without_ray(config)
    assert exit_code == 0
    again, _ = label_without_ray(config)
    assert summary["run_id"] != again["run_id"]
    assert str(again["run_id"]).endswith("-2")
    assert (again["images_total"], again["images_skipped"]) == (2, 2), "the next ones that are due"
    failing = tmp_path / "failing"
    failing.mkdir()
    (failing / "x.jpg").write_text("x")
    alarm = tmp_path / "alarm.json"
    summary, exit_code = label_without_ray(LabelConfig((str(failing),), str(tmp_path / "out"), alarm_command=f"tee '{alarm}'"))
    assert (summary["images_failed"], exit_code) == (1, 3)
    assert json.loads(alarm.read_text()) == {**summary, "exit_code": 3}
    assert (summary["status"], summary["error_share"]) == ("too_many_failed", 1)
    assert re.fullmatch(
        r"1 of 1 image failed \(100.0\s%, where max_error_share allows 50.0\s%\); the commonest reason: .+\.", summary["reason"]
    )
    assert f"{summary['reason']} Look at {summary['report']}" in caplog.messages
    banner = Page(Path(summary["report"]).read_text()).text
    assert summary["reason"] in banner, "the morning's reader sees it first"
    assert query(tmp_path / "out", f"SELECT status FROM {{runs}} WHERE run_id = '{summary['run_id']}'") == [("too_many_failed",)]
    assert 'id="alarm"' not in (tmp_path / "out" / "reports" / str(again["run_id"]) / "report.html").read_text()
    events = [json.loads(line) for line in (tmp_path / "out" / "reports" / str(summary["run_id"]) / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events if event["event"] != "progress"] == ["planned", "published"]
    assert events[-1]["images_failed"] == 1
    assert query(tmp_path / "out", "SELECT count(*) FROM {runs}") == [(3,)]
    assert (tmp_path / "out" / "_staging" / "other-run").exists()


@pytest.mark.parametrize("harm", ["lost", "doubled", "foreign", "a part lost"])
def test_staging_that_does_not_match_the_manifest_is_never_published(tmp_path: Path, harm: str) -> None:
    config = LabelConfig(("/i",), str(tmp_path))
    run = Run("r", config.date(), ("/i",), str(tmp_path), "m", "v", config, Storage())
    due = due_images([ImageEntry(f"/{n:02d}.jpg", 1, None) for n in range(150)], lambda: iter(()), None, Counts())
    plan = write_plan(run, due, Counts(), datetime.datetime.now(datetime.UTC))
    parts = read_parts(run, plan)
    assert (plan.images, [part.rows for part in parts]) == (150, [64, 64, 22])
    for part in parts[harm == "a part lost" :]:
        rows = [staged_row(part.first_row + n) for n in range(part.rows)]
        if harm == "lost":
            rows.pop()
        if harm == "doubled":
            rows[-1] = rows[0]
        if harm == "foreign":
            rows[5]["image_uri"] = "/other.jpg"
        file = Path(staged_file(run, plan, part))
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=STAGING), file)
    with pytest.raises(PublishError, match="start the run again"):
        write_tables(run, plan, parts)
    assert not list(tmp_path.glob("images/*/*"))
    assert not list(tmp_path.glob("faces/*/*"))


def staged_row(number: int) -> dict[str, object]:
    row: dict[str, object] = {field.name: None for field in STAGING}
    texts = dict.fromkeys(("status", "image_id", "model_version", "detector_version", "run_id"), "x")
    numbers = {"row_number": number, "face_count": 0, "left_out_count": 0, "labeled_at": 0, "schema_version": 1}
    return row | texts | numbers | {"image_uri": f"/{number:02d}.jpg", "faces": []}


def run_job(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/label.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_bad_input_is_one_sentence_exit_code_2_and_nothing_written(tmp_path: Path, photographs: dict[str, Path]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "photos").mkdir()
    shutil.copy(photographs["coffee"], tmp_path / "photos")
    older = shutil.copytree(bundle.resolve(""), tmp_path / "older")
    content = json.loads((older / "bundle.json").read_text()) | {"format_version": 2}
    del content["onnx_sha256"]
    (older / "bundle.json").write_text(json.dumps(content))
    newer = shutil.copytree(bundle.resolve(""), tmp_path / "newer")
    (newer / "bundle.json").write_text(json.dumps(json.loads((newer / "bundle.json").read_text()) | {"format_version": 9}))
    (tmp_path / "unknown.yaml").write_text("colour: red")
    silent = shutil.copytree(bundle.resolve(""), tmp_path / "silent")
    network = onnx.load(silent / "model.onnx")
    weight = network.graph.initializer[0]
    values = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full_like(values, np.nan, np.float32), weight.name))
    onnx.save(network, silent / "model.onnx")
    bundle.write_metadata(str(silent), bundle.read_metadata(bundle.resolve("")) | {"onnx_sha256": [bundle.sha256(silent / "model.onnx")]})
    photos, output = ["--input", tmp_path / "photos"], tmp_path / "out"
    cases = {
        "missing": ["--input", tmp_path / "missing", "--output", output],
        "empty holds no files": ["--input", tmp_path / "empty", "--output", output],
        "file is no folder": [*photos, "--output", tmp_path / "file" / "out"],
        "/proc": [*photos, "--output", "/proc/fer_ray"],
        "has no ONNX network to label with: add it with `fer-ray upgrade --model": [*photos, "--output", output, "--model", older],
        "photos is missing or has no bundle.json": [*photos, "--output", output, "--model", tmp_path / "photos"],
        "upgrade fer_ray": [*photos, "--output", output, "--model", newer],
        "holds values that are no numbers": [*photos, "--output", output, "--model", silent],
        "has a backslash or no UTF-8": [*photos, "--output", f"{output}\\x"],
        "'colour'": [*photos, "--output", output, "--config", tmp_path / "unknown.yaml"],
    }
    for complaint, arguments in cases.items():
        answer = run_job(*arguments)
        assert answer.returncode == 2, (complaint, answer.stderr)
        assert answer.stdout == ""
        assert answer.stderr.count("\n") == 1, answer.stderr
        assert complaint in answer.stderr
        assert not output.exists()


def test_a_dry_run_counts_and_writes_nothing(archive: Path, tmp_path: Path) -> None:
    answer = run_job("--input", archive / "2019", "--output", tmp_path / "out", "--dry-run", "--limit", 30)
    summary = json.loads(answer.stdout.splitlines()[-1])
    assert (answer.returncode, summary["images_total"], summary["status"]) == (0, 30, "dry_run")
    assert summary["estimated_seconds"] > 0
    assert not (tmp_path / "out").exists()


def test_the_job_prints_progress_a_summary_for_people_and_json_last(tmp_path: Path, archive: Path) -> None:
    answer = run_job("--input", archive / "2019" / "ärger & co", "--output", tmp_path / "out")
    assert answer.returncode == 0, answer.stderr
    summary = json.loads(answer.stdout.splitlines()[-1])
    assert (summary["images_total"], summary["faces_total"]) == (1, 1)
    assert "1 with faces, 0 without, 0 failed" in answer.stdout
    assert "happy 100.0%" in answer.stdout


def test_real_photographs_are_labeled_as_well_as_promised(shared_data: dict[str, Path], labeler: Labeler) -> None:
    """A face nearly always, and most of the emotions that an API said of press photographs; nobody's labels of film stills count."""
    if "labeled_photos" not in shared_data:
        return
    with (SHARED_DATA / "labeled_photos_sources.csv").open() as table:
        rows = [row for row in csv.DictReader(table) if row["label_source"] == "api"]
    images = labeler.label([shared_data["labeled_photos"] / row["image"] for row in rows])
    told = Counter(bool(image.faces) and image.faces[0].emotion == row["emotion"] for image, row in zip(images, rows, strict=True))
    assert np.mean([bool(image.faces) for image in images]) > 0.99
    assert told[True] / len(rows) > 0.72
