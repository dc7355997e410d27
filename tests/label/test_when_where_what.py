"""What an analyst joins and groups by: when and where a picture was taken, its format, and its path wherever it is mounted."""

import datetime
import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import duckdb
import pytest
from PIL import Image
from rayless import label_without_ray
from tables_page import example_queries

from fer_ray.config.jobs.label import LabelConfig, LabelingOptions
from fer_ray.io.inputs import relative_path


@pytest.fixture
def photos(tmp_path: Path, photographs: dict[str, Path]) -> Path:
    """A portrait of a July night, a picture without any record, and a portrait inside a tar."""
    folder = tmp_path / "first mount" / "photos"
    (folder / "2019").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0110] = "EOS 5D"
    exif.get_ifd(0x8769).update({0x9003: "2019:07:31 23:30:00", 0x9011: "-03:00"})
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 30.0, 0.0), 3: "E", 4: (2.0, 0.0, 0.0)})
    with Image.open(photographs["astronaut"]) as image:
        image.save(folder / "2019" / "july.jpg", exif=exif)
        packed = io.BytesIO()
        image.save(packed, "WEBP")
    shutil.copy(photographs["camera"], folder / "plain.png")
    with tarfile.open(folder / "shard.tar", "w") as tar:
        member = tarfile.TarInfo("inner/a.webp")
        member.size = len(packed.getvalue())
        tar.addfile(member, io.BytesIO(packed.getvalue()))
    return folder


def rows(output: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = duckdb.connect()
    connection.sql((output / "views" / "duckdb.sql").read_text(encoding="utf-8"))
    return list(connection.sql(sql).fetchall())


def test_a_moved_mount_joins_by_relative_path_and_a_place_is_kept_only_where_asked_for(tmp_path: Path, photos: Path) -> None:
    output = tmp_path / "tables"
    label_without_ray(LabelConfig((str(photos),), str(output), run_id="before"))
    moved = photos.parent.rename(tmp_path / "second mount") / "photos"
    label_without_ray(LabelConfig((str(moved),), str(output), run_id="after", labeling=LabelingOptions(location=True)))
    what = "relative_path, folder, format, taken_at, taken_offset_minutes, camera_make, camera_model"
    july = (datetime.datetime(2019, 7, 31, 23, 30), -180, None, "EOS 5D")
    expected = [
        ("2019/july.jpg", "2019", "JPEG", *july),
        ("plain.png", "", "PNG", None, None, None, None),
        ("shard.tar/inner/a.webp", "shard.tar/inner", "WEBP", None, None, None, None),
    ]
    for run_id in ("before", "after"):
        assert rows(output, f"SELECT {what} FROM images WHERE run_id = '{run_id}' ORDER BY relative_path") == expected
    joined = "FROM images AS before JOIN images AS after USING (relative_path, content_sha256) WHERE before.run_id < after.run_id"
    assert rows(output, f"SELECT count(*) {joined.replace('<', '>')}") == [(3,)]
    queries = {title: query for title, _, query in example_queries()}
    ((month, folder, faces, percent, expected_percent),) = rows(output, queries["Happy faces by month and folder"])
    assert (str(month), folder, faces, percent) == ("2019-07-01", "2019", 2, 100)
    assert 50 < expected_percent <= 100
    moves = rows(output, queries["One picture at two addresses"])
    assert [(path, new == old.replace("first", "second")) for path, old, new in moves] == [(row[0], True) for row in expected]
    places = rows(output, "SELECT run_id, latitude, longitude FROM images WHERE format = 'JPEG' ORDER BY run_id")
    assert places == [("after", 48.5, 2.0), ("before", None, None)]
    assert rows(output, "SELECT count(*) FROM faces WHERE abs(yaw) < 20 AND abs(pitch) < 20 AND abs(roll) < 20") == [(4,)]


@pytest.mark.parametrize(
    ("inputs", "image", "archive", "path"),
    [
        (["/a/photos"], "/a/photos/x/1.jpg", None, "x/1.jpg"),
        (["/a/photos/1.jpg"], "/a/photos/1.jpg", None, "1.jpg"),
        (["s3://b/one", "s3://b/two/"], "s3://b/two/x/1.jpg", None, "x/1.jpg"),
        (["s3://b/one"], "s3://other/x/1.jpg", None, "x/1.jpg"),
        (["/a/lists/list.csv"], "/a/lists/x/1.jpg", None, "x/1.jpg"),
        (["/a/s.tar"], "/a/s.tar#x/1.jpg", "/a/s.tar", "s.tar/x/1.jpg"),
        (["/a"], "file:///a/x/%FF.jpg", None, "x/\ufffd.jpg"),
        (["https://h/a/"], "https://h/a/x/1.jpg?size=9", None, "x/1.jpg"),
    ],
)
def test_a_relative_path_is_the_same_wherever_the_input_lies(inputs: list[str], image: str, archive: str | None, path: str) -> None:
    assert relative_path(inputs, image, archive) == path
