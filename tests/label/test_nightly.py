"""What an operator trusts the nightly run with: S3, kills, crashes, full disks, several runs at a time; nothing lost, nothing twice."""

import dataclasses
import datetime
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pytest
from outages import OutageProxy
from rayless import label_without_ray
from sites import DEADLY, with_site
from stores import FaultyProxy, S3Server

from fer_ray.config.jobs.label import LabelConfig
from fer_ray.errors import FerRayError
from fer_ray.io.storage import Storage
from fer_ray.label.incremental import Counts, due_images
from fer_ray.label.job import label
from fer_ray.label.plan import read_parts, read_plan, write_plan
from fer_ray.label.run import Run, name_run
from fer_ray.models import bundle
from fer_ray.schema import ImageEntry

ROOT = Path(__file__).parents[2]
KEYS = ["2026/a b.jpg", "2026/ü+%20.jpg", "2026//x.jpg", "2026/ends in/", "2026/100%.jpg", *(f"many/{n:02d}.jpg" for n in range(60))]


def rows(output: Path, sql: str) -> list[tuple[Any, ...]]:
    tables = {table: f"read_parquet('{output}/{table}/**/*.parquet')" for table in ("images", "faces", "runs")}
    return list(duckdb.sql(sql.format(**tables)).fetchall())


def copy_out(store: Storage, folder: str, target: Path) -> Path:
    for entry in store.list_files(folder):
        file = target / entry.image_uri.removeprefix(folder + "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(store.read(entry.image_uri))
    return target


def test_two_nights_over_s3_label_everything_once_and_then_what_is_new(
    s3_server: S3Server, ray_cluster: None, photographs: dict[str, Path], tmp_path: Path
) -> None:
    """Input, output, model and a list all lie in a store that fails now and then; the second night finds what changed."""
    client = s3_server.client()
    client.create_bucket(Bucket="nights")
    hopper, astronaut = photographs["grace_hopper"].read_bytes(), photographs["astronaut"].read_bytes()
    for key in KEYS:
        client.put_object(Bucket="nights", Key=f"in/{key}", Body=hopper)
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w") as shard:
            for name, content in {"0.jpg": hopper, "0.json": b"{}", "1.png": astronaut}.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
        client.put_object(Bucket="nights", Key="in/00000.tar", Body=buffer.getvalue())
    client.put_object(Bucket="nights", Key="in/forbidden.jpg", Body=hopper)
    client.put_object(Bucket="nights", Key="list.csv", Body=b"uri\ns3://nights/in/2026/a b.jpg\ns3://nights/vanished.jpg\n")
    for file in Path(bundle.resolve("")).iterdir():
        client.put_object(Bucket="nights", Key=f"models/best/{file.name}", Body=file.read_bytes())
    proxy = FaultyProxy(s3_server.endpoint, share=0.1)
    inputs = ("s3://nights/in", "s3://nights/list.csv")
    night = LabelConfig(inputs, "s3://nights/in/tables", "s3://nights/models/best", s3_endpoint=proxy.endpoint, run_date="2026-11-20")
    try:
        summary, exit_code = label(night)
        assert (exit_code, summary["images_total"], summary["images_failed"], summary["faces_total"]) == (0, 69, 2, 67)
        tables = copy_out(Storage(s3_server.endpoint), "s3://nights/in/tables", tmp_path / "first")
        found = dict(rows(tables, "SELECT image_uri, status || coalesce(': ' || error, '') FROM {images}"))
        expected = {f"s3://nights/in/{key}": "ok" for key in [*KEYS, "00000.tar#0.jpg", "00000.tar#1.png"]}
        assert found == expected | {
            "s3://nights/in/forbidden.jpg": "unreadable: The file cannot be read (AccessDenied).",
            "s3://nights/vanished.jpg": "unreadable: The file cannot be read (it does not exist any more).",
        }
        assert {path.parts[-len(path.relative_to(tables).parts)] for path in tables.rglob("*.*")} >= {"images", "faces", "runs"}
        assert {path.name for path in tables.glob("_*")} == {"_archives"}, "work in progress is removed"

        client.put_object(Bucket="nights", Key="in/2026/new.jpg", Body=hopper)
        client.put_object(Bucket="nights", Key="in/2026/100%.jpg", Body=astronaut)
        summary, _ = label(dataclasses.replace(night, run_date="2026-11-21"))
        assert (summary["images_total"], summary["images_skipped"]) == (4, 66)
        tables = copy_out(Storage(s3_server.endpoint), "s3://nights/in/tables", tmp_path / "second")
        second = [uri for (uri,) in rows(tables, "SELECT image_uri FROM {images} WHERE run_date = '2026-11-21'")]
        assert second == [f"s3://nights/{key}" for key in ("in/2026/100%.jpg", "in/2026/new.jpg", "in/forbidden.jpg", "vanished.jpg")]
        assert sum(proxy.faults.values()) > 5
        secrets = (s3_server.environment["AWS_SECRET_ACCESS_KEY"], s3_server.environment["AWS_ACCESS_KEY_ID"])
        assert not [file for file in tables.rglob("*.*") for secret in secrets if secret.encode() in file.read_bytes()]
    finally:
        proxy.stop()


def test_outages_while_a_cluster_lists_and_labels_are_ridden_through_without_a_wrong_row(
    s3_server: S3Server, ray_cluster: None, photographs: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Denied at the very start, then overloaded, then nobody listening, under several processes of Ray."""
    client = s3_server.client()
    client.create_bucket(Bucket="outage")
    for number in range(128):
        client.put_object(Bucket="outage", Key=f"in/{number:03d}.jpg", Body=photographs["grace_hopper"].read_bytes())
    proxy = OutageProxy(s3_server.endpoint)
    try:
        night = LabelConfig(("s3://outage/in",), "s3://outage/tables", s3_endpoint=proxy.endpoint, thumbnails=False, workers=2)
        refused = {"fault": "refused", "seconds": 2, "after": 40}
        overloaded = {"fault": "503", "seconds": 2, "after": 20}
        proxy.begin("denied", 1.5, matching=".", following=[overloaded, refused])
        summary, exit_code = label(night)
        assert (exit_code, summary["images_ok"], summary["images_failed"]) == (0, 128, 0)
        assert {"denied", "503", "refused"} == set(proxy.faults)
        assert [message for message in caplog.messages if "(AccessDenied)" in message and "It is tried again for 300 s." in message]
        proxy.begin("denied", 60, matching=".")
        with pytest.raises(FerRayError, match=r"^s3://outage/\S* cannot be \w+ \(AccessDenied\): check the permissions") as told:
            label(dataclasses.replace(night, run_date="2026-11-21", wait_for_store=1.5))
        assert told.value.exit_code == 1
    finally:
        proxy.stop()


def test_a_night_that_cannot_write_stops_with_a_sentence_and_goes_on_when_it_can(
    s3_server: S3Server, ray_cluster: None, photographs: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    client = s3_server.client()
    client.create_bucket(Bucket="full")
    for number in range(70):
        client.put_object(Bucket="full", Key=f"in/{number:02d}.jpg", Body=photographs["grace_hopper"].read_bytes())
    proxy = FaultyProxy(s3_server.endpoint)
    try:
        night = LabelConfig(("s3://full/in",), "s3://full/tables", s3_endpoint=proxy.endpoint, thumbnails=False)
        for full, where in (("PUT .*_staging/.*0064.parquet", "_staging"), ("PUT .*/faces/", "/faces/")):
            proxy.full = full
            with pytest.raises(FerRayError, match=f"stopped .*{where}.*InsufficientStorage.*start the same command again"):
                label(night)
        proxy.full = ""
        fetched = dict(proxy.fetched)
        summary, exit_code = label(night)
        assert (summary["images_ok"], exit_code) == (70, 0)
        again = [path for path, n in proxy.fetched.items() if "/in/" in path and n != fetched.get(path)]
        assert again == [], "all images were labeled before the tables could not be written"
        assert "resuming: 70 images labeled already" in caplog.messages
    finally:
        proxy.stop()


def job(*arguments: object, environment: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    command = [sys.executable, "jobs/label.py", *map(str, arguments)]
    environment = dict(os.environ) | (environment or {})
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_two_processes_that_do_the_same_night_and_one_that_does_another_share_an_output(
    photographs: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(150):
        shutil.copy(photographs["grace_hopper"], tmp_path / "in" / f"{number:03d}.jpg")
    same = ["--input", tmp_path / "in", "--output", tmp_path / "out", "--run-id", "same"]
    jobs = [job(*same, environment={"RAY_ADDRESS": "local"}), job(*same), job(*same[:4], "--run-id", "other")]  # one with Ray, two without
    for one in jobs:
        output, errors = one.communicate(timeout=180)
        assert one.returncode == 0, output + errors
        assert json.loads(output.splitlines()[-1])["images_ok"] == 150
    count = "SELECT run_id, count(*), count(DISTINCT image_uri) FROM {images} GROUP BY run_id ORDER BY run_id"
    assert rows(tmp_path / "out", count) == [("other", 150, 150), ("same", 150, 150)]
    assert rows(tmp_path / "out", count.replace("images", "faces")) == [("other", 150, 150), ("same", 150, 150)]
    assert not [path for path in (tmp_path / "out").rglob("_*/**/*") if path.is_file()]


@pytest.mark.parametrize("cluster", ["", "local"], ids=["alone", "Ray"])
def test_an_image_that_kills_its_decoder_is_a_row_and_not_the_end(photographs: dict[str, Path], tmp_path: Path, cluster: str) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DEADLY)
    hopper = photographs["grace_hopper"].read_bytes()
    for number in range(40):
        (tmp_path / "in" / f"{number:02d}.jpg").write_bytes(hopper + b"POISON" * (number == 20))
    process = job(
        "--input", tmp_path / "in", "--output", tmp_path / "out", environment=with_site(tmp_path / "site") | {"RAY_ADDRESS": cluster}
    )
    output, errors = process.communicate(timeout=180)
    assert process.returncode == 0, output + errors
    bad = rows(tmp_path / "out", "SELECT parse_filename(image_uri), status, error FROM {images} WHERE status <> 'ok'")
    assert bad == [("20.jpg", "undecodable", "The image ended the process that decoded it.")]
    assert rows(tmp_path / "out", "SELECT count(*) FROM {faces}") == [(39,)]


CROWDED = """
import os, signal, sys
if "fer_ray.label.local" in sys.orig_argv:
    import cv2, psutil
    real = cv2.imdecode
    def imdecode(content, *arguments):
        others = [process for process in psutil.Process().parent().children() if process.pid != os.getpid()]
        if any("fer_ray.label.local" in process.cmdline() for process in others):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(content, *arguments)
    cv2.imdecode = imdecode
"""


def test_processes_that_find_no_memory_beside_each_other_go_on_one_after_the_other(photographs: dict[str, Path], tmp_path: Path) -> None:
    for folder in ("site", "in"):
        (tmp_path / folder).mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CROWDED)
    for number in range(130):
        shutil.copy(photographs["grace_hopper"], tmp_path / "in" / f"{number:03d}.jpg")
    process = job("--input", tmp_path / "in", "--output", tmp_path / "out", environment=with_site(tmp_path / "site"))
    output, errors = process.communicate(timeout=180)
    assert process.returncode == 0, output + errors
    assert "ended early" not in errors, "nothing was left to Ray"
    assert rows(tmp_path / "out", "SELECT status, count(*) FROM {images} GROUP BY status") == [("ok", 130)]


ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in ("ray", "tensorflow", "keras"):
            raise ImportError(f"{name} is not needed")
sys.meta_path.insert(0, Refuse())
"""


def test_a_few_images_are_labeled_without_ray_and_their_process_ends_with_the_job(photographs: dict[str, Path], tmp_path: Path) -> None:
    for folder in ("alone", "sleepy", "in"):
        (tmp_path / folder).mkdir()
    (tmp_path / "alone" / "sitecustomize.py").write_text(ALONE)
    (tmp_path / "sleepy" / "sitecustomize.py").write_text(ALONE + DEADLY)
    hopper = photographs["grace_hopper"].read_bytes()
    (tmp_path / "in" / "hopper.jpg").write_bytes(hopper)
    process = job("--input", tmp_path / "in", "--output", tmp_path / "out", environment=with_site(tmp_path / "alone"))
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, output + errors
    assert rows(tmp_path / "out", "SELECT cpu_count, images_total, faces_total FROM {runs}") == [(os.cpu_count(), 1, 1)]
    (tmp_path / "in" / "sleepy.jpg").write_bytes(hopper + b"SLEEPY")
    process = job("--input", tmp_path / "in", "--output", tmp_path / "out", environment=with_site(tmp_path / "sleepy"))
    parent = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    while not (children := parent.children()) and time.monotonic() < deadline:
        time.sleep(0.1)
    (child,) = children
    process.kill()
    process.communicate()
    child.wait(timeout=30)


@pytest.fixture
def unnamed(tmp_path: Path) -> Run:
    config = LabelConfig((str(tmp_path),), str(tmp_path / "out"))
    return Run("", datetime.date(2026, 11, 21), config.input, config.output, "m", "v", config, Storage())


def planned(run: Run, images: int) -> Any:
    counts = Counts()
    due = due_images([ImageEntry(f"/{n:06d}.jpg", n, None) for n in range(images)], lambda: iter(()), None, counts)
    return write_plan(run, due, counts, datetime.datetime.now(datetime.UTC))


def test_the_same_line_takes_up_an_interrupted_run_on_another_day(unnamed: Run) -> None:
    yesterday = name_run(dataclasses.replace(unnamed, run_date=datetime.date(2026, 11, 20)))
    assert yesterday.run_id.startswith("2026-11-20-")
    assert name_run(unnamed).run_id.startswith("2026-11-21-")
    planned(yesterday, 3)
    assert name_run(unnamed) == yesterday
    other = dataclasses.replace(unnamed, model_version="another")
    assert name_run(other).run_id.startswith("2026-11-21-")
    asked = dataclasses.replace(unnamed, config=dataclasses.replace(unnamed.config, run_date="2026-11-21"))
    assert name_run(asked).run_id.startswith("2026-11-21-")


def test_two_that_plan_the_same_run_work_from_one_plan(unnamed: Run) -> None:
    run = name_run(unnamed)
    first, second = planned(run, 1000), planned(run, 7)
    assert first == second == read_plan(run)
    parts = read_parts(run, second)
    assert sum(part.rows for part in parts) == 1000
    assert [part.first_row for part in parts] == [sum(part.rows for part in parts[:n]) for n in range(len(parts))]


def test_what_crashes_left_is_put_right_and_what_others_do_is_left_alone(photographs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(photographs["grace_hopper"], tmp_path / "in")
    output = tmp_path / "out"
    config = LabelConfig((str(tmp_path / "in"),), str(output), run_id="night", run_date="2026-11-21")
    run = Run("", config.date(), config.input, str(output), "m", "v", config, Storage())
    for run_id in ("dead", "at-work"):
        planned(dataclasses.replace(run, run_id=run_id), 40)
    half = [
        output / "images" / "run_date=2026-11-01" / "dead-0.parquet",
        output / "images" / "run_date=2026-11-21" / "night-7.parquet",
        output / "faces" / "run_date=2026-11-20" / "night-0.parquet",
        output / "faces" / "run_date=2026-11-01" / "_writing-0123",
        output / "runs" / "_writing-4567",
    ]
    for file in half:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half")
    others = output / "images" / "run_date=2026-11-21" / "night-7-0.parquet"
    shutil.copy(half[0], others)
    long_ago = time.time() - 8 * 86400
    for file in [*(output / "_manifest" / "dead").rglob("*"), *half]:
        os.utime(file, (long_ago, long_ago))
    label_without_ray(config)
    assert not [file for file in half if file.exists()]
    assert others.exists()
    assert sorted(path.name for path in (output / "_manifest").iterdir()) == ["at-work"]
    assert read_plan(dataclasses.replace(run, run_id="at-work"))


@pytest.mark.timeout(600)  # five starts of the job, one after the other
def test_a_run_killed_at_any_moment_ends_with_the_rows_of_an_undisturbed_one() -> None:
    """The short form of benchmarks/faults.py: a kill while planning, committing a part, of a worker, and publishing, all in one run."""
    command = [sys.executable, "benchmarks/faults.py", "--images", "300", "--one-round"]
    command += ["--kinds", "manifest", "commit", "worker", "publish"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    figures = json.loads(answer.stdout.splitlines()[-1])
    assert (figures["kills"], figures["rows_lost_or_doubled"], figures["finished_again"]) == (4, 0, 0)
