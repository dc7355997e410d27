"""Networks of strangers: what is usual labels as its makers meant it, what is not is refused before it takes memory."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fer_ray.config.jobs.import_model import ImportConfig, ImportedModel
from fer_ray.errors import BundleError, UsageError
from fer_ray.label.labeler import Labeler
from fer_ray.models import bundle, keras_bundle
from fer_ray.models.import_model import import_model
from fer_ray.models.onnx_network import OnnxNetwork

SIDE = 32
TAKES = ImportedModel(SIDE, "rgb")
CLASSES = ("happy", "sad")
CHANNELS_FIRST: list[str | int] = ["batch", 3, SIDE, SIDE]
CHANNELS_LAST: list[str | int] = ["n", SIDE, SIDE, 3]


def network(nodes: list[Any], shape: list[str | int], weights: dict[str, np.ndarray[Any, Any]] | None = None) -> onnx.ModelProto:
    """A model from `x` of this shape to `y`, (n, 2)."""
    taken = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    given = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], 2])]
    stored = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(nodes, "network", taken, given, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def mean_colors(shape: list[str | int], softmax: bool = False) -> onnx.ModelProto:
    """Answers with the mean of red and of blue, as it gets them: anyone can say beforehand what comes out."""
    axes = [2, 3] if shape == CHANNELS_FIRST else [1, 2]
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["means"], axes=axes, keepdims=0),
        helper.make_node("Gather", ["means", "ends"], ["logits" if softmax else "y"], axis=1),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["y"], axis=1))
    return network(nodes, shape, {"ends": np.array([0, 2])})


def crops(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("shape", [CHANNELS_FIRST, CHANNELS_LAST])
def test_an_imported_network_gets_what_it_was_trained_on_and_labels(
    tmp_path: Path, photographs: dict[str, Path], shape: list[str | int], softmax: bool
) -> None:
    onnx.save(mean_colors(shape, softmax), tmp_path / "theirs.onnx")
    given = {"image_size": SIDE, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "crop_scale": 1.3}
    config = ImportConfig(str(tmp_path / "theirs.onnx"), str(tmp_path / "model"), CLASSES, **given)  # type: ignore[arg-type]
    summary = import_model(config)
    loaded, images = bundle.load(str(tmp_path / "model")), crops(300)
    wanted = (images[..., [0, 2]].mean(axis=(1, 2)) / 255 - np.array([0.5, 0.3])) / np.array([0.2, 0.3])
    assert np.diff(loaded.logits(images)) == pytest.approx(np.diff(wanted), abs=1e-3)
    (image,) = Labeler(str(tmp_path / "model")).label([photographs["astronaut"]])
    assert set(image.faces[0].probabilities) == set(CLASSES)
    assert loaded.model_version == summary["model_version"]
    assert loaded.model_version.startswith("imported-")
    assert loaded.crop.scale == 1.3
    with pytest.raises(BundleError, match="no Keras network"):
        keras_bundle.load(str(tmp_path / "model"))
    with pytest.raises(UsageError, match="exists already"):
        import_model(config)


def test_an_imported_network_is_calibrated_on_faces_of_emotions_that_it_knows(drawn_faces: Path, tmp_path: Path) -> None:
    onnx.save(mean_colors(CHANNELS_FIRST), tmp_path / "theirs.onnx")
    classes = ("sad", "angry")
    with pytest.raises(UsageError, match="has happy, which the network does not know"):
        import_model(ImportConfig(str(tmp_path / "theirs.onnx"), str(tmp_path / "no"), classes, SIDE, dataset=str(drawn_faces)))
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.onnx"]
    summary = import_model(ImportConfig(str(tmp_path / "theirs.onnx"), str(tmp_path / "model"), CLASSES, SIDE, dataset=str(drawn_faces)))
    saved = bundle.read_metadata(str(tmp_path / "model"))
    assert saved["metrics"]["validation"]["accuracy"] == summary["accuracy"]
    assert saved["calibration"]["temperature"] != 1
    assert str(tmp_path) not in json.dumps(saved)


def one_image_only() -> onnx.ModelProto:
    model = mean_colors([1, 3, SIDE, SIDE])
    model.graph.node[0].attribute[0].ints[:] = [2, 3]
    flat = [helper.make_node("Reshape", ["means", "one"], ["flat"]), helper.make_node("Gather", ["flat", "ends"], ["y"], axis=1)]
    model.graph.node.pop()
    model.graph.node.extend(flat)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 3]), "one"))
    return model


def test_a_network_for_one_image_at_a_time_is_refused_with_what_to_do(tmp_path: Path) -> None:
    onnx.save(one_image_only(), tmp_path / "one.onnx")
    with pytest.raises(BundleError):
        import_model(ImportConfig(str(tmp_path / "one.onnx"), str(tmp_path / "model"), CLASSES, SIDE))
    assert [path.name for path in tmp_path.iterdir()] == ["one.onnx"]


def with_nodes(*nodes: Any, **weights: np.ndarray[Any, Any]) -> onnx.ModelProto:
    """The harmless network with something before it; what comes out of that must be called `x2`."""
    model = mean_colors(CHANNELS_LAST)
    model.graph.node[0].input[0] = "x2"
    following = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *following])
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return model


def outside() -> onnx.ModelProto:
    model = mean_colors(CHANNELS_LAST)
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "/etc/hostname"), ("offset", "0"), ("length", "16")):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    return model


def loop() -> onnx.ModelProto:
    body = helper.make_graph([], "body", [], [helper.make_tensor_value_info("x2", TensorProto.FLOAT, CHANNELS_LAST)])
    return with_nodes(helper.make_node("If", ["yes"], ["x2"], then_branch=body, else_branch=body), yes=np.array(True))


def without_weights() -> onnx.ModelProto:
    model = mean_colors(CHANNELS_LAST)
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].dims[:] = [1 << 40]
    return model


def squared() -> onnx.ModelProto:
    """Every crop against every other, and nothing of it in the answer's shape."""
    return with_nodes(
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["turned"]),
        helper.make_node("MatMul", ["flat", "turned"], ["all"]),
        helper.make_node("ReduceMean", ["all"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["x", "mean"], ["x2"]),
    )


def hidden() -> onnx.ModelProto:
    """A shape that only the pixels decide, beside a claim that it is small."""
    model = with_nodes(
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["whole"], ["most"], keepdims=0),
        helper.make_node("Unsqueeze", ["most", "zero"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("ReduceMean", ["zeros"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["x", "nothing"], ["x2"]),
        zero=np.array([0]),
    )
    model.graph.value_info.append(helper.make_tensor_value_info("zeros", TensorProto.FLOAT, [1]))
    return model


def chain(count: int) -> onnx.ModelProto:
    """So many operators one after the other."""
    names = ["x", *(f"between{number}" for number in range(1, count)), "x2"]
    return with_nodes(*(helper.make_node("Relu", [before], [after]) for before, after in itertools.pairwise(names)))


def endless_sums() -> onnx.ModelProto:
    """Little memory, and hours of work: every mean looks at all of the weights again."""
    means = [helper.make_node("ReduceMean", ["w"], [f"m{number}"], keepdims=0) for number in range(5_000)]
    together = helper.make_node("Sum", ["x", *(f"m{number}" for number in range(5_000))], ["x2"])
    return with_nodes(*means, together, w=np.ones(21_000_000, np.float32))


def scaled(value: float) -> onnx.ModelProto:
    return with_nodes(helper.make_node("Mul", ["x", "w"], ["x2"]), w=np.array([value], np.float32))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: with_nodes(helper.make_node("Pad", ["x", "w"], ["x2"]), w=np.array([0, 0, 0, 0, 0, 0, 0, 1 << 40])), "GB for one crop"),
        (lambda: with_nodes(helper.make_node("Resize", ["x", "", "", "w"], ["x2"]), w=np.array([1, 1 << 20, 1 << 10, 3])), "GB for one"),
        (lambda: chain(10_001), "10,003 operators"),
        (endless_sums, "thousand million products"),
        (lambda: scaled(np.nan), "no numbers"),
        (lambda: scaled(-np.inf), "no numbers"),
        (lambda: scaled(3e38), "answers with values that are no numbers"),
        (lambda: with_nodes(helper.make_node("Neg", ["x"], ["n"]), helper.make_node("Log", ["n"], ["x2"])), "no numbers"),
        (lambda: with_nodes(helper.make_node("Gather", ["x", "w"], ["x2"], axis=1), w=np.array([99])), "ONNX Runtime says"),
        (lambda: with_nodes(helper.make_node("Tile", ["x", "times"], ["x2"]), times=np.array([1, 300, 300, 1])), r"1\.1 GB for one crop"),
        (lambda: with_nodes(helper.make_node("ConvTranspose", ["x", "w"], ["x2"]), w=np.zeros((3, 3, 2, 2), np.float32)), "ConvTranspose"),
        (lambda: with_nodes(helper.make_node("PyOp", ["x"], ["x2"], domain="ai.onnx.contrib")), "contrib.PyOp"),
        (loop, "operator If"),
        (outside, "another file"),
        (without_weights, "more weights than it holds"),
        (squared, "grows faster"),
        (hidden, "not known beforehand"),
        (lambda: mean_colors(["n", SIDE, SIDE, 1]), "is wanted"),
        (lambda: mean_colors(["n", 16, 16, 3]), "is wanted"),
    ],
)
def test_a_strange_network_is_refused_with_the_reason(tmp_path: Path, make: Callable[[], onnx.ModelProto], complaint: str) -> None:
    (tmp_path / "strange.onnx").write_bytes(make().SerializeToString())
    with pytest.raises(BundleError, match=complaint):
        OnnxNetwork(tmp_path / "strange.onnx", TAKES, 2)
    (tmp_path / "noise.onnx").write_bytes(b"\x08\x07" + bytes(range(256)) * 4)
    with pytest.raises(BundleError, match="is refused"):
        OnnxNetwork(tmp_path / "noise.onnx", TAKES, 2)


def test_a_model_whose_answers_are_no_numbers_labels_nothing(tmp_path: Path) -> None:
    class Silent:
        def logits(self, images: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
            return np.full((len(images), 2), np.nan, np.float32)

    onnx.save(mean_colors(CHANNELS_LAST), tmp_path / "theirs.onnx")
    import_model(ImportConfig(str(tmp_path / "theirs.onnx"), str(tmp_path / "model"), CLASSES, SIDE))
    loaded = bundle.load(str(tmp_path / "model"))
    broken = dataclasses.replace(loaded, members=(bundle.Member(Silent(), loaded.members[0].config),))  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="no numbers: label with another one"):
        broken.probabilities(crops(1))


def test_an_altered_onnx_network_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    onnx.save(mean_colors(CHANNELS_LAST), tmp_path / "theirs.onnx")
    import_model(ImportConfig(str(tmp_path / "theirs.onnx"), str(folder), CLASSES, SIDE))
    with (folder / bundle.onnx_file(0)).open("ab") as file:
        file.write(b"\x00")
    with pytest.raises(BundleError, match="altered"):
        bundle.load(str(folder))


def test_labeling_loads_neither_tensorflow_nor_keras_nor_ray(photographs: dict[str, Path]) -> None:
    script = """
import sys
from fer_ray import Labeler
assert len(Labeler().label(sys.argv[1]).faces) == 1
loaded = {"tensorflow", "keras", "ray", "scipy", "sklearn", "matplotlib", "boto3", "pandas"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script, photographs["astronaut"]], check=True)


def test_the_onnx_networks_of_the_bundled_models_answer_as_keras_does(photographs: dict[str, Path]) -> None:
    pixels = np.asarray(cv2.imread(str(photographs["astronaut"]), cv2.IMREAD_GRAYSCALE))
    faces = np.stack([cv2.resize(pixels[i : i + 128, i : i + 128], (48, 48)) for i in range(0, 320, 20)]).astype(np.uint8)
    for name in bundle.BUNDLED:
        ours, keras = bundle.load(bundle.resolve(name)), keras_bundle.load(bundle.resolve(name))
        assert ours.probabilities(faces) == pytest.approx(keras.probabilities(faces), abs=1e-5)
        assert ours.model_version == keras.model_version
