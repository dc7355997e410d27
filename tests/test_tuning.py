"""A search as a user runs it: killed and gone on with, it has every trial once, and leaves what train and label take."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from fer_ray import Labeler
from fer_ray.command import parse
from fer_ray.config import TrainConfig, TuneConfig
from fer_ray.errors import UsageError
from fer_ray.recipe import DatasetConfig
from fer_ray.tuning import tune

ROOT = Path(__file__).parents[1]
SPACE = """
stem: {choice: [4, 8]}
widths: [8, 16]
depths: [1, 1]
learning_rate: {log: [1.0e-3, 1.0e-2]}
weight_average: 0.9
batch_size: 16
"""


def test_a_killed_search_goes_on_and_has_every_trial_once(drawn_faces: Path, tmp_path: Path, photographs: dict[str, Path]) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    output = tmp_path / "search"
    command = [sys.executable, ROOT / "jobs" / "tune.py", "--dataset", drawn_faces, "--keep-duplicates", "--output", output]
    command += ["--space", tmp_path / "space.yaml", "--trials", "3", "--epochs", "4", "--ensemble", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    killed = subprocess.Popen([*map(str, command)], start_new_session=True, **silent)  # type: ignore[call-overload]
    deadline = time.monotonic() + 240
    while len(list(output.glob("trials/*/train/checkpoint_*/state.npz"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    resumed = subprocess.run([*map(str, command), "--resume"], capture_output=True, text=True, env=environment, check=False)
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads(resumed.stdout.splitlines()[-1])
    assert (summary["trials"], summary["completed"], summary["failed"]) == (3, 3, 0)
    epochs: dict[str, list[int]] = {}
    for row in pq.read_table(output / "trials.parquet").to_pylist():
        epochs.setdefault(row["trial_id"], []).append(row["epoch"])
    assert len(epochs) == 3
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in epochs.values())
    assert max(map(len, epochs.values())) == 4

    best = parse(TrainConfig, ["--config", str(output / "best.yaml"), "--dataset", "d", "--output", "o"], "")
    assert best.recipe.model.stem == yaml.safe_load((output / "best.yaml").read_text())["stem"]
    assert "parallel_coordinates" in (output / "index.html").read_text() or "Settings and objective" in (output / "index.html").read_text()
    for model in ("best_model", "ensemble"):
        (image,) = Labeler(str(output / model)).label([photographs["astronaut"]])
        assert set(image.faces[0].probabilities) == {"happy", "sad"}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"space": "nowhere.yaml"}, "There is no search space"),
        ({"time_budget": "soon"}, "must be a number with s, m or h"),
        ({"resume": True}, "no search in .* to resume"),
        ({"data": DatasetConfig("/nowhere")}, "/nowhere"),
    ],
)
def test_a_search_that_cannot_run_is_refused_before_anything_is_written(
    drawn_faces: Path, tmp_path: Path, options: dict[str, object], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        tune(TuneConfig(str(tmp_path / "search"), **{"data": DatasetConfig(str(drawn_faces)), **options}))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
