"""The layout of the code: imports run one way, and asking for help loads nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVELS = [
    {"errors", "printing", "quiet", "metrics", "drawing", "parameters"},
    {"cluster", "options", "schema", "calibration", "page"},
    {"recipe"},
    {"config"},
    {"command", "models", "folders", "signed_get"},
    {"s3", "gradcam", "space_file"},
    {"storage", "space"},
    {"decoder", "detector", "bundle", "demo", "fetch", "views", "archives", "uri_lists", "pixel_csv", "trials"},
    {"listing", "layouts", "history", "conversion", "cost", "importance", "run_log"},
    {"due", "quarantine", "labeler", "documentation", "duplicates", "faces", "votes", "figures", "search_figures"},
    {"manifest", "staging", "telemetry", "labels", "search_page"},
    {"gpu_models"},
    {"pipeline", "publish", "dataset"},
    {"run_figures", "face_samples", "run_page_parts"},
    {"run_history", "run_page_work"},
    {"run_page"},
    {"report", "augmentation", "inspection", "scoring", "export", "ensemble"},
    {"fitting", "evaluation_page"},
    {"synchrony", "searching"},
    {"labeling", "training", "evaluation"},
    {"trial_folders"},
    {"tuning"},
]
RAY_ALLOWED = {"cluster", "gpu_models", "pipeline", "telemetry", "publish", "synchrony", "training", "searching", "trial_folders", "tuning"}
KERAS_ALLOWED = {
    "models",
    "bundle",
    "fitting",
    "synchrony",
    "training",
    "labeler",
    "gradcam",
    "conversion",
    "cost",
    "export",
    "gpu_models",
}


def imports(module: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(module.read_text())
    typing_only = {
        n for block in ast.walk(tree) if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test) for n in block.body
    }
    found: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("module", sorted((ROOT / "fer_ray").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_imports_run_downwards_and_engines_stay_in_their_rooms(module: Path) -> None:
    level = next(i for i, names in enumerate(LEVELS) if module.stem in names)
    own = {name.split(".")[1] for name in imports(module) if name.startswith("fer_ray.")}
    assert own <= set().union(*LEVELS[:level])
    engines = {name.split(".")[0] for name in imports(module)}
    assert "ray" not in engines or module.stem in RAY_ALLOWED
    assert not engines & {"keras", "tensorflow"} or module.stem in KERAS_ALLOWED
    assert not {name.split(".")[0] for name in imports(module, top_level_only=True)} & {"keras", "tensorflow"}


@pytest.mark.parametrize("job", ["label", "train", "evaluate", "ensemble", "export", "inspect_dataset", "tune"])
def test_help_answers_without_loading_ray_tensorflow_or_opencv(job: str) -> None:
    code = f"import runpy, sys\nsys.argv = ['{job}.py', '--help']\n"
    code += f"try: runpy.run_path('jobs/{job}.py', run_name='__main__')\nexcept SystemExit: pass\n"
    code += "print({'ray', 'tensorflow', 'keras', 'cv2'} & set(sys.modules) or 'light')"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--config" in answer.stdout
    assert "Exit codes: 0 done" in answer.stdout
    assert answer.stdout.splitlines()[-1] == "light"


def test_a_project_file_names_no_registry_host_and_no_path_of_a_machine() -> None:
    hosts = ["py" + "pi.org", "python" + "hosted", "/work" + "/"]
    files = [*ROOT.glob("*.txt"), *ROOT.glob("*.toml"), *ROOT.glob("*.md"), *ROOT.glob("fer_ray/**/*.json"), *ROOT.glob("fer_ray/*.py")]
    assert [f"{host} in {file}" for file in files for host in hosts if host in file.read_text()] == []
