"""Model bundles: what was saved is what labels, and nothing strange is loaded or run."""

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from stores import S3Server

from fer_ray.config.jobs.models import UpgradeConfig
from fer_ray.config.recipe import ARCHITECTURES, ModelConfig
from fer_ray.errors import BundleError
from fer_ray.io.storage import Storage
from fer_ray.models import bundle, keras_bundle
from fer_ray.models.architectures import build
from fer_ray.models.bundle import Bundle, Member
from fer_ray.models.conversion import add_onnx
from fer_ray.models.keras_bundle import Description, KerasNetwork
from fer_ray.models.metrics import softmax
from fer_ray.models.sizes import size_of
from fer_ray.models.upgrade import upgrade
from fer_ray.typing import UInt8Array

SMALL = ModelConfig(stem=8, widths=(8,), depths=(1,))
CLASSES = ("angry", "happy", "sad")
DEEP = ("efficientnet_b0", "resnet50_v2")  # whose conversion takes many seconds; mobilenet_v2 and vgg16 stand for them


def save(folder: Path, *configs: ModelConfig, flip: bool = False) -> tuple[list[Member[KerasNetwork]], str]:
    members = [Member(KerasNetwork(build(config, len(CLASSES))), config) for config in configs]
    return members, keras_bundle.save(str(folder), members, Description(CLASSES, 1.5, {"accuracy": 0.5}, {}, flip))


def crops(count: int, config: ModelConfig) -> UInt8Array:
    shape = (config.image_size, config.image_size) + (3,) * (config.color == "rgb")
    return np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(np.uint8)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    folder.mkdir()
    save(folder, SMALL)
    return folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_gives_the_same_logits_when_saved_and_loaded_in_keras_and_as_onnx(tmp_path: Path, architecture: str) -> None:
    config = ModelConfig(architecture=architecture, image_size=32)
    (member,), version = save(tmp_path, config)
    assert size_of(config, len(CLASSES)).weights == member.network.model.count_params(), "counted from the description"
    faces = crops(5, config)
    loads: list[Callable[[str], Bundle[Any]]] = [keras_bundle.load]
    with pytest.raises(BundleError, match="fer-ray upgrade --model"):
        bundle.load(str(tmp_path))
    if architecture not in DEEP:
        assert add_onnx(str(tmp_path)) == version
        loads.append(bundle.load)
    for load in loads:
        loaded = load(str(tmp_path))
        assert (loaded.classes, loaded.temperature, loaded.model_version, loaded.image_size) == (CLASSES, 1.5, version, 32)
        assert loaded.logits(faces) == pytest.approx(member.network.logits(faces), abs=1e-4)
        assert loaded.probabilities(faces).sum(axis=1) == pytest.approx(np.ones(5))


def test_other_weights_are_another_version(tmp_path: Path) -> None:
    assert save(tmp_path, SMALL)[1] != save(tmp_path, SMALL)[1]


def test_a_bundle_of_version_0_1_is_upgraded_where_it_lies_and_keeps_its_version(tmp_path: Path, s3_server: S3Server) -> None:
    old = tmp_path / "old"
    old.mkdir()
    _, version = save(old, SMALL, SMALL)
    content = json.loads((old / bundle.METADATA_FILE).read_text()) | {"format_version": bundle.FORMAT_WITHOUT_ONNX}
    (old / bundle.METADATA_FILE).write_text(json.dumps(content))
    client = s3_server.client()
    client.create_bucket(Bucket="bundles")
    for file in old.iterdir():
        client.put_object(Bucket="bundles", Key=f"old/{file.name}", Body=file.read_bytes())
    for place in (str(old), "s3://bundles/old"):
        with bundle.local_copy(Storage(s3_server.endpoint), place) as folder, pytest.raises(BundleError, match="fer-ray upgrade"):
            bundle.load(folder)
        assert upgrade(UpgradeConfig(place, s3_endpoint=s3_server.endpoint)) == {"model_version": version, "networks": 2, "output": place}
        with bundle.local_copy(Storage(s3_server.endpoint), place) as folder:
            assert bundle.load(folder).probabilities(crops(3, SMALL)) == pytest.approx(
                keras_bundle.load(folder).probabilities(crops(3, SMALL)), abs=1e-5
            )
    before = (old / bundle.onnx_file(0)).stat().st_mtime_ns
    assert upgrade(UpgradeConfig(str(old)))["model_version"] == version
    assert (old / bundle.onnx_file(0)).stat().st_mtime_ns == before, "there was nothing to do"


def test_kernels_and_a_network_without_attention_survive_and_bundles_from_before_kernels_still_load(tmp_path: Path) -> None:
    for config in (
        ModelConfig(stem=8, widths=(8, 16), depths=(1, 2), attention_reduction=0, image_size=33),
        ModelConfig(architecture="cnn_32_64_128", widths=(8, 8, 8), kernels=(1, 7, 5), dense=(8,)),
        ModelConfig(architecture="cnn_64_128_512", widths=(8, 8), dense=(8,)),
    ):
        (member,), _ = save(tmp_path, config)
        assert size_of(config, len(CLASSES)).weights == member.network.model.count_params()
        expected = member.network.logits(crops(3, config))
        assert keras_bundle.load(str(tmp_path)).logits(crops(3, config)) == pytest.approx(expected, abs=1e-5)
    shapes = [layer.kernel.shape[0] for layer in member.network.model.layers if "conv" in layer.name]
    assert shapes == [3, 5]  # what this architecture had when its kernels could not be chosen
    content = json.loads((tmp_path / bundle.METADATA_FILE).read_text())
    del content["members"][0]["model"]["kernels"]
    bundle.write_metadata(str(tmp_path), content)
    assert keras_bundle.load(str(tmp_path)).logits(crops(3, config)) == pytest.approx(expected, abs=1e-5)


def test_an_ensemble_averages_its_members_and_mirror_images(tmp_path: Path) -> None:
    members, version = save(tmp_path, SMALL, ModelConfig(architecture="cnn_32_64_128"), flip=False)
    faces = crops(3, SMALL)
    alone = [softmax(member.network.logits(faces)) for member in members]
    assert softmax(keras_bundle.load(str(tmp_path)).logits(faces)) == pytest.approx(np.mean(alone, axis=0), abs=1e-6)
    mirrored = [softmax(member.network.logits(faces[:, :, ::-1])) for member in members]
    flipped = keras_bundle.load(str(tmp_path), flip=True)
    assert softmax(flipped.logits(faces)) == pytest.approx(np.mean(alone + mirrored, axis=0), abs=1e-6)
    assert version.startswith("ensemble2-")
    assert flipped.model_version == f"{version}-flip"


def test_light_and_contrast_of_a_face_change_nothing() -> None:
    loaded = keras_bundle.load(bundle.resolve(""))
    faces = np.random.default_rng(0).uniform(100, 200, (4, 48, 48, 1)).astype(np.float32)
    network = loaded.members[0].network.model
    assert network.predict_on_batch(faces * 0.6 + 10) == pytest.approx(network.predict_on_batch(faces), abs=0.02)


def rewrite(folder: Path, **changes: object) -> None:
    """Change the metadata and sign it, as someone who knows this code could; `model` changes the network's configuration."""
    content = json.loads((folder / bundle.METADATA_FILE).read_text())
    content["members"][0]["model"] |= changes.pop("model", {})
    content["members"][0]["weights_sha256"] = bundle.sha256(folder / bundle.weights_file(0))
    bundle.write_metadata(str(folder), content | changes)


def replace_weights(folder: Path, stored: Path) -> None:
    with zipfile.ZipFile(folder / bundle.weights_file(0), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(stored, "model.weights.h5")
    rewrite(folder)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format_version": 99}, "upgrade"),
        ({"format_version": 1}, "train the model anew"),
        ({"flip": "yes"}, "flip"),
        ({"members": []}, "networks"),
        ({"model": {"architecture": "os.system"}}, "must be one of residual"),
        ({"classes": ["happy", "hungry"]}, "classes"),
        ({"classes": ["happy", "happy"]}, "classes"),
        ({"calibration": {"temperature": 0.0}}, "temperature"),
        ({"calibration": None}, "broken"),
        ({"calibration": {"temperature": 1.0, "by_picture": {"network": "", "temperature": [0] * 6, "offsets": [[0] * 6]}}}, "each class"),
        (
            {"calibration": {"temperature": 1.0, "by_picture": {"network": "", "temperature": [1e9] * 6, "offsets": [[0] * 6] * 3}}},
            "at most",
        ),
        ({"calibration": {"temperature": 1.0, "by_picture": {"temperature": "os.system"}}}, "broken"),
        ({"preprocessing": {"crop": {"scale": 1e9}}}, "crop"),
        ({"preprocessing": {"crop": {"scale": "1; import os"}}}, "crop"),
        ({"model": {"widths": [2048], "depths": [60]}}, "weights"),
        ({"model": {"widths": ["a"]}}, "must be a whole number"),
        ({"model": {"kernels": [3]}}, "leave it out"),
        ({"model": {"architecture": "cnn_32_64_128", "widths": [8], "kernels": [4]}}, "odd"),
        ({"model": {"architecture": "cnn_32_64_128", "widths": [8], "kernels": [13]}}, "odd"),
        ({"model": {"architecture": "cnn_32_64_128", "widths": [8], "kernels": [3, 3]}}, "one number for each"),
        ({"model": {"attention_reduction": -1}}, "whole numbers"),
        ({"model": {"stem": 16}}, "do not fit"),
        ({"model": {"depths": [2]}}, "do not fit"),
        ({"model": {"architecture": "cnn_32_64_128", "widths": [8], "kernels": [3], "dense": [4096] * 400}}, "fully connected layers"),
        ({"model": {"architecture": "cnn_32_64_128", "widths": [8], "kernels": [3], "dense": [4096] * 16}}, "weights, more than"),
        ({"model": {"architecture": "vgg16", "dense": [4096] * 16, "stem": 0, "widths": [], "depths": []}}, "weights, more than"),
        ({"model": {"image_size": 512, "stem": 1024}}, "GB for one crop"),
        ({"model": {"dropout": float("nan")}}, "NaN, which is no number"),
        ({"model": {"architecture": "x" * 100_000}}, "must be one of residual"),
        ({"preprocessing": {"crop": {"rotation": float("nan")}}}, "NaN, which is no number"),
        ({"calibration": {"temperature": float("inf")}}, "Infinity, which is no number"),
        ({"metrics": {"validation": {"accuracy": float("nan")}}}, "NaN"),
        ({"metrics": None}, "broken"),
        ({"lineage": "trust me"}, "trained on"),
    ],
)
def test_a_strange_bundle_is_refused_with_the_reason(saved: Path, changes: dict[str, object], complaint: str) -> None:
    rewrite(saved, **changes)
    with pytest.raises(BundleError, match=complaint) as refused:
        keras_bundle.load(str(saved))
    assert len(str(refused.value)) < 1000
    assert "\n" not in str(refused.value)


def test_an_altered_or_incomplete_bundle_is_refused(saved: Path, tmp_path: Path) -> None:
    altered = shutil.copytree(saved, tmp_path / "altered")
    content = json.loads((altered / bundle.METADATA_FILE).read_text())
    (altered / bundle.METADATA_FILE).write_text(json.dumps(content | {"classes": ["angry", "happy", "fear"]}))
    with pytest.raises(BundleError, match="altered"):
        keras_bundle.load(str(altered))
    (saved / bundle.weights_file(0)).unlink()
    with pytest.raises(BundleError, match=r"missing its model\.keras"):
        keras_bundle.load(str(saved))
    (saved / bundle.METADATA_FILE).write_text("[" * 100_000)
    with pytest.raises(BundleError, match="broken"):
        keras_bundle.load(str(saved))


def test_weights_that_would_fill_the_memory_are_refused_before_they_are_read(saved: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.h5"
    with h5py.File(bomb, "w") as file:
        file.create_dataset("layers/conv2d/vars/0", shape=(1 << 40,), dtype="f4", chunks=(1 << 20,))
    replace_weights(saved, bomb)
    with pytest.raises(BundleError, match="larger"):
        keras_bundle.load(str(saved))
    unpacks_to_gigabytes = tmp_path / "zeros"
    with unpacks_to_gigabytes.open("wb") as file:
        file.truncate(200 << 20)
    replace_weights(saved, unpacks_to_gigabytes)
    with pytest.raises(BundleError, match="unpacks"):
        keras_bundle.load(str(saved))
    claims = tmp_path / "claims.h5"
    with h5py.File(claims, "w") as file:  # what nobody wrote is read as zeros
        file.create_dataset("layers/conv2d/vars/0", shape=(1 << 20,), dtype="f4")
    replace_weights(saved, claims)
    with pytest.raises(BundleError, match="larger than what the file holds"):
        keras_bundle.load(str(saved))


@pytest.mark.parametrize(
    ("add", "complaint"),
    [
        (lambda file: file.create_dataset("x", (10,), "f4", external=[("/etc/hostname", 0, 40)]), "plain array"),
        (lambda file: file.__setitem__("x", h5py.ExternalLink("/etc/hostname", "x")), "leads elsewhere"),
        (lambda file: file.__setitem__("x", h5py.SoftLink("/layers")), "leads elsewhere"),
        (lambda file: file.create_dataset("x", data=np.array([1.0, np.nan])), "no numbers"),
        (lambda file: file.create_dataset("x", data=np.array([b"text"])), "plain array"),
    ],
)
def test_weights_that_lead_elsewhere_or_are_no_numbers_are_refused(
    saved: Path, tmp_path: Path, add: Callable[[h5py.File], Any], complaint: str
) -> None:
    with zipfile.ZipFile(saved / bundle.weights_file(0)) as archive:
        archive.extract("model.weights.h5", tmp_path)
    with h5py.File(tmp_path / "model.weights.h5", "a") as file:
        add(file)
    replace_weights(saved, tmp_path / "model.weights.h5")
    with pytest.raises(BundleError, match=complaint):
        keras_bundle.load(str(saved))


def test_files_that_are_no_weights_are_refused_in_a_sentence(saved: Path) -> None:
    file = saved / bundle.weights_file(0)
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        other = archive.read("model.weights.h5")
    for broken in (b"", whole[:-100], b"\x89HDF\r\n\x1a\n", other[: len(other) // 2], whole.replace(b"HDF", b"FDH")):
        file.write_bytes(broken)
        rewrite(saved)
        with pytest.raises(BundleError, match="do not fit"):
            keras_bundle.load(str(saved))


@pytest.mark.parametrize("name", bundle.BUNDLED)
def test_the_bundled_models_are_small_and_say_what_they_are(name: str) -> None:
    metadata = bundle.read_metadata(bundle.resolve(name))
    size = sum(file.stat().st_size for file in Path(bundle.resolve(name)).iterdir())
    assert size <= 14e6
    assert metadata["metrics"]["validation"]["accuracy"] >= 0.65
    assert metadata["metrics"]["validation"]["ece"] < 0.05
    trainings = metadata["lineage"].get("made_of") or [metadata]
    assert any({"data_sha256", "config", "train_counts"} <= set(training["lineage"]) for training in trainings)
    assert not re.search(r'"/|"s3:', json.dumps(metadata))  # no path of a machine
