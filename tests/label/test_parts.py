"""What one image may cost a labeling process: its life once, and then a row."""

import datetime
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
from sites import DEADLY, with_site

from fer_ray.config.label import LabelConfig
from fer_ray.label.incremental import Counts, find_due
from fer_ray.label.plan import read_parts, staged_file, write_plan
from fer_ray.label.run import identify

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


def test_an_image_that_never_ends_ends_its_process_in_time_and_is_a_row_when_its_part_is_begun_again(
    photographs: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DEADLY)
    hopper = photographs["grace_hopper"].read_bytes()
    for number in range(4):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(hopper + b"SLEEPY" * (number == 2))
    run = identify(LabelConfig((str(tmp_path / "in"),), str(tmp_path / "out")))
    counts = Counts()
    plan = write_plan(run, find_due(run, counts), counts, datetime.datetime.now(datetime.UTC))
    (part,) = read_parts(run, plan)
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
