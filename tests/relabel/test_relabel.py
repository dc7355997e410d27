"""What an archive trusts relabeling with: its faces under another model, without its photographs, each once."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from crop_tables import multiply
from rayless import label_without_ray

from fer_ray.config.jobs.label import LabelConfig
from fer_ray.config.jobs.relabel import RelabelConfig
from fer_ray.errors import FerRayError, UsageError
from fer_ray.models import bundle
from fer_ray.relabel.job import relabel

DECIDED = (
    *("sharpness", "quality", "occluded", "emotion", "confidence"),
    *("labeled_at", "run_id", "model_version", "model_name", "schema_version"),
)


def rows(output: Path, sql: str) -> list[tuple[Any, ...]]:
    tables = {table: f"read_parquet('{output}/{table}/**/*.parquet', union_by_name=true)" for table in ("images", "faces", "crops", "runs")}
    return list(duckdb.sql(sql.format(**tables)).fetchall())


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, Path]) -> Path:
    """Tables with crops of photographs that are gone: one without faces and one that is none among them."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "in").mkdir()
    for name in ("astronaut", "grace_hopper", "coffee"):
        shutil.copy(photographs[name], folder / "in")
    (folder / "in" / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    config = LabelConfig((str(folder / "in"),), str(folder / "kept"), run_id="first", keep_crops=True, thumbnails=False)
    label_without_ray(config)
    label_without_ray(LabelConfig(config.input, str(folder / "direct"), "fer2013", run_id="direct", thumbnails=False))
    shutil.rmtree(folder / "in")
    return folder


@pytest.fixture
def tables(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept / "kept", tmp_path / "kept"))


def test_a_new_model_labels_the_faces_of_photographs_that_are_gone(kept: Path, tables: Path) -> None:
    summary = relabel(RelabelConfig(str(tables), "fer2013", run_id="second"))
    assert (summary["images_total"], summary["faces_total"], summary["images_failed"]) == (4, 2, 1)
    names = pq.read_schema(next(tables.glob("faces/*/second-0.parquet"))).names
    carried = ", ".join(name for name in names if name not in DECIDED and not name.startswith("prob_"))
    in_run = f"SELECT {carried} FROM {{faces}} WHERE run_id = '%s' ORDER BY image_id"
    before, after = (rows(tables, in_run % run) for run in ("first", "second"))
    assert before == after
    answers = "SELECT parse_filename(image_uri), emotion, prob_happy, prob_neutral FROM {faces} WHERE model_version = '%s' ORDER BY 1"
    version = summary["model_version"]
    for relabeled, direct in zip(rows(tables, answers % version), rows(kept / "direct", answers % version), strict=True):
        assert relabeled[:2] == direct[:2]
        assert relabeled[2:] == pytest.approx(direct[2:], abs=0.15)
    again = relabel(RelabelConfig(str(tables), "fer2013", run_id="third"))
    assert (again["images_total"], again["images_skipped"]) == (0, 4), "what the model has labeled is left alone"
    back = relabel(RelabelConfig(str(tables), run_id="fourth"))
    assert back["images_total"] == 0, "the first model has labeled these images as they are"


def test_a_relabeling_that_is_killed_ends_with_every_row_once(tables: Path) -> None:
    multiply(tables, "first", 60)
    command = [sys.executable, "-m", "fer_ray", "relabel", "--tables", str(tables), "--model", "fer2013", "--run-id", "second"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list(tables.glob("_staging/second/*/*.parquet")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    assert not (tables / "runs" / "second.parquet").exists()
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "labeled already" in answer.stdout
    assert json.loads(answer.stdout.splitlines()[-1])["images_total"] == 240
    count = "SELECT count(*), count(DISTINCT image_id) FROM {%s} WHERE run_id = 'second'"
    assert rows(tables, count % "images") == [(240, 240)]
    assert rows(tables, count % "faces") == [(120, 120)]
    lost = "SELECT count(*) FROM {crops} ANTI JOIN {faces} AS faces USING (image_id, face_index) WHERE true"
    assert rows(tables, lost) == [(0,)]
    assert not list(tables.glob("_staging/*"))


def test_what_cannot_be_relabeled_is_said_in_a_sentence(kept: Path, tables: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no kept crops: label with --keep-crops first\.$"):
        relabel(RelabelConfig(str(kept / "direct")))
    with pytest.raises(UsageError, match="holds no tables of a committed run"):
        relabel(RelabelConfig(str(tmp_path)))
    wide = Path(shutil.copytree(bundle.resolve("fer2013"), tmp_path / "wide"))
    content = json.loads((wide / bundle.METADATA_FILE).read_text())
    content["preprocessing"]["crop"]["scale"] = 2.0
    bundle.write_metadata(str(wide), content)
    with pytest.raises(UsageError, match=r"looks 1\.1 faces far .* reach 0\.8: label the images themselves"):
        relabel(RelabelConfig(str(tables), str(wide)))
    (crops,) = tables.glob("crops/*/*.parquet")
    table = pq.read_table(crops)
    pq.write_table(table.slice(1), crops)
    with pytest.raises(FerRayError, match="lacks rows: restore the files of that run"):
        relabel(RelabelConfig(str(tables), "fer2013"))
    pq.write_table(table.take([1, 0]), crops)
    with pytest.raises(FerRayError, match="do not belong together"):
        relabel(RelabelConfig(str(tables), "fer2013"))
    pq.write_table(table, crops)
    assert relabel(RelabelConfig(str(tables), "fer2013"))["images_total"] == 4, "the run that stopped ends when its files are restored"
