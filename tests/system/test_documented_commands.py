"""What README and docs print works as printed: every flag exists, and what a newcomer types first is really run, on small data."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documents import PAGES, ROOT, Block, blocks, jobs_of
from faces import draw_faces

from fer_ray.cli.flags import parse
from fer_ray.cli.main import JOBS

BY_CI = ("make ", "pip install", "export ", "ray ")  # the targets and the head have tests of their own
ALIASES = {"inspect_dataset": "inspect"}
RUN_PAGES = ("README.md", "index.md", "walkthrough.md", "evaluate.md", "train-tune.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_printed_line_of_a_job_has_flags_that_exist(page: Path) -> None:
    for block in blocks(page):
        for line in block.lines:
            for name, arguments in jobs_of(line):
                job = JOBS[ALIASES.get(name, name)]
                parse(job.config_class, arguments)


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, Path]) -> Path:
    """A folder with what the pages name: `photos/`, and `faces/` with labels."""
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "photos").mkdir()
    for photograph in photographs.values():
        shutil.copy(photograph, folder / "photos")
    draw_faces(folder / "drawn", 96, 24).rename(folder / "faces")
    return folder


def run(block: Block, folder: Path, environment: dict[str, str]) -> None:
    lines = [line for line in block.lines if not line.startswith(BY_CI)]
    command = [sys.executable, "-c", block.text] if block.language == "python" else ["bash", "-ec", "\n".join(lines)]
    if "ray.data" in block.text:  # paths in a pipeline of Ray Data are those of its processes: it starts its own here, as at home
        environment = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, f"{block.page.name}:\n{block.text}\n{done.stdout}{done.stderr}"


@pytest.mark.timeout(400)
def test_what_a_newcomer_types_first_runs_as_printed(ray_cluster: None, newcomer: Path) -> None:
    import ray

    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,  # a cluster that runs already: what is asked here is the line
    }
    done = set()
    for page in (page for page in PAGES if page.name in RUN_PAGES):
        for block in blocks(page):
            if block.language in ("sh", "python") and block.text not in done:
                run(block, newcomer, environment)
                done.add(block.text)
    assert (newcomer / "tables" / "runs").is_dir()
    assert (newcomer / "models" / "mine" / "bundle.json").is_file()
