"""What an operator of a cluster relies on: a real head, the real `ray job submit`, `stop` and `logs`, nodes that die, and the results."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
import yaml
from faces import pixel_csv
from heads import Head
from stores import S3Server, free_port

from fer_ray import Labeler
from fer_ray.cli.flags import parse
from fer_ray.config.jobs.train import TrainConfig
from fer_ray.io.storage import Storage
from fer_ray.tune.results import read_trials

IMAGES = 640  # 10 parts: some are left when the first has been seen, for two processes on each of two nodes
EPOCHS = 5
MANY_EPOCHS = 8  # some are left when a node and a driver have died
METRICS, OURS = free_port(), "ray_fer_ray_"
SMALL = ["--stem", 8, "--widths", 16, 32, "--depths", 1, 1, "--batch-size", 16, "--keep-duplicates"]
SMALL += ["--learning-rate", 0.004, "--weight-average", 0.9]
SPACE = "stem: {choice: [4, 8]}\nwidths: [8, 16]\ndepths: [1, 1]\nlearning_rate: {log: [1.0e-3, 1.0e-2]}\nbatch_size: 16\n"


@pytest.fixture(scope="module")
def head(s3_server: S3Server) -> Iterator[Head]:
    running = Head(environment=dict(s3_server.environment))
    try:
        running.start()
        running.add_node("--num-gpus=1", f"--metrics-export-port={METRICS}")  # a GPU that ONNX Runtime will not find
        yield running
    finally:
        running.stop()


def wait_for(condition: Callable[[], object], head: Head, job: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, head.logs(job)
        time.sleep(0.2)


def rows(output: Path, sql: str) -> list[tuple[Any, ...]]:
    tables = {table: f"read_parquet('{output}/{table}/**/*.parquet')" for table in ("images", "faces", "runs")}
    return list(duckdb.sql(sql.format(**tables)).fetchall())


def staged(output: Path) -> int:
    return len(list(output.glob("_staging/**/*.parquet")))


def two_nodes(head: Head) -> None:
    while len(head.nodes) < 2:
        head.add_node()


def test_a_submitted_job_labels_the_photographs_and_says_so(head: Head, photographs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for photograph in photographs.values():
        shutil.copy(photograph, tmp_path / "in")
    job = head.submit("small", "label", "--input", tmp_path / "in", "--output", tmp_path / "out")
    assert job.returncode == 0, job.stdout + job.stderr
    summary = json.loads(head.logs("small")[-1])
    assert (summary["status"], summary["images_total"], summary["images_failed"]) == ("done", len(photographs), 0)
    assert rows(tmp_path / "out", "SELECT count(DISTINCT image_uri) FROM {images}") == [(len(photographs),)]
    faces = rows(tmp_path / "out", "SELECT DISTINCT parse_filename(image_uri) FROM {faces} ORDER BY 1")
    assert {"astronaut.png", "grace_hopper.jpg"} <= {name for (name,) in faces}
    assert "warning: The model could not be put on a GPU" in head.ray("job", "logs", "small").stdout
    assert rows(tmp_path / "out", "SELECT git_commit FROM {runs}") == [(None,)], "the code came from the upload, not from the checkout"


def test_a_stopped_job_ends_soon_leaves_nothing_running_and_goes_on_when_submitted_again_though_a_node_dies(
    head: Head, photographs: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(IMAGES):
        shutil.copy(photographs["grace_hopper"], tmp_path / "in" / f"{number:03d}.jpg")
    line = ["--input", tmp_path / "in", "--output", tmp_path / "out", "--detector-side", 1280, "--gpus", 0]
    head.submit("stopped", "label", *line, wait=False)
    wait_for(lambda: staged(tmp_path / "out"), head, "stopped")
    wait_for(lambda: f"{OURS}stage_seconds_total" in head.get(f"http://127.0.0.1:{METRICS}/metrics"), head, "stopped", seconds=30)
    figures = [line for line in head.get(f"http://127.0.0.1:{METRICS}/metrics").splitlines() if line.startswith(OURS)]
    assert {"images_total", "faces_total", "bytes_total"} <= {line.split("{")[0].removeprefix(OURS) for line in figures}
    assert {"fetch", "decode", "detect", "classify"} <= {line.split('stage="')[1].split('"')[0] for line in figures if "stage=" in line}
    assert any(float(line.split()[-1]) > 0 for line in figures if 'status="ok"' in line)
    head.ray("job", "stop", "stopped")
    stopped = time.monotonic()
    while head.at_work():
        assert time.monotonic() < stopped + 30, head.at_work()
        time.sleep(0.2)
    assert head.info("stopped")["status"] == "STOPPED"
    assert head.logs("stopped")[-1] == "error: terminated; start the same command again to finish the run."
    assert not (tmp_path / "out" / "runs").exists(), "half a run must not be visible"

    two_nodes(head)
    finished = staged(tmp_path / "out")
    head.submit("again", "label", *line, wait=False)
    labeling: set[str] = set()

    def both_label() -> bool:  # a process has the name of its task while there is one
        labeling.update(node for node in head.nodes if any("LabelParts" in name for name in head.processes(node).values()))
        return len(labeling) == 2

    wait_for(both_label, head, "again")
    wait_for(lambda: staged(tmp_path / "out") >= finished + 1, head, "again")
    head.kill(head.nodes[0])
    wait_for(lambda: head.info("again")["status"] in ("SUCCEEDED", "FAILED"), head, "again")
    assert json.loads(head.logs("again")[-1])["images_total"] == IMAGES
    assert [log for log in head.logs("again") if " resuming: " in log]
    assert rows(tmp_path / "out", "SELECT count(*), count(DISTINCT image_uri) FROM {images} WHERE status = 'ok'") == [(IMAGES, IMAGES)]
    assert rows(tmp_path / "out", "SELECT count(*), count(DISTINCT image_uri) FROM {faces}") == [(IMAGES, IMAGES)]


def test_wrong_usage_of_a_submitted_job_fails_with_its_sentence(head: Head) -> None:
    job = head.submit("wrong", "label", "--output", "tables")
    assert job.returncode == 1, "ray job submit knows only 0 and 1; the job's own code is in its details"
    assert (head.info("wrong")["status"], head.info("wrong")["driver_exit_code"]) == ("FAILED", 2)
    assert head.logs("wrong")[-1].startswith("error: The output tables would lie in Ray's copy of the working folder")


@dataclass(frozen=True)
class Bucket:
    """What a cluster without a common folder has in common."""

    storage: Storage
    place: str

    @property
    def dataset(self) -> tuple[str, ...]:
        """The flags that name the data set in it."""
        return "--dataset", f"{self.place}/fer2013.csv", "--s3-endpoint", self.storage.s3_endpoint

    def epochs(self) -> int:
        """How many epochs the trainings in there have finished."""
        files = [entry.image_uri for entry in self.storage.list_files(self.place) if entry.image_uri.endswith("/progress.jsonl")]
        return sum(len(self.storage.read(file).splitlines()) for file in files)


@pytest.fixture
def bucket(s3_server: S3Server, drawn_faces: Path) -> Bucket:
    """A bucket with a data set in it."""
    name = f"team-{uuid.uuid4().hex[:8]}"
    s3_server.client().create_bucket(Bucket=name)
    found = Bucket(Storage(s3_server.endpoint), f"s3://{name}")
    found.storage.write(f"{found.place}/fer2013.csv", pixel_csv(drawn_faces))
    return found


def kill_node_and_driver(head: Head, bucket: Bucket, job: str, goes_on: bool) -> None:
    """In the middle of the work, together, or the driver when the work has gone on without the node."""
    wait_for(bucket.epochs, head, job)
    head.kill(head.node_of("ray::RayTrainWorker"))
    if goes_on:
        two_nodes(head)
        found = bucket.epochs()
        wait_for(lambda: bucket.epochs() > found, head, job)
    head.kill_driver(job)
    two_nodes(head)
    wait_for(lambda: head.info(job)["status"] == "FAILED", head, job)


def test_machines_that_share_nothing_but_s3_train_one_network_though_one_of_them_and_the_driver_die(
    head: Head, bucket: Bucket, tmp_path: Path
) -> None:
    two_nodes(head)
    line: list[object] = [*bucket.dataset, "--output", f"{bucket.place}/model"]
    line += [*SMALL, "--epochs", MANY_EPOCHS, "--patience", MANY_EPOCHS, "--workers", 2, "--cpus-per-worker", 2]  # on each node one
    head.submit("train", "train", *line, wait=False)
    kill_node_and_driver(head, bucket, "train", goes_on=False)
    resumed = head.submit("trained", "train", *line, "--resume")
    assert resumed.returncode == 0, resumed.stdout
    assert json.loads(head.logs("trained")[-1])["accuracy"] > 0.9
    names = {entry.image_uri.removeprefix(f"{bucket.place}/") for entry in bucket.storage.list_files(bucket.place)}
    assert {name.split("/")[0] for name in names} == {"fer2013.csv", "model"}, "the rest is removed"
    assert {"model/bundle.json", "model/model.onnx", "model/model.keras"} <= names
    assert [name for name in names if name.startswith("model/tensorboard/events.out.tfevents.")]
    bucket.storage.get_folder(f"{bucket.place}/model", tmp_path)
    history = pq.read_table(tmp_path / "history.parquet").to_pylist()
    assert [row["epoch"] for row in history] == list(range(1, MANY_EPOCHS + 1))
    assert history[-1]["train_loss"] < 0.9 * history[0]["train_loss"]


def test_a_search_over_machines_that_share_nothing_but_s3_whose_node_and_then_driver_die_goes_on_and_has_every_trial_once(
    head: Head, bucket: Bucket, photographs: dict[str, Path], tmp_path: Path
) -> None:
    two_nodes(head)
    output = f"{bucket.place}/search"
    (tmp_path / "space.yaml").write_text(SPACE)
    line: list[object] = [*bucket.dataset, "--keep-duplicates", "--output", output, "--space", tmp_path / "space.yaml"]
    line += ["--trials", 1, "--seeds", 2, "--max-concurrent", 1, "--epochs", EPOCHS]
    head.submit("tune", "tune", *line, wait=False)
    kill_node_and_driver(head, bucket, "tune", goes_on=True)
    resumed = head.submit("resumed", "tune", *line, "--resume")
    assert resumed.returncode == 0, resumed.stdout
    summary = json.loads(head.logs("resumed")[-1])
    assert (summary["trials"], summary["completed"], summary["failed"]) == (2, 2, 0)
    trials = read_trials(bucket.storage, output)
    assert sorted(trial.seed for trial in trials) == [7, 8]
    assert len({trial.configuration for trial in trials}) == 1
    numbers = [[epoch.epoch for epoch in trial.epochs] for trial in trials]
    assert all(row == list(range(1, len(row) + 1)) for row in numbers)
    assert max(map(len, numbers)) == EPOCHS
    bests = [epoch.accuracy for trial in trials if (epoch := trial.best("accuracy")) and epoch.accuracy is not None]
    assert summary["best_value"] == pytest.approx(sum(bests) / 2, abs=1e-4), "a configuration stands with the mean of its seeds"

    bucket.storage.get_folder(output, tmp_path)
    best = parse(TrainConfig, ["--config", str(tmp_path / "best.yaml"), "--dataset", "d", "--output", "o"], "")
    assert best.recipe.model.stem == yaml.safe_load((tmp_path / "best.yaml").read_text())["stem"]
    assert "Settings and objective" in (tmp_path / "index.html").read_text()
    (image,) = Labeler(str(tmp_path / "best_model")).label([photographs["astronaut"]])
    assert set(image.faces[0].probabilities) == {"happy", "sad"}
