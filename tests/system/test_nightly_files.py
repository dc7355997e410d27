"""What watches nights from outside: the wrapper for cron, Prometheus' rules and Grafana's dashboard."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from documents import ROOT

MONITORING = ROOT / "deploy" / "monitoring"
SUMMARY = '{"run_id": "n", "images_total": 10, "faces_total": 7, "error_share": 0.25, "drift_psi": 1e-05}'
JOINED = re.compile(r"\b(?:ray_)?fer_ray_\w+")


def run_night(folder: Path, script: str, timeout: str = "60s") -> tuple[int, dict[str, object] | None, dict[str, float]]:
    """The exit code of a night whose job is a script, what the alarm was told, and the metrics that lie there."""
    alarm, metrics = folder / "alarm.json", folder / "night.prom"
    alarm.unlink(missing_ok=True)
    told = {"FER_RAY_STATE": str(folder / "state"), "FER_RAY_TIMEOUT": timeout, "FER_RAY_METRICS": str(metrics)}
    environment = {**os.environ, **told, "FER_RAY_ALARM": f"cat > '{alarm}'"}
    command = ["sh", str(ROOT / "deploy" / "nightly.sh"), "sh", "-c", script]
    code = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False).returncode
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    found = dict(line.split() for line in lines if not line.startswith("#"))
    return code, json.loads(alarm.read_text()) if alarm.exists() else None, {name: float(value) for name, value in found.items()}


def test_the_wrapper_tells_of_nights_that_were_skipped_timed_out_killed_or_failed(tmp_path: Path) -> None:
    code, told, first = run_night(tmp_path, f"echo working; echo '{SUMMARY}'")
    assert (code, told) == (0, None)
    assert (first["fer_ray_night_images"], first["fer_ray_night_error_share"], first["fer_ray_night_drift_psi"]) == (10, 0.25, 1e-5)
    code, told, later = run_night(tmp_path, r"""echo 'error: No "\\bucket".' >&2; exit 1""")
    assert (code, told) == (1, {"status": "failed", "exit_code": 1, "reason": r'error: No "\bucket".'})
    code, told, _ = run_night(tmp_path, r"""printf '%s\n' '{"images_total": 9, "reason": "5\u00a0%: \"b\"; q", "report": "r"}'; exit 3""")
    assert (code, told) == (3, {"status": "failed", "exit_code": 3, "reason": '5\u00a0%: "b"; q'})
    assert later["fer_ray_night_exit_code"] == 1
    assert later["fer_ray_night_committed_timestamp_seconds"] == first["fer_ray_night_committed_timestamp_seconds"]
    assert "fer_ray_night_images" not in later, "a night that committed nothing has no images, not those of the last"
    for script, timeout, wanted in (("sleep 30", "0.2s", (124, "timed_out")), ("kill -9 $$", "60s", (137, "killed"))):
        code, told, _ = run_night(tmp_path, script, timeout)
        assert told
        assert (code, told["status"]) == wanted
    with (tmp_path / "state" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, told, _ = run_night(tmp_path, f"touch '{tmp_path / 'ran'}'")
    assert told
    assert (code, told["status"], (tmp_path / "ran").exists()) == (75, "skipped", False)


def test_rules_and_dashboard_ask_for_figures_that_are_written(tmp_path: Path) -> None:
    night = run_night(tmp_path, f"echo '{SUMMARY}'")[2]
    counters = re.findall(r'metrics\.Counter\("(\w+)"', (ROOT / "fer_ray" / "label" / "telemetry.py").read_text())
    written = {*night, *(f"ray_{name}" for name in counters)}
    rules = [rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
    panels = json.loads((MONITORING / "grafana.json").read_text())["panels"]
    asked = [rule["expr"] for rule in rules] + [target["expr"] for panel in panels for target in panel["targets"]]
    assert all(JOINED.search(expression) for expression in asked)
    assert {name for expression in asked for name in JOINED.findall(expression)} <= written
    assert all({"alert", "expr", "labels", "annotations"} <= rule.keys() for rule in rules)
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_prometheus_takes_the_rules() -> None:
    subprocess.run(["promtool", "check", "rules", str(MONITORING / "alerts.yaml")], check=True)
