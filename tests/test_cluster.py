"""A local cluster that starts although the machine is busy."""

import os
import subprocess
import sys

SLOW_AT_FIRST = """
import types, time
import psutil
from ray._private import node, services
from fer_ray.cluster import cluster_cpus, connect, leave

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
leave()
"""


def test_a_start_that_takes_too_long_is_tried_again_and_leaves_nothing_behind() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ran = subprocess.run([sys.executable, "-c", SLOW_AT_FIRST], env=environment, capture_output=True, text=True, timeout=240)
    assert ran.stdout.split() == ["True", "1", "1", "True"], ran.stderr
