"""What README and docs print works as printed: every flag exists, and what a newcomer types first is really run, on small data."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from documents import PAGES, ROOT, Block, blocks, jobs_of
from faces import draw_faces
from onnx import TensorProto, helper, numpy_helper

from fer_ray.cli.flags import parse
from fer_ray.cli.main import JOBS

# The targets, the head and the page have tests of their own; a server does not end.
BY_CI = ("make ", "pip install", "export ", "ray ", "python -m http.server")
ALIASES = {"inspect_dataset": "inspect"}
RUN_PAGES = ("README.md", "index.md", "walkthrough.md", "evaluate.md", "train-tune.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_printed_line_of_a_job_has_flags_that_exist(page: Path) -> None:
    for block in blocks(page):
        for line in block.lines:
            for name, arguments in jobs_of(line):
                job = JOBS[ALIASES.get(name, name)]
                parse(job.config_class, arguments, takes=job.takes)


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, Path]) -> Path:
    """A folder with what the pages name: `photos/`, `faces/` with labels, and a network of others."""
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "photos").mkdir()
    for photograph in photographs.values():
        shutil.copy(photograph, folder / "photos")
    draw_faces(folder / "drawn", 96, 24).rename(folder / "faces")
    people = [f"{file.parent.name}/{file.name},{file.parent.name},{int(file.stem) % 2}" for file in (folder / "faces" / "val").glob("*/*")]
    (folder / "people.csv").write_text("\n".join(["image,age_band,skin_tone", *people]), encoding="utf-8")
    onnx.save(network_of_others(), folder / "enet.onnx")
    return folder


def network_of_others() -> onnx.ModelProto:
    """Eight answers from the mean colors of a face of 224 x 224."""
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 224, 224])
    logits = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])
    weights = numpy_helper.from_array(np.eye(3, 8, dtype=np.float32), "weights")
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "network", [images], [logits], [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run(block: Block, folder: Path, environment: dict[str, str]) -> None:
    lines = [line for line in block.lines if not line.startswith(BY_CI) and " --answers " not in line]  # people give those
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
