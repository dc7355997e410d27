"""What one image may cost a labeling process: its life once, and then a row."""

import datetime
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest
from ray.exceptions import OutOfMemoryError
from sites import DEADLY, with_site

from fer_ray.config.jobs.label import LabelConfig
from fer_ray.errors import MemoryShortError
from fer_ray.label import pipeline
from fer_ray.label.incremental import Counts, find_due
from fer_ray.label.parts import MAX_STARTS, PartLabeler
from fer_ray.label.plan import MIN_PART_IMAGES, Part, Plan, read_parts, staged_file, write_plan
from fer_ray.label.run import Run, identify

ROOT = Path(__file__).parents[2]
LABEL_PART = """
import functools, pickle, sys
from fer_ray.label import parts
class Tally:
    def ready(self): pass
    def start(self, part): return int(sys.argv[2])
    def add(self, images, stage_seconds): pass
parts.SECONDS_AT_FIRST = 3.0
parts.SandboxLimits = functools.partial(parts.SandboxLimits, seconds=6.0)
run, plan, part = pickle.loads(bytes.fromhex(sys.argv[1]))
parts.PartLabeler(run, plan, parts.FetchingLabeler(run)).label([part], Tally())
"""


def planned(folder: Path) -> tuple[Run, Plan, list[Part]]:
    """The run of what lies in its folder `in`."""
    run = identify(LabelConfig((str(folder / "in"),), str(folder / "out"), workers=4))
    counts = Counts()
    plan = write_plan(run, find_due(run, counts), counts, datetime.datetime.now(datetime.UTC))
    return run, plan, read_parts(run, plan)


def test_an_image_that_never_ends_ends_its_process_in_time_and_is_a_row_when_its_part_is_begun_again(
    photographs: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DEADLY)
    hopper = photographs["grace_hopper"].read_bytes()
    for number in range(4):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(hopper + b"SLEEPY" * (number == 2))
    run, plan, (part,) = planned(tmp_path)
    staged = Path(staged_file(run, plan, part))

    def end_of_process(starts: int) -> int:
        command = [sys.executable, "-c", LABEL_PART, pickle.dumps((run, plan, part)).hex(), str(starts)]
        return subprocess.run(command, env=os.environ | with_site(tmp_path / "site"), timeout=120, check=False).returncode

    assert end_of_process(starts=1) == -signal.SIGALRM
    assert not staged.exists()
    assert end_of_process(starts=2) == 0
    found = pq.read_table(staged, columns=["status", "error"]).to_pylist()
    assert [row["status"] for row in found] == ["ok", "ok", "undecodable", "ok"]
    assert found[2]["error"] == "The image takes more than 6 s to decode."


def test_an_image_that_ends_its_decoder_does_not_end_a_dry_run(photographs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DEADLY)
    hopper = photographs["grace_hopper"].read_bytes()
    (tmp_path / "in" / "0.jpg").write_bytes(hopper + b"POISON")
    (tmp_path / "in" / "1.jpg").write_bytes(hopper)
    command = [sys.executable, "jobs/label.py", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--dry-run"]
    environment = os.environ | with_site(tmp_path / "site")
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout.splitlines()[-1])["images_total"] == 2


def test_a_machine_that_is_short_of_memory_is_tried_with_fewer_workers_and_then_told_in_a_sentence(
    photographs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(MIN_PART_IMAGES * 4):
        (tmp_path / "in" / f"{number}.jpg").symlink_to(photographs["grace_hopper"])
    run, plan, parts = planned(tmp_path)
    tries: list[tuple[int, int]] = []

    def out_of_memory(run: Run, plan: Plan, parts: list[Part], workers: int, **_: object) -> float:
        tries.append((len(parts), workers))
        run.storage.write(staged_file(run, plan, parts[0]), b"")
        if is_helpless or len(tries) == 1:
            raise OutOfMemoryError("Task was killed due to the node running low on memory.\nSee https://docs.ray.io for a page of text")
        return 1.0

    monkeypatch.setattr(pipeline, "_label", out_of_memory)
    monkeypatch.setattr(pipeline, "cluster_cpus", lambda: 4)
    is_helpless = False
    assert pipeline.label_to_staging(run, plan, parts, lambda counts, images: None) == 1.0
    assert tries == [(4, 4), (3, 2)]
    is_helpless = True
    with pytest.raises(MemoryShortError, match=r"^A machine ran out of memory, under 2 workers too: lower --workers, or use"):
        pipeline.label_to_staging(run, plan, parts, lambda counts, images: None)


def test_images_that_end_every_process_end_the_run_with_a_sentence(tmp_path: Path, photographs: dict[str, Path]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.jpg").symlink_to(photographs["grace_hopper"])
    run, plan, parts = planned(tmp_path)
    labeler = Mock(model_version=run.model_version)
    with pytest.raises(MemoryShortError, match="8 processes died at the same images"):
        PartLabeler(run, plan, labeler).label(parts, Mock(start=lambda part: MAX_STARTS + 1))
    labeler.label_batches.assert_not_called()


def test_how_often_a_part_was_begun_outlives_the_process_that_counts(tmp_path: Path) -> None:
    """Ray ends that process too where memory is short; otherwise the image that fills it would never be tried apart."""
    counts = pipeline.Counts(str(tmp_path / "begun"))
    assert [counts.start(64), counts.start(0), counts.start(64)] == [1, 1, 2]
    assert pipeline.Counts(str(tmp_path / "begun")).start(64) == 3
