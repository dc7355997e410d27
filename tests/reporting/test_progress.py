"""What people see while a job works: a bar on a terminal that spares what is printed, a line a minute in a log."""

import os
import pty
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fer_ray.reporting import progress

AT_WORK = """
import logging, time
from fer_ray.cli.logs import set_up_logging
from fer_ray.reporting.progress import make_progress

set_up_logging()
bar = make_progress()
bar.start("starting Ray")
time.sleep(0.3)
for done in range(0, 5000, 1000):
    bar.update(done, 10000, "3 faces")
    time.sleep(0.15)
logging.getLogger("fer_ray.label").info("a path " + "x" * 150)
logging.getLogger("fer_ray.label").warning("a [bold] name")
bar.close()
print("last")
"""


def test_a_terminal_has_one_bar_that_moves_and_keeps_below_what_is_said() -> None:
    ours, theirs = pty.openpty()
    environment = dict(os.environ) | {"COLUMNS": "120", "TERM": "xterm"}
    ran = subprocess.run([sys.executable, "-c", AT_WORK], stdout=theirs, stderr=theirs, env=environment, timeout=60, check=True)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert ran.returncode == 0
    frames = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n")
    assert re.search(r"^\S starting Ray ━", frames, re.MULTILINE)
    assert re.search(r"^\S 2,000/10,000 images ━.* [\d,]+ images/s, 0:01 h left, 3 faces$", frames, re.MULTILINE)
    assert f"a path {'x' * 150}\n" in frames, "what is said is not broken at the edge of the terminal"
    assert "warning: a [bold] name\n" in frames
    assert frames.rstrip().endswith("last")
    assert "\x1b[?25l" not in shown, "the cursor is left alone: a process that is killed could not bring it back"


def test_a_log_file_has_a_line_a_minute_with_its_time(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    told = progress.LogProgress()
    told.start("starting Ray")
    now[0] += 50  # which is no time of labeling
    for seconds in range(0, 150, 10):
        told.update(7 * seconds, 10_000, "3 faces")
        now[0] += 10
    told.close()
    assert caplog.messages == [
        "starting Ray",
        "70/10,000 images (1%), 3 faces, 7.0 images/s, 0:24 h left",
        "490/10,000 images (5%), 3 faces, 7.0 images/s, 0:23 h left",
        "910/10,000 images (9%), 3 faces, 7.0 images/s, 0:22 h left",
    ]
    piped = subprocess.run([sys.executable, "-c", AT_WORK], capture_output=True, text=True, timeout=60, check=True)
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ starting Ray\n", piped.stdout)
    assert re.fullmatch(r"\S+Z warning: a \[bold\] name\n", piped.stderr)


@pytest.mark.parametrize(
    ("per_second", "words"),
    [(1234.5, "1,234 images/s"), (7.26, "7.3 images/s"), (0.25, "15 images/min"), (0.001, "3.6 images/h"), (0.0, "0.0 images/h")],
)
def test_a_rate_is_said_in_the_unit_of_time_that_suits(per_second: float, words: str) -> None:
    assert progress.format_rate(per_second, "images") == words
