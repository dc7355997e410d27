"""What holds for all of the code: imports are light, and asking for help loads nothing heavy."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_importing_any_module_starts_no_ray_and_loads_no_tensorflow() -> None:
    code = "import importlib, pkgutil, sys, fer_ray\n"
    code += "for module in pkgutil.walk_packages(fer_ray.__path__, 'fer_ray.'): importlib.import_module(module.name)\n"
    code += "import ray; print({'tensorflow', 'keras'} & set(sys.modules) or 'light', ray.is_initialized())"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "light False"


def test_a_project_file_names_no_registry_host_and_no_path_of_a_machine() -> None:
    hosts = ["py" + "pi.org", "python" + "hosted", "/work" + "/"]
    files = [*ROOT.glob("*.txt"), *ROOT.glob("*.toml"), *ROOT.glob("*.md"), *ROOT.glob("fer_ray/**/*.json"), *ROOT.glob("fer_ray/**/*.py")]
    assert [f"{host} in {file}" for file in files for host in hosts if host in file.read_text()] == []


def test_every_promise_names_a_test_that_there_is() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/promises.md").read_text()))
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert named - set(re.findall(r"^def (test_\w+)", tests, re.MULTILINE)) == set()
