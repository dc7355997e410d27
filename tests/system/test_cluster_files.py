"""The files that people start clusters with: what is uploaded, cluster.yaml, KubeRay; typos that would be found out in the cloud."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator

import fer_ray
from fer_ray.cli.flags import parse
from fer_ray.config.jobs.tune import TuneConfig

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "deploy" / "kuberay"
MACHINES = {"m7i.xlarge": (4, 0), "c7i.4xlarge": (16, 0), "g6.2xlarge": (8, 1)}  # CPUs and GPUs, as AWS lists them
MAX_MEGABYTES = 25
PYTHON = "py311"  # of `make .venv/ready`, with which constraints.txt was made


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    return {plain(name): version for name, version in lines}


def cluster() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return content


def manifests() -> dict[str, dict[str, Any]]:
    documents = [d for name in ("rayjob", "nightly") for d in yaml.safe_load_all((KUBERAY / f"{name}.yaml").read_text())]
    return {document["kind"]: document for document in documents}


def search_job() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((KUBERAY / "search.yaml").read_text())
    return content


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """What `ray job submit --working-dir .` would upload from a checkout in use, packed by Ray itself."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path_factory.mktemp("upload") / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    return zipfile.ZipFile(package)


def test_the_upload_is_small_and_holds_what_a_job_needs_and_nothing_else(uploaded: zipfile.ZipFile) -> None:
    names = uploaded.namelist()
    assert sum(file.file_size for file in uploaded.infolist()) < MAX_MEGABYTES * 1e6
    assert {name.split("/")[0] for name in names} == {"fer_ray", "jobs", "constraints.txt", "runtime-env.yaml"}
    tracked = subprocess.run(["git", "ls-files", "fer_ray", "jobs"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {name for name in names if name.startswith(("fer_ray/", "jobs/"))} >= set(tracked.stdout.split())
    models = {f"fer_ray/models/bundled/{model}/model" for model in ("ferplus", "fer2013")}
    assert {f"{model}.{kind}" for model in models for kind in ("keras", "onnx")} <= set(names)


def test_the_runtime_environment_installs_every_dependency_as_it_is_pinned() -> None:
    packages = yaml.safe_load((ROOT / "runtime-env.yaml").read_text())["pip"]["packages"]
    assert packages[0] == "--constraint ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/constraints.txt"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dependencies = project["dependencies"] + project["optional-dependencies"]["train"]
    names = [re.split(r"[><=]", dependency)[0] for dependency in dependencies]
    assert packages[1:] == [f"{name}=={pins()[plain(name.split('[')[0])]}" for name in names]


def test_ray_accepts_the_runtime_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.runtime_env import RuntimeEnv

    monkeypatch.chdir(ROOT)
    content = yaml.safe_load((ROOT / "runtime-env.yaml").read_text())
    assert RuntimeEnv(**content).to_dict()["pip"]["packages"] == content["pip"]["packages"]


def test_ray_and_python_are_the_pinned_ones_in_every_image() -> None:
    image = f"rayproject/ray:{pins()['ray']}-{PYTHON}"
    for file, count in (("cluster.yaml", 2), ("deploy/Dockerfile", 2), ("runtime-env.yaml", 1)):
        found = re.findall(r"rayproject/ray:\S+?-(?:cpu|gpu)", (ROOT / file).read_text())
        assert len(found) == count, file
        assert {name.rpartition("-")[0] for name in found} == {image}, file
    spec = manifests()["RayJob"]["spec"]["rayClusterSpec"]
    assert spec["rayVersion"] == pins()["ray"]
    files = ("Dockerfile", "kuberay/rayjob.yaml", "kuberay/search.yaml")
    images = re.findall(r"fer-ray:(\d\S+)", "".join((ROOT / "deploy" / name).read_text() for name in files))
    assert set(images) == {fer_ray.__version__}


def test_the_cluster_launcher_accepts_cluster_yaml() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(cluster()))
    validate_config(prepared)
    assert prepared["worker_setup_commands"] == cluster()["setup_commands"], "every worker installs what the head installs"


def test_machines_are_started_with_parameters_that_aws_knows_and_resources_that_they_have() -> None:
    shape = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    types = cluster()["available_node_types"]
    for name, kind in types.items():
        problems = ParamValidator().validate(kind["node_config"] | {"MinCount": 1, "MaxCount": 1}, shape)
        assert not problems.has_errors(), f"{name}: {problems.generate_report()}"
        cpus, gpus = MACHINES[kind["node_config"]["InstanceType"]]
        expected = {"CPU": 0} if name == "head" else {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        assert kind["resources"] == expected, name
        assert "IamInstanceProfile" in kind["node_config"], f"{name} would need keys for S3"
    assert cluster()["head_node_type"] == "head"
    workers = {name: kind for name, kind in types.items() if name != "head"}
    assert all(kind["min_workers"] == 0 for kind in workers.values()), "a cluster without work costs its head alone"
    assert sum(kind["max_workers"] for kind in workers.values()) == cluster()["max_workers"]
    assert workers["cpu_worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert not cluster()["provider"]["cache_stopped_nodes"]


def test_what_cluster_yaml_copies_is_enough_to_install_the_package() -> None:
    home = "/home/ray/fer_ray/"
    mounted = {remote.removeprefix(home): local for remote, local in cluster()["file_mounts"].items() if remote.startswith(home)}
    assert mounted == {name: name for name in ("fer_ray", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *(name.split("/")[0] for name in project["license-files"])} <= set(mounted)
    copied = re.findall(r"^COPY --chown=ray:users (.+) \S+$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    assert set(mounted) <= set(" ".join(copied).split())
    for command in [*cluster()["setup_commands"], *cluster()["available_node_types"]["gpu_worker"]["worker_setup_commands"]]:
        assert "--constraint /home/ray/fer_ray/constraints.txt" in command
        assert all(extra in project["optional-dependencies"] for extra in re.findall(r"[\w-]+", "".join(re.findall(r"\[(.+?)\]", command))))


def test_no_file_for_clusters_holds_a_secret() -> None:
    files = [ROOT / "cluster.yaml", ROOT / "runtime-env.yaml", *(ROOT / "deploy").rglob("*.*")]
    assert not [file for file in files if re.search(r"AKIA|aws_(access|secret)|AUTH_TOKEN=", file.read_text(), re.IGNORECASE)]


def test_kuberay_and_kubernetes_know_every_field() -> None:
    schema = jsonschema.Draft202012Validator(json.loads((ROOT / "tests" / "system" / "kuberay_schema.json").read_text()))
    kinds = manifests()
    assert set(kinds) == {"RayJob", "CronJob", "ServiceAccount", "Role", "RoleBinding"}
    for kind, manifest in kinds.items():
        own = schema.evolve(schema=schema.schema | {"oneOf": [{"$ref": f"#/$defs/{kind}"}]})
        assert [f"{kind} {error.json_path}: {error.message}" for error in own.iter_errors(manifest)] == []
    assert [error.message for error in schema.iter_errors(search_job())] == []
    wrong = copy.deepcopy(kinds["RayJob"])
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 1
    assert not schema.is_valid(wrong)


def test_the_ray_job_starts_from_nothing_and_ends_with_nothing() -> None:
    spec = manifests()["RayJob"]["spec"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["rayClusterSpec"]["enableInTreeAutoscaling"]
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    groups = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert all(group["minReplicas"] == group["replicas"] == 0 for group in groups)
    cpus = [int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]) * group["maxReplicas"] for group in groups]
    assert f"--workers {sum(cpus)}" in spec["entrypoint"]
    search = search_job()["spec"]
    assert search["rayClusterSpec"] | {"workerGroupSpecs": groups} == spec["rayClusterSpec"], "the cluster of a search is that of a night"
    options = parse(TuneConfig, search["entrypoint"].split()[2:], "")
    assert options.output.startswith("s3://")
    assert options.max_concurrent == sum(cpus) / (options.cpus_per_worker or 1), "as many trials as its machines have room for"


KUBECTL = """#!/bin/sh
echo "$*" >> "$STATES/calls"
case "$*" in
  create*) cp "$STATES/created" "$STATES/now" ;;
  delete*) rm "$STATES/now" ;;
  *status.jobDeploymentStatus*) if [ -f "$STATES/now" ]; then head -n 1 "$STATES/now"; sed -i 1d "$STATES/now"; fi ;;
  *"--output name"*) if [ -f "$STATES/now" ]; then echo rayjob.ray.io/fer-ray-label; fi ;;
esac
"""


@pytest.mark.parametrize(
    ("before", "then", "verbs", "code"),
    [
        (None, ["", "Running", "Complete"], ["create"], 0),
        (["Complete"], ["Running", "Complete"], ["delete", "create"], 0),
        (["Failed"], ["Running", "Failed"], ["delete", "create"], 1),
        (["Running", "Running", "Complete"], [], [], 0),
    ],
)
def test_a_night_waits_for_its_job_and_never_starts_a_second_one(
    before: list[str] | None, then: list[str], verbs: list[str], code: int, tmp_path: Path
) -> None:
    """The CronJob's own script, against a kubectl that answers from a list of states."""
    container = manifests()["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    for name, content in (("kubectl", KUBECTL), ("sleep", "#!/bin/sh\n")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    if before is not None:
        (tmp_path / "now").write_text("\n".join(before))
    (tmp_path / "created").write_text("\n".join(then))
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "STATES": str(tmp_path)}
    answer = subprocess.run(container["command"], env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert answer.returncode == code, answer.stderr
    called = [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]
    assert [verb for verb in called if verb != "get"] == verbs
    assert manifests()["CronJob"]["spec"]["concurrencyPolicy"] == "Forbid"
    assert set(called) <= set(manifests()["Role"]["rules"][0]["verbs"])
