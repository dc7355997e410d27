"""Films in the archive: rows for their frames, once each, whatever happens to the process or is wrong with the film."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.dataset as ds
import pytest
from films import CARPHONE, drawn, write_film
from sites import with_site
from stores import FaultyProxy, S3Server
from tables_page import example_queries

from fer_ray.config.jobs.label import LabelConfig
from fer_ray.emotions import EMOTIONS
from fer_ray.errors import UsageError
from fer_ray.label.job import label

ROOT = Path(__file__).parents[2]
DEADLY = """
import os, signal
import cv2
real = cv2.resize
def resize(pixels, *arguments, **settings):
    if pixels[..., 1].mean() > 250 and pixels[..., 0].mean() < 5:
        os.kill(os.getpid(), signal.SIGSEGV)
    return real(pixels, *arguments, **settings)
cv2.resize = resize
"""  # a green picture does that


def rows_of(output: Path, table: str = "images") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = ds.dataset(output / table).to_table().to_pylist()
    return sorted(rows, key=lambda row: (row["video_uri"] or row["image_uri"], row["frame_time_ms"] or 0))


def run(folder: Path, **settings: Any) -> dict[str, Any]:
    return label(LabelConfig((str(folder / "in"),), str(folder / "out"), **{"max_error_share": 1.0, **settings}))[0]


def test_films_lie_among_photographs_and_have_a_row_for_each_second_and_one_for_what_is_wrong_with_them(
    photographs: dict[str, Path], tmp_path: Path
) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "a.jpg").write_bytes(photographs["grace_hopper"].read_bytes())
    (inside / "talk.mp4").write_bytes(CARPHONE.read_bytes())
    whole = write_film(inside / "cut.mp4", drawn(400), container={"movflags": "+faststart"}, options={"preset": "ultrafast"})
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    (inside / "empty.mkv").write_bytes(b"")
    (inside / "photograph.mov").write_bytes(photographs["grace_hopper"].read_bytes())

    summary = run(tmp_path)
    rows = rows_of(tmp_path / "out")
    film = str(inside / "talk.mp4")
    talk = [row for row in rows if row["video_uri"] == film]
    assert [(row["image_uri"], row["frame_time_ms"]) for row in talk] == [
        (f"{film}#t={time_ms / 1000:.3f}", time_ms) for time_ms in (0, 1001, 2002, 3003)
    ]
    assert all((row["status"], row["face_count"], row["width"], row["height"]) == ("ok", 1, 176, 144) for row in talk)
    assert all(row["size_bytes"] == CARPHONE.stat().st_size for row in talk)
    faces = [row for row in rows_of(tmp_path / "out", "faces") if row["video_uri"] == film]
    assert [(row["frame_time_ms"], row["track_id"]) for row in faces] == [(0, 0), (1001, 0), (2002, 0), (3003, 0)]
    (track,) = [row for row in ds.dataset(tmp_path / "out" / "tracks").to_table().to_pylist() if row["video_uri"] == film]
    assert (track["track_id"], track["start_ms"], track["end_ms"], track["frames"]) == (0, 0, 3003, 4)
    assert sum(track[f"share_{emotion}"] for emotion in EMOTIONS) == pytest.approx(1)
    assert {row["track_id"] for row in rows_of(tmp_path / "out", "faces") if row["video_uri"] is None} == {None}

    connection = duckdb.connect()
    connection.sql((tmp_path / "out" / "views" / "duckdb.sql").read_text(encoding="utf-8"))
    happy, surprised = (
        connection.sql(query).fetchall() for title, _, query in example_queries() if "happy" in title or "surprise" in title
    )
    assert [row[0] for row in happy] == [film]
    assert all(row[0] == film and row[3] <= 3.003 for row in surprised)

    cut = [row for row in rows if row["video_uri"] == str(whole)]
    assert 5 < len(cut) < 16
    assert [row["frame_time_ms"] for row in cut if row["error"] is None] == [1000 * second for second in range(len(cut) - 1)]
    (trouble,) = [row for row in cut if row["error"]]
    assert (trouble["image_uri"], trouble["status"], trouble["frame_time_ms"]) == (str(whole), "undecodable", None)
    others = {Path(row["image_uri"]).name: (row["status"], row["error"]) for row in rows if row["error"] and row is not trouble}
    assert others["empty.mkv"] == ("undecodable", "The film is empty.")
    assert others["photograph.mov"][0] == "undecodable"
    assert rows[0]["video_uri"] is None
    assert rows[0]["face_count"] == 1
    assert summary["images_total"] == len(rows) == len({row["image_id"] for row in rows})

    assert run(tmp_path)["images_total"] == 0  # nothing new
    (inside / "talk.mp4").write_bytes(CARPHONE.read_bytes() + b"\0" * 8)
    assert run(tmp_path)["images_total"] == 4  # the film that changed


def test_films_are_left_out_where_no_frames_are_asked_for_and_impossible_rates_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "talk.mp4").write_bytes(CARPHONE.read_bytes())
    with pytest.raises(UsageError, match="holds no images"):
        run(tmp_path, video_fps="0")
    with pytest.raises(UsageError, match="is a film, and video_fps is 0"):
        label(LabelConfig((str(tmp_path / "in" / "talk.mp4"),), str(tmp_path / "out"), video_fps="0"))
    for rate in ("-1", "often", "1/0", "1e9"):
        with pytest.raises(UsageError, match="video_fps must be a number"):
            run(tmp_path, video_fps=rate)


def test_a_film_longer_than_the_limit_is_a_row_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "talk.mp4").write_bytes(CARPHONE.read_bytes())
    run(tmp_path, max_video_hours=0.001)
    (row,) = rows_of(tmp_path / "out")
    assert (row["status"], row["error"]) == ("too_large", "The film has 4.004 s, the limit is 3.6 s (max_video_hours).")


def test_a_run_that_is_killed_within_a_film_loses_no_frame_and_doubles_none(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_film(tmp_path / "in" / "film.mkv", drawn(3000), rate=30, options={"preset": "ultrafast"})
    command = [sys.executable, "-m", "fer_ray", "label", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--video-fps"]
    process = subprocess.Popen([*command, "2"], cwd=ROOT, start_new_session=True)
    while not list((tmp_path / "out").glob("_staging/*/*/*.parquet")) and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, "2"], cwd=ROOT, check=True)
    assert [row["frame_time_ms"] for row in rows_of(tmp_path / "out")] == list(range(0, 100_000, 500))


def test_a_film_that_ends_its_process_keeps_the_frames_before_and_has_a_row_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DEADLY)
    green = np.zeros((64, 96, 3), np.uint8)
    green[..., 1] = 255
    film = write_film(tmp_path / "in" / "film.mp4", [*drawn(75), *[green] * 30], options={"preset": "ultrafast", "qp": "0"})
    write_film(tmp_path / "in" / "other.mp4", drawn(30))
    command = [sys.executable, "-m", "fer_ray", "label", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    subprocess.run(command, cwd=ROOT, env=os.environ | with_site(tmp_path / "site"), check=True)
    rows = [(row["frame_time_ms"], row["error"]) for row in rows_of(tmp_path / "out") if row["video_uri"] == str(film)]
    assert sorted(rows, key=str) == [(0, None), (1000, None), (2000, None), (None, "The film ended the process that decoded it.")]
    assert sum(row["video_uri"] != str(film) for row in rows_of(tmp_path / "out")) == 2


def test_films_in_stores_and_tars_are_read_by_ranges_and_their_outages_are_waited_for(s3_server: S3Server, tmp_path: Path) -> None:
    client = s3_server.client()
    client.create_bucket(Bucket="films")
    film = write_film(tmp_path / "film.mp4", drawn(200), options={"qp": "0", "preset": "ultrafast"})
    with tarfile.open(tmp_path / "films.tar", "w") as shard:
        shard.add(film, "inside/film.mp4")
        shard.add(CARPHONE, "talk.mp4")
    for name in ("film.mp4", "films.tar"):
        client.upload_file(str(tmp_path / name), "films", f"in/{name}")
    proxy = FaultyProxy(s3_server.endpoint, share=0.1)
    try:
        config = LabelConfig(("s3://films/in",), str(tmp_path / "out"), s3_endpoint=proxy.endpoint, thumbnails=False)
        assert label(config)[0]["images_failed"] == 0
    finally:
        proxy.stop()
    rows = [(row["video_uri"].removeprefix("s3://films/in/"), row["frame_time_ms"]) for row in rows_of(tmp_path / "out")]
    expected = [(name, 1000 * second) for name in ("film.mp4", "films.tar#inside/film.mp4") for second in range(8)]
    assert rows == [*expected, *(("films.tar#talk.mp4", time_ms) for time_ms in (0, 1001, 2002, 3003))]
