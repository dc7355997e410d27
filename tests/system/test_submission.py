"""What an operator of a cluster relies on: a real head, the real `ray job submit`, `stop` and `logs`, nodes that die, and the results."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
import yaml
from heads import Head
from stores import free_port

from fer_ray import Labeler
from fer_ray.cli.flags import parse
from fer_ray.config.train import TrainConfig
from fer_ray.io.storage import Storage
from fer_ray.tune.results import read_trials

IMAGES = 900  # 14 parts: some are left when the first has been seen, for two processes on each of two nodes
EPOCHS = 6
METRICS, OURS = free_port(), "ray_fer_ray_"
SMALL = ["--stem", 8, "--widths", 16, 32, "--depths", 1, 1, "--batch-size", 16, "--keep-duplicates"]
SMALL += ["--learning-rate", 0.004, "--weight-average", 0.9]
SPACE = "stem: {choice: [4, 8]}\nwidths: [8, 16]\ndepths: [1, 1]\nlearning_rate: {log: [1.0e-3, 1.0e-2]}\nbatch_size: 16\n"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    running = Head()
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


def test_two_workers_train_one_network_though_the_node_of_one_dies(head: Head, drawn_faces: Path, tmp_path: Path) -> None:
    two_nodes(head)
    line = ["--dataset", drawn_faces, "--output", tmp_path / "model", *SMALL, "--epochs", EPOCHS, "--patience", EPOCHS]
    head.submit("train", "train", *line, "--workers", 2, "--cpus-per-worker", 2, wait=False)  # on each node one
    wait_for(lambda: list(tmp_path.glob("model.training/train/checkpoint_*/state.npz")), head, "train")
    head.kill(head.node_of("ray::RayTrainWorker"))  # the other worker waits for this one's gradients
    two_nodes(head)
    wait_for(lambda: head.info("train")["status"] in ("SUCCEEDED", "FAILED"), head, "train")
    assert json.loads(head.logs("train")[-1])["accuracy"] > 0.9
    history = pq.read_table(tmp_path / "model" / "history.parquet").to_pylist()
    assert [row["epoch"] for row in history] == list(range(1, EPOCHS + 1))
    assert history[-1]["train_loss"] < 0.9 * history[0]["train_loss"]


def test_a_search_whose_node_and_then_driver_die_goes_on_and_has_every_trial_once(
    head: Head, drawn_faces: Path, photographs: dict[str, Path], tmp_path: Path
) -> None:
    two_nodes(head)
    output = tmp_path / "search"
    (tmp_path / "space.yaml").write_text(SPACE)
    line = ["--dataset", drawn_faces, "--keep-duplicates", "--output", output, "--space", tmp_path / "space.yaml"]
    line += ["--trials", 1, "--seeds", 2, "--max-concurrent", 1, "--epochs", EPOCHS]

    def epochs() -> int:
        return sum(len(file.read_text().splitlines()) for file in output.glob("trials/*/progress.jsonl"))

    head.submit("tune", "tune", *line, wait=False)
    wait_for(lambda: epochs() >= 1, head, "tune")
    head.kill(head.node_of("ray::RayTrainWorker"))
    found = epochs()
    wait_for(lambda: epochs() > found, head, "tune")
    head.kill_driver("tune")
    wait_for(lambda: head.info("tune")["status"] == "FAILED", head, "tune")
    resumed = head.submit("resumed", "tune", *line, "--resume")
    assert resumed.returncode == 0, resumed.stdout
    summary = json.loads(head.logs("resumed")[-1])
    assert (summary["trials"], summary["completed"], summary["failed"]) == (2, 2, 0)
    trials = read_trials(Storage(), str(output))
    assert sorted(trial.seed for trial in trials) == [7, 8]
    assert len({trial.configuration for trial in trials}) == 1
    numbers = [[epoch.epoch for epoch in trial.epochs] for trial in trials]
    assert all(row == list(range(1, len(row) + 1)) for row in numbers)
    assert max(map(len, numbers)) == EPOCHS
    bests = [epoch.accuracy for trial in trials if (epoch := trial.best("accuracy")) and epoch.accuracy is not None]
    assert summary["best_value"] == pytest.approx(sum(bests) / 2, abs=1e-4), "a configuration stands with the mean of its seeds"

    best = parse(TrainConfig, ["--config", str(output / "best.yaml"), "--dataset", "d", "--output", "o"], "")
    assert best.recipe.model.stem == yaml.safe_load((output / "best.yaml").read_text())["stem"]
    assert "Settings and objective" in (output / "index.html").read_text()
    (image,) = Labeler(str(output / "best_model")).label([photographs["astronaut"]])
    assert set(image.faces[0].probabilities) == {"happy", "sad"}
