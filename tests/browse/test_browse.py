"""What an analyst and an operator are shown of the tables, and what their SQL cannot reach."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from rayless import label_without_ray
from run_tables import write_run

from fer_ray.browse.crops import write_crops
from fer_ray.browse.runs import list_errors, list_runs, show_run
from fer_ray.config.jobs.browse import CropsConfig, ErrorsConfig, RunsConfig, ShowConfig
from fer_ray.config.jobs.label import LabelConfig
from fer_ray.errors import UsageError

SHARES = (0.1, 0.05, 0.05, 0.1, 0.3, 0.25, 0.1, 0.05)


def shape_of(file: Path) -> tuple[int, ...]:
    picture = cv2.imread(str(file))
    assert picture is not None
    return tuple(picture.shape)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, Path]) -> Path:
    """Two photographs; the crop of one is kept, that of the other has to be cut again."""
    folder = tmp_path_factory.mktemp("browse")
    for name, keep in (("astronaut", True), ("grace_hopper", False)):
        (folder / name).mkdir()
        shutil.copy(photographs[name], folder / name)
        label_without_ray(LabelConfig((str(folder / name),), str(folder / "out"), run_id=name, keep_crops=keep, thumbnails=False))
    shutil.rmtree(folder / "astronaut")
    return folder / "out"


def test_faces_are_written_as_files_in_the_order_asked_for_with_a_list_that_leads_back(tables: Path, tmp_path: Path) -> None:
    config = CropsConfig(str(tables), where="confidence > 0", order_by="confidence DESC", output=str(tmp_path / "faces"))
    summary = write_crops(config)
    assert (summary["faces"], summary["written"]) == (2, 2)
    listed = list(csv.DictReader((tmp_path / "faces" / "faces.csv").open(encoding="utf-8")))
    assert [row["file"] for row in listed] == sorted(file.name for file in (tmp_path / "faces").glob("*.jpg"))
    assert float(listed[0]["confidence"]) >= float(listed[1]["confidence"])
    assert {Path(row["image_uri"]).stem for row in listed} == {"astronaut", "grace_hopper"}
    for row in listed:
        assert min(shape_of(tmp_path / "faces" / row["file"])[:2]) >= 48
    with pytest.raises(UsageError, match="is there already: name a new one"):
        write_crops(config)
    write_crops(CropsConfig(str(tables), output=str(tmp_path / "sheet.png")))
    assert shape_of(tmp_path / "sheet.png") == (148, 256, 3)


@pytest.mark.parametrize(
    "where",
    [
        "true; COPY faces TO '{out}'",
        "true) ORDER BY 1; COPY faces TO '{out}'; SELECT (1",
        "image_id IN (SELECT content FROM read_text('{secret}'))",
        "EXISTS (FROM '{secret}')",
        "EXISTS (FROM read_csv('{secret}'))",
        "EXISTS (FROM glob('{folder}/*'))",
        "EXISTS (FROM rows)",  # a variable of the program
        "emotoin = 'happy'",
        "",
    ],
)
def test_a_condition_can_neither_read_nor_write_files(tables: Path, tmp_path: Path, where: str) -> None:
    secret, out = tmp_path / "secret.csv", tmp_path / "out"
    secret.write_text("a\n1\n")
    condition = where.format(secret=secret, out=out, folder=tmp_path)
    with pytest.raises(UsageError, match=r"^The condition of --where or --order-by (cannot be used \(|is more than one)"):
        write_crops(CropsConfig(str(tables), where=condition, output=str(tmp_path / "faces")))
    assert sorted(tmp_path.iterdir()) == [secret]


def test_runs_are_listed_shown_and_asked_for_their_errors(tmp_path: Path) -> None:
    for day in (20, 21):
        write_run(tmp_path, f"night-{day}", day, SHARES, 100, ["2026/11"], failed=day - 20)
    listed = list_runs(RunsConfig(str(tmp_path)))
    assert [line.split()[0] for line in listed["lines"]] == ["run", "night-21", "night-20"]
    assert listed["newest"] == "night-21"
    assert list_runs(RunsConfig(str(tmp_path), limit=1))["lines"][-1] == "and 1 older run: --limit shows more"
    command = [sys.executable, "-m", "fer_ray", "show", "night-20", "--tables", str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "100: 100 with faces, 0 without, 0 failed" in answer.stdout
    assert json.loads(answer.stdout.splitlines()[-1])["run_id"] == "night-20"
    errors = list_errors(ErrorsConfig(str(tmp_path)))
    assert errors["lines"][0] == "night-21: 1 of 100 images failed (1.0\N{NO-BREAK SPACE}%)"
    assert errors["reasons"] == [{"status": "undecodable", "error": "The file is no image (0 bytes read).", "images": 1}]
    with pytest.raises(UsageError, match="holds no run night-22: `fer-ray runs"):
        show_run(ShowConfig(str(tmp_path), run_id="night-22"))
    with pytest.raises(UsageError, match="holds no committed run"):
        list_runs(RunsConfig(str(tmp_path / "elsewhere")))
