"""A local cluster that starts although the machine is busy, and is missed when it dies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fer_ray import cluster

SLOW_AT_FIRST = """
import types, time
import psutil
from ray._private import node, services
from fer_ray.cluster import Watch, cluster_cpus, connect, leave
from fer_ray.errors import FerRayError

nodes, ready = [], services.get_node

def slow_at_first(address, node_id):
    nodes.append(node_id)
    if node_id == nodes[0]:
        raise RuntimeError("not there yet")
    return ready(address, node_id)

services.get_node = slow_at_first
node.time = types.SimpleNamespace(sleep=time.sleep, time=time.time, monotonic=lambda: 1000 * time.monotonic())  # Ray's 30 s pass in 30 ms
connect()
running = [process.name() for process in psutil.Process().children(recursive=True) if process.status() != psutil.STATUS_ZOMBIE]
print(nodes.index(nodes[-1]) > 0, running.count("raylet"), running.count("gcs_server"), cluster_cpus() > 0)
watch, told = Watch(), ""
watch.check()
next(process for process in psutil.Process().children(recursive=True) if process.name() == "raylet").kill()
killed = time.monotonic()
while not told and time.monotonic() - killed < 15:  # Ray ends the process a little later, without a word
    time.sleep(0.2)
    try:
        watch.check()
    except FerRayError as error:
        told = str(error)
leave()
print(told)
"""


def test_an_account_without_a_home_starts_ray_with_a_token_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    cluster._have_a_token()
    assert "RAY_AUTH_TOKEN" not in os.environ, "Ray keeps one in the home folder"
    monkeypatch.setenv("HOME", "/proc/nobody")
    cluster._have_a_token()
    first = os.environ["RAY_AUTH_TOKEN"]
    assert len(first) == 64
    cluster._have_a_token()
    assert os.environ["RAY_AUTH_TOKEN"] == first
    monkeypatch.delenv("RAY_AUTH_TOKEN")


def test_a_start_that_takes_too_long_is_tried_again_leaves_nothing_behind_and_a_cluster_that_dies_is_told() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ran = subprocess.run([sys.executable, "-c", SLOW_AT_FIRST], env=environment, capture_output=True, text=True, timeout=240)
    counted, told = ran.stdout.splitlines()[0], ran.stdout.splitlines()[-1]
    assert counted.split() == ["True", "1", "1", "True"], ran.stderr
    assert told.startswith("the Ray raylet died"), ran.stdout + ran.stderr
