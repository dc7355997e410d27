"""A Ray cluster as operators have it, on this machine: a head that runs no work, and nodes that come and go."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from documents import section
from stores import free_port

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
MARK, NODE_MARK = "FER_RAY_TEST_CLUSTER", "FER_RAY_TEST_NODE"
_KEPT = ("IDLE", "_StatsActor", "_AutoscalingCoordinatorActor", "ActorLocationTracker", "DashboardAgent", "RuntimeEnvAgent")
KEPT_BY_RAY = tuple(f"ray::{name}" for name in _KEPT)


@dataclass
class Head:
    """A Ray head and its nodes, in processes of their own that carry marks in their environment."""

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ray_")))  # the paths of Ray's sockets must be short
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    dashboard: int = field(default_factory=free_port)
    port: int = field(default_factory=free_port)
    environment: dict[str, str] = field(default_factory=dict)
    nodes: list[str] = field(default_factory=list)

    def start(self) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH", "AWS_"))}
        self.environment = (
            inherited
            | self.environment
            | {
                MARK: self.mark,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "HOME": str(self.folder),  # where Ray keeps its token
                "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "120",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_metrics_report_interval_ms": "1000",
                "RAY_prestart_worker_first_driver": "0",  # the processes of a submitted job are its own
                "RAY_health_check_period_ms": "500",  # five in vain and a node counts as dead: with Ray's 3,000, after 15 s
            }
        )
        export, token = section(ROOT / "docs" / "operate.md", "A head by hand")[0].lines[:2]  # as an operator is told
        name, _, value = export.removeprefix("export ").partition("=")
        self.environment[name] = value
        subprocess.run(["bash", "-ec", token], cwd=self.folder, env=self.environment, capture_output=True, timeout=120, check=True)
        flags = ["--head", "--num-cpus=0", "--no-monitor", f"--temp-dir={self.folder}"]
        flags += [f"--dashboard-port={self.dashboard}", f"--port={self.port}"]
        self._start([*flags, f"--ray-client-server-port={free_port()}"], "head")
        self.environment["RAY_ADDRESS"] = f"http://127.0.0.1:{self.dashboard}"

    def add_node(self, *flags: str) -> str:
        """A node with two CPUs and, as on a machine of its own, its own copy of what jobs upload; gives the mark of its processes."""
        node = uuid.uuid4().hex
        self._start([f"--address=127.0.0.1:{self.port}", "--num-cpus=2", f"--temp-dir={self.folder / node[:4]}", *flags], node)
        self.nodes.append(node)
        return node

    def node_of(self, process: str) -> str:
        """A node that runs processes whose names begin so."""
        return next(node for node in self.nodes if any(line.startswith(process) for line in self.processes(node).values()))

    def _start(self, flags: list[str], node: str) -> None:
        """Start a node, with temporary files and a working folder of its own, as on a machine of its own.

        Ray gives up when its parts take longer than 30 s, as they do on a machine with much else to do.
        """
        command = [RAY, "start", "--node-ip-address=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0"]
        command += ["--object-store-memory=100000000", "--include-log-monitor=false"]
        command += [f"--dashboard-agent-listen-port={free_port()}", *flags]
        environment = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"} | {NODE_MARK: node}
        own = self.folder / f"{node[:4]}-files"
        own.mkdir(exist_ok=True)
        environment["TMPDIR"] = str(own)
        for _ in range(3):
            started = subprocess.run(command, cwd=own, env=environment, capture_output=True, text=True, timeout=400, check=False)
            if started.returncode == 0:
                return
            self.kill(node)
        pytest.fail(started.stdout + started.stderr)

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([RAY, *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=600, check=False)

    def submit(self, name: str, job: str, *arguments: object, wait: bool = True) -> subprocess.CompletedProcess[str]:
        flags = ["--working-dir", ".", "--submission-id", name, *([] if wait else ["--no-wait"])]
        return self.ray("job", "submit", *flags, "--", "python", f"jobs/{job}.py", *map(str, arguments))

    def logs(self, name: str) -> list[str]:
        """What the job itself printed."""
        content: dict[str, str] = json.loads(self.get(f"{self._jobs}/{name}/logs"))
        return [line for line in content["logs"].splitlines() if line]

    def info(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.get(f"{self._jobs}/{name}"))
        return content

    @property
    def _jobs(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}/api/jobs"

    def get(self, url: str) -> str:
        headers = {"Authorization": f"Bearer {(self.folder / '.ray' / 'auth_token').read_text()}"}
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            text: str = answer.read().decode()
        return text

    def processes(self, node: str = "") -> dict[int, str]:
        """Everything that was started here, or on one node, by pid, with its command line.

        Ray's agents write their names over their environment, so the children of whoever carries the mark count as well.
        """
        found: dict[int, str] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                if environment.get(MARK) == self.mark and node in ("", environment.get(NODE_MARK)):
                    found |= {member.pid: "" for member in (process, *process.children(recursive=True))}
        for pid in list(found):
            try:
                found[pid] = " ".join(psutil.Process(pid).cmdline())
            except psutil.Error:
                del found[pid]
        return found

    def at_work(self) -> list[str]:
        """Drivers of jobs and the processes that work for them, but not what Ray keeps for the next job."""
        found = self.processes().values()
        return [line for line in found if "jobs/" in line or ("ray::" in line and not line.startswith(KEPT_BY_RAY))]

    def kill(self, node: str = "") -> None:
        """End a node, or everything, as a machine ends whose power is cut."""
        self.nodes = [other for other in self.nodes if node not in ("", other)]
        while pids := self.processes(node):  # what is being killed may start another
            for pid in pids:
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).kill()

    def kill_driver(self, job: str) -> None:
        for pid, line in self.processes().items():
            if f"jobs/{job}.py" in line and "submit" not in line:
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).kill()

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
