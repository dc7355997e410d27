"""The command answers at once, and says what it knows and what it does not."""

import subprocess
import sys
from pathlib import Path

import pytest

from fer_ray.cli.main import JOBS

ROOT = Path(__file__).parents[2]
HEAVY = "{'ray', 'tensorflow', 'keras', 'cv2', 'pyarrow', 'numpy'}"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", [*JOBS, ""])
def test_help_loads_nothing_heavy_and_names_the_exit_codes_of_its_job(name: str) -> None:
    words = [*([name] if name else []), "--help"]
    code = f"import sys\nfrom fer_ray.cli.main import main\ntry: main({words})\nexcept SystemExit as end: print(end.code)\n"
    answer = run("-c", f"{code}print({HEAVY} & set(sys.modules) or 'light')")
    assert answer.stdout.splitlines()[-2:] == ["0", "light"], answer.stderr
    assert max(map(len, answer.stdout.splitlines())) <= 80
    assert ("3 done, but too many" in " ".join(answer.stdout.split())) == (name == "label")
    if name:
        assert "--config" in answer.stdout
        assert "Exit codes: 0 done" in answer.stdout
    else:
        assert all(job in answer.stdout for job in JOBS)


def test_a_job_that_does_not_exist_is_refused_with_the_one_that_was_meant() -> None:
    answer = run("-m", "fer_ray", "trian")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.count("\n") == 1
    assert 'Did you mean "train"?' in answer.stderr


def test_a_script_without_its_environment_says_what_to_do() -> None:
    answer = run("-S", "-I", "-c", "import sys; sys.path.insert(0, 'jobs'); sys.argv = ['label.py']; import label")
    assert answer.returncode == 2
    assert answer.stderr == "error: This Python lacks fer_ray: run `make .venv/ready` once, then .venv/bin/fer-ray label.\n"
