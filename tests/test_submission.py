"""What an operator of a cluster relies on: a real head, the real `ray job submit`, `stop` and `logs`, and tables at the end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pytest
from stores import free_port

ROOT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).with_name("ray"))
MARK = "FER_RAY_TEST_CLUSTER"
IMAGES = 300
KEPT_BY_RAY = ("ray::IDLE", "ray::_StatsActor", "ray::_AutoscalingCoordinatorActor", "ray::ActorLocationTracker")


@dataclass
class Head:
    """A Ray head in processes of its own, which all carry a mark in their environment."""

    port: int
    mark: str
    environment: dict[str, str]

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([RAY, *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=600, check=False)

    def submit(self, name: str, *arguments: object, wait: bool = True) -> subprocess.CompletedProcess[str]:
        flags = ["--working-dir", ".", "--submission-id", name, *([] if wait else ["--no-wait"])]
        return self.ray("job", "submit", *flags, "--", "python", "jobs/label.py", *map(str, arguments))

    def logs(self, name: str) -> list[str]:
        """What the job itself printed, with what `ray job logs` says about itself left out."""
        printed = self.ray("job", "logs", name).stdout.splitlines()
        return [line for line in printed if line and "Job submission server address" not in line]

    def info(self, name: str) -> dict[str, Any]:
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        url = f"http://127.0.0.1:{self.port}/api/jobs/{name}"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"}), timeout=30) as answer:
            content: dict[str, Any] = json.load(answer)
        return content

    def processes(self) -> dict[int, str]:
        """Everything that the head started, by pid, with its command line."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark:
                    found[process.pid] = " ".join(process.cmdline())
        return found

    def at_work(self) -> list[str]:
        """Drivers of jobs and the processes that work for them, but not what Ray keeps for the next job."""
        found = self.processes().values()
        return [line for line in found if "jobs/label.py" in line or ("ray::" in line and not line.startswith(KEPT_BY_RAY))]

    def stop(self) -> None:
        while pids := self.processes():  # what is being killed may start another
            for pid in pids:
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).kill()


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="ray_"))  # not tmp_path: the paths of Ray's sockets must be short
    (folder / "token").write_text(uuid.uuid4().hex)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH", "AWS_"))}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"RAY_DASHBOARD_STARTUP_TIMEOUT_S": "120", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    running = Head(free_port(), uuid.uuid4().hex, environment)
    running.environment |= {MARK: running.mark}
    try:
        start(running, folder)
        running.environment |= {"RAY_ADDRESS": f"http://127.0.0.1:{running.port}"}
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)


def start(head: Head, folder: Path) -> None:
    """Start the head; Ray gives up when its parts take longer than 30 s, as they do on a machine with much else to do."""
    command = [RAY, "start", "--head", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}"]
    command += ["--min-worker-port=0", "--max-worker-port=0", f"--dashboard-port={head.port}", "--object-store-memory=200000000"]
    command += [f"--{name}={free_port()}" for name in ("port", "dashboard-agent-listen-port", "ray-client-server-port")]
    for _ in range(3):
        started = subprocess.run(command, cwd=folder, env=head.environment, capture_output=True, text=True, timeout=400, check=False)
        if started.returncode == 0:
            return
        head.stop()
    pytest.fail(started.stdout + started.stderr)


def rows(output: Path, sql: str) -> list[tuple[Any, ...]]:
    tables = {table: f"read_parquet('{output}/{table}/**/*.parquet')" for table in ("images", "faces", "runs")}
    return list(duckdb.sql(sql.format(**tables)).fetchall())


def test_a_submitted_job_labels_the_photographs_and_says_so(head: Head, photographs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for photograph in photographs.values():
        shutil.copy(photograph, tmp_path / "in")
    job = head.submit("small", "--input", tmp_path / "in", "--output", tmp_path / "out")
    assert job.returncode == 0, job.stdout + job.stderr
    summary = json.loads(head.logs("small")[-1])
    assert (summary["status"], summary["images_total"], summary["images_failed"]) == ("done", len(photographs), 0)
    assert rows(tmp_path / "out", "SELECT count(DISTINCT image_uri) FROM {images}") == [(len(photographs),)]
    faces = rows(tmp_path / "out", "SELECT DISTINCT parse_filename(image_uri) FROM {faces} ORDER BY 1")
    assert {"astronaut.png", "grace_hopper.jpg"} <= {name for (name,) in faces}
    assert rows(tmp_path / "out", "SELECT git_commit FROM {runs}") == [(None,)], "the code came from the upload, not from the checkout"


def test_a_stopped_job_ends_soon_leaves_nothing_running_and_goes_on_when_submitted_again(
    head: Head, photographs: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(IMAGES):
        shutil.copy(photographs["grace_hopper"], tmp_path / "in" / f"{number:03d}.jpg")
    line = ["--input", tmp_path / "in", "--output", tmp_path / "out", "--detector-side", 1280]
    head.submit("stopped", *line, wait=False)
    deadline = time.monotonic() + 300
    while len(list((tmp_path / "out").glob("_staging/**/*.parquet"))) < 2:
        assert time.monotonic() < deadline, head.logs("stopped")
        time.sleep(0.2)
    head.ray("job", "stop", "stopped")
    stopped = time.monotonic()
    while head.at_work():
        assert time.monotonic() < stopped + 30, head.at_work()
        time.sleep(0.2)
    assert head.info("stopped")["status"] == "STOPPED"
    assert head.logs("stopped")[-1] == "error: terminated; start the same command again to finish the run."
    assert not (tmp_path / "out" / "runs").exists(), "half a run must not be visible"

    job = head.submit("again", *line)
    assert job.returncode == 0, job.stdout + job.stderr
    assert [log for log in head.logs("again") if log.startswith("going on: ")]
    assert rows(tmp_path / "out", "SELECT count(*), count(DISTINCT image_uri) FROM {images}") == [(IMAGES, IMAGES)]
    assert rows(tmp_path / "out", "SELECT count(*), count(DISTINCT image_uri) FROM {faces}") == [(IMAGES, IMAGES)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--input", "photos"], "error: Where to? Give --output FOLDER for the tables."),
        (["--output", "tables"], "error: The output tables would lie in Ray's copy of the working folder"),
    ],
)
def test_wrong_usage_of_a_submitted_job_fails_with_its_sentence(head: Head, arguments: list[str], sentence: str) -> None:
    name = uuid.uuid4().hex
    job = head.submit(name, *arguments)
    assert job.returncode == 1, "ray job submit knows only 0 and 1; the job's own code is in its details"
    assert (head.info(name)["status"], head.info(name)["driver_exit_code"]) == ("FAILED", 2)
    assert head.logs(name)[-1].startswith(sentence)
