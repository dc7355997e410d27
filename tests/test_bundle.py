"""Model bundles: what was saved is what labels, and nothing strange is loaded or run."""

import json
import shutil
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from fer_ray import bundle
from fer_ray.config import ResidualConfig
from fer_ray.errors import BundleError
from fer_ray.models import build_residual

SMALL = ResidualConfig(stem=8, widths=(8,), depths=(1,))
CLASSES = ("angry", "happy", "sad")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "saved"
    folder.mkdir()
    network = build_residual(SMALL, len(CLASSES))
    bundle.save(str(folder), network, classes=CLASSES, architecture_config=SMALL, temperature=1.5, validation={"accuracy": 0.5}, lineage={})
    return folder


def test_a_saved_model_gives_the_same_logits_when_loaded(tmp_path: Path) -> None:
    network = build_residual(SMALL, len(CLASSES))
    faces = np.random.default_rng(0).uniform(0, 255, (5, 48, 48, 1)).astype(np.float32)
    arguments = {"classes": CLASSES, "architecture_config": SMALL, "validation": {"accuracy": 0.5}, "lineage": {}}
    version = bundle.save(str(tmp_path), network, temperature=1.5, **arguments)  # type: ignore[arg-type]
    loaded = bundle.load(str(tmp_path))
    assert (loaded.classes, loaded.temperature, loaded.model_version, loaded.image_size) == (CLASSES, 1.5, version, 48)
    assert np.array_equal(loaded.network.predict_on_batch(faces), network.predict_on_batch(faces))
    assert bundle.save(str(tmp_path), network, temperature=1.6, **arguments) != version  # type: ignore[arg-type]


def test_light_and_contrast_of_a_face_change_nothing() -> None:
    loaded = bundle.load(bundle.resolve(""))
    faces = np.random.default_rng(0).uniform(100, 200, (4, 48, 48, 1)).astype(np.float32)
    darker = faces * 0.6 + 10
    assert loaded.network.predict_on_batch(darker) == pytest.approx(loaded.network.predict_on_batch(faces), abs=0.02)


def rewrite(folder: Path, **changes: object) -> None:
    """Change the metadata and sign it, as someone who knows this code could."""
    file = folder / bundle.METADATA_FILE
    content = json.loads(file.read_text()) | changes
    content["weights_sha256"] = bundle._sha256(folder / bundle.WEIGHTS_FILE)
    content["model_version"] = bundle._model_version(content)
    file.write_text(json.dumps(content))


def replace_weights(folder: Path, stored: Path) -> None:
    with zipfile.ZipFile(folder / bundle.WEIGHTS_FILE, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(stored, "model.weights.h5")
    rewrite(folder)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format_version": 99}, "upgrade"),
        ({"architecture": "os.system"}, "unknown"),
        ({"classes": ["happy", "hungry"]}, "classes"),
        ({"classes": ["happy", "happy"]}, "classes"),
        ({"calibration": {"temperature": 0.0}}, "temperature"),
        ({"calibration": None}, "broken"),
        ({"preprocessing": {"crop": {"scale": 1e9}}}, "crop"),
        ({"preprocessing": {"crop": {"scale": "1; import os"}}}, "crop"),
        ({"architecture_config": {"widths": [2048], "depths": [60]}}, "weights"),
        ({"architecture_config": {"widths": ["a"], "depths": [1]}}, "whole numbers"),
        ({"architecture_config": {"stem": 16, "widths": [8], "depths": [1]}}, "do not fit"),
        ({"architecture_config": {"stem": 8, "widths": [8], "depths": [2]}}, "do not fit"),
    ],
)
def test_a_strange_bundle_is_refused_with_the_reason(saved: Path, changes: dict[str, object], complaint: str) -> None:
    rewrite(saved, **changes)
    with pytest.raises(BundleError, match=complaint):
        bundle.load(str(saved))


def test_an_altered_or_incomplete_bundle_is_refused(saved: Path, tmp_path: Path) -> None:
    altered = shutil.copytree(saved, tmp_path / "altered")
    content = json.loads((altered / bundle.METADATA_FILE).read_text())
    (altered / bundle.METADATA_FILE).write_text(json.dumps(content | {"classes": ["angry", "happy", "fear"]}))
    with pytest.raises(BundleError, match="altered"):
        bundle.load(str(altered))
    (saved / bundle.METADATA_FILE).write_text("[" * 100_000)
    with pytest.raises(BundleError, match="broken"):
        bundle.load(str(saved))
    (saved / bundle.WEIGHTS_FILE).unlink()
    with pytest.raises(BundleError, match="missing"):
        bundle.load(str(saved))


def test_weights_that_would_fill_the_memory_are_refused_before_they_are_read(saved: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.h5"
    with h5py.File(bomb, "w") as file:
        file.create_dataset("layers/conv2d/vars/0", shape=(1 << 40,), dtype="f4", chunks=(1 << 20,))
    replace_weights(saved, bomb)
    with pytest.raises(BundleError, match="larger"):
        bundle.load(str(saved))
    unpacks_to_gigabytes = tmp_path / "zeros"
    with unpacks_to_gigabytes.open("wb") as file:
        file.truncate(200 << 20)
    replace_weights(saved, unpacks_to_gigabytes)
    with pytest.raises(BundleError, match="unpacks"):
        bundle.load(str(saved))
    outside = tmp_path / "outside.h5"
    with h5py.File(outside, "w") as file:
        file.create_dataset("x", (10,), "f4", external=[("/etc/hostname", 0, 40)])
    replace_weights(saved, outside)
    with pytest.raises(BundleError, match="plain array"):
        bundle.load(str(saved))


def test_the_bundled_model_is_small_and_says_what_it_is() -> None:
    metadata = bundle.read_metadata(bundle.resolve(""))
    size = sum(file.stat().st_size for file in Path(bundle.resolve("")).iterdir())
    assert size <= 12e6
    assert metadata["metrics"]["validation"]["accuracy"] >= 0.65
    assert metadata["metrics"]["validation"]["ece"] < 0.05
    assert {"data_sha256", "config", "train_counts"} <= set(metadata["lineage"])
    assert "dataset" not in metadata["lineage"]["config"]
