"""Exports: another runtime gives a bundle's answers from the file alone, and a file that does not is never left behind."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from stores import S3Server

from fer_ray.cli.flags import parse
from fer_ray.config.crop import CropGeometry
from fer_ray.config.jobs.export import EXPORT_FORMATS, WEB, ExportConfig
from fer_ray.config.recipe import ModelConfig
from fer_ray.errors import BundleError, DatasetError, FerRayError, UsageError
from fer_ray.export import job as export
from fer_ray.models import bundle, conversion, keras_bundle
from fer_ray.models.architectures import build
from fer_ray.typing import Float32Array, UInt8Array

ROOT = Path(__file__).parents[2]
CLASSES = ("angry", "happy", "sad")
FILE_FORMATS = tuple(name for name in EXPORT_FORMATS if name != WEB)  # test_web_page.py looks at the page
TINY = ModelConfig(architecture="residual", stem=8, widths=(8,), depths=(1,))
COLOR = ModelConfig(architecture="vgg16", image_size=32)


def save_untrained(folder: Path, *configs: ModelConfig, flip: bool = False) -> str:
    """A bundle of networks whose answers differ between faces as those of trained ones do."""
    import keras

    folder.mkdir()
    members = []
    for seed, config in enumerate(configs):
        keras.utils.set_random_seed(seed)
        members.append(bundle.Member(keras_bundle.KerasNetwork(build(config, len(CLASSES))), config))
    crops = export.demo_crops(bundle.Bundle(tuple(members), CLASSES, False, CropGeometry(), 1.0, ""), 32)
    for member in members:
        logits = member.network.logits(crops)
        last = member.network.model.get_layer("logits")
        last.set_weights([last.get_weights()[0] / logits.std(axis=0), -logits.mean(axis=0) / logits.std(axis=0)])
    keras_bundle.save(str(folder), members, keras_bundle.Description(CLASSES, 1.7, {}, {}, flip))
    return str(folder)


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rounds are enough where nobody reads the speed."""
    monkeypatch.setattr(export, "MAX_ROUNDS", 3)


def run_elsewhere(format_name: str, output: str, faces: Float32Array) -> Float32Array:
    """The answers of the exported file to faces (n, s, s, channels), as somebody without this code gets them."""
    if format_name == "onnx":
        session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"faces": faces})[0])
    import tensorflow as tf

    if format_name == "savedmodel":
        loaded = tf.saved_model.load(output)
        return np.asarray(loaded.signatures["serving_default"](faces=tf.constant(faces))["probabilities"])
    interpreter = tf.lite.Interpreter(model_path=output)
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], faces.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], faces)
    interpreter.invoke()
    return np.asarray(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


def as_input(crops: UInt8Array) -> Float32Array:
    return crops.reshape(*crops.shape[:3], -1).astype(np.float32)


def read_description(format_name: str, output: Path) -> dict[str, object]:
    if format_name == "onnx":
        stored = {entry.key: entry.value for entry in onnx.load(output).metadata_props}
        return {
            key: value if key in ("model_version", "color", "inside_the_network") else json.loads(value) for key, value in stored.items()
        }
    file = output / "assets.extra" / "fer_ray.json" if format_name == "savedmodel" else output.with_name(output.name + ".json")
    return dict(json.loads(file.read_text()))


@pytest.mark.parametrize(
    ("members", "flip", "flip_on_demand", "format_name"),
    [
        *(((TINY,), False, name == "onnx", name) for name in FILE_FORMATS),
        *(((TINY, TINY), True, False, name) for name in FILE_FORMATS),
        ((COLOR,), False, False, "onnx"),
    ],
)
def test_another_runtime_gives_the_probabilities_of_the_bundle_for_any_number_of_faces_and_says_what_it_takes(
    tmp_path: Path, members: tuple[ModelConfig, ...], flip: bool, flip_on_demand: bool, format_name: str
) -> None:
    model, output = save_untrained(tmp_path / "bundle", *members, flip=flip), str(tmp_path / "exports" / "emotions")
    summary = export.export(ExportConfig(model=model, format=format_name, output=output, flip=flip_on_demand))
    original = keras_bundle.load(model, flip_on_demand)
    crops = export.demo_crops(original, 70)
    for count in (1, 3, 64):
        expected = original.probabilities(crops[-count:])
        assert run_elsewhere(format_name, output, as_input(crops[-count:])) == pytest.approx(expected, abs=1e-3)
    assert np.ptp(original.probabilities(crops), axis=0).max() > 0.05
    assert summary["agreement"] >= 0.99
    assert summary["model_version"] == original.model_version
    assert {file.name for file in (tmp_path / "exports").iterdir()} <= {"emotions", "emotions.json"}
    described = read_description(format_name, Path(output))
    side, color, channels = original.image_size, original.color, as_input(crops).shape[-1]
    assert described["classes"] == list(CLASSES)
    assert described["crop"] == dataclasses.asdict(original.crop)
    assert described["model_version"] == original.model_version
    assert described["input"] == {"name": "faces", "shape": ["n", side, side, channels], "dtype": "float32", "range": [0, 255]}
    assert [described[key] for key in ("image_size", "color", "flip", "int8")] == [side, color, flip or flip_on_demand, False]


@pytest.mark.parametrize("format_name", ["onnx", "tflite"])
def test_int8_is_far_smaller_and_mostly_says_the_same(tmp_path: Path, format_name: str) -> None:
    output = str(tmp_path / "small")
    summary = export.export(ExportConfig(format=format_name, int8=True, output=output))
    original = dataclasses.replace(keras_bundle.load(bundle.resolve("")), by_picture=None)  # an export knows nothing of the picture
    crops = export.demo_crops(original, 100)
    given = run_elsewhere(format_name, output, as_input(crops))
    assert (given.argmax(axis=1) == original.probabilities(crops).argmax(axis=1)).mean() >= 0.9
    weights = sum(member.network.model.count_params() for member in original.members)
    assert summary["bytes"] == Path(output).stat().st_size < 1.3 * weights
    assert np.abs(given.sum(axis=1) - 1).max() < 0.02


@pytest.mark.parametrize("format_name", FILE_FORMATS)
def test_an_export_that_does_not_agree_with_the_model_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_name: str
) -> None:
    model, combined = save_untrained(tmp_path / "bundle", TINY), conversion.combined_network
    monkeypatch.setattr(conversion, "combined_network", lambda given: combined(dataclasses.replace(given, temperature=1.9)))
    with pytest.raises(FerRayError, match="does not agree") as caught:
        export.export(ExportConfig(model=model, format=format_name, output=str(tmp_path / "new" / "exported")))
    assert caught.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_stands_at_the_output_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "beside.json").write_text("precious")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    for format_name, name in [*((f, n) for f in EXPORT_FORMATS for n in ("file", "folder", "nowhere")), ("tflite", "beside")]:
        with pytest.raises(UsageError, match="exists already"):
            export.export(ExportConfig(format=format_name, output=str(tmp_path / name)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside.json", "file", "folder", "nowhere"]
    assert (tmp_path / "file").read_text() == (tmp_path / "beside.json").read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--output", "x", "--format", "savedmodel", "--int8"], "no int8"),
        (["--output", "x", "--format", "pickle"], "pickle"),
        (["--format", "onnx"], "Where to"),
    ],
)
def test_what_cannot_be_exported_is_refused_at_once(arguments: list[str], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse(ExportConfig, arguments, "")


def test_a_missing_bundle_data_set_or_package_and_a_whole_bucket_are_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path / "exported")
    with pytest.raises(BundleError, match="missing"):
        export.export(ExportConfig(model=str(tmp_path / "no_bundle"), output=output))
    with pytest.raises(DatasetError):
        export.export(ExportConfig(dataset=str(tmp_path / "no_faces"), output=output))
    with pytest.raises(UsageError, match="whole bucket"):
        export.export(ExportConfig(output="s3://bucket/"))
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "tf2onnx" else name)
    with pytest.raises(UsageError, match=r"needs the package tf2onnx: pip install 'fer-ray\[train\]'"):
        export.export(ExportConfig(output=output))
    assert list(tmp_path.iterdir()) == []


def test_an_export_goes_to_s3_and_works_when_it_is_copied_back(tmp_path: Path, s3_server: S3Server) -> None:
    client, model = s3_server.client(), save_untrained(tmp_path / "bundle", TINY)
    client.create_bucket(Bucket="exports")
    config = ExportConfig(model=model, format="savedmodel", output="s3://exports/emotions/", s3_endpoint=s3_server.endpoint)
    export.export(config)
    for entry in client.list_objects_v2(Bucket="exports")["Contents"]:
        file = tmp_path / "copy" / entry["Key"]
        file.parent.mkdir(parents=True, exist_ok=True)
        client.download_file("exports", entry["Key"], str(file))
    original = keras_bundle.load(model)
    crops = export.demo_crops(original, 5)
    given = run_elsewhere("savedmodel", str(tmp_path / "copy" / "emotions"), as_input(crops))
    assert given == pytest.approx(original.probabilities(crops), abs=1e-3)
    with pytest.raises(UsageError, match="exists already"):
        export.export(config)


def test_the_command_prints_a_line_and_a_summary_and_keeps_converters_quiet(tmp_path: Path) -> None:
    model, output = save_untrained(tmp_path / "bundle", TINY), str(tmp_path / "emotions.onnx")
    command = [sys.executable, "jobs/export.py", "--model", model, "--format", "onnx", "--output", output]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    sentence, advice, summary = answer.stdout.splitlines()
    assert answer.stderr == ""
    assert "images/s" in sentence
    assert f"Load {output} in the other runtime: `faces` (float32 0..255) in, `probabilities` out" in advice
    assert "1 thread)" in sentence
    assert list(json.loads(summary)) == [
        *("format", "int8", "bytes", "agreement", "max_difference"),
        *("images_per_second", "keras_images_per_second", "model_version", "output"),
    ]
