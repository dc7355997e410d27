"""A bundle as one network in a file of another runtime, that file as a function again, and the ONNX networks inside a bundle.

The network of an export takes float32 pixel values 0..255 (n, s, s, 1) gray or (n, s, s, 3) RGB for any n and gives calibrated
probabilities (n, classes). Everything that a bundle does to crops is inside: the average of its networks and of mirror images, and
the temperature.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fer_ray.config.jobs.export import ONNX, SAVEDMODEL, TFLITE
from fer_ray.config.recipe import RGB
from fer_ray.errors import FerRayError
from fer_ray.models import bundle, keras_bundle
from fer_ray.models.architectures import LOGITS
from fer_ray.models.bundle import Bundle, Member
from fer_ray.models.keras_bundle import KerasNetwork
from fer_ray.models.metrics import softmax
from fer_ray.models.onnx_network import OnnxNetwork
from fer_ray.models.silence import load_keras, silence
from fer_ray.typing import Float32Array, UInt8Array

if TYPE_CHECKING:
    import keras

Predict = Callable[[Float32Array], Float32Array]  # faces (n, s, s, channels) in 0..255 -> probabilities (n, classes)

INPUT = "faces"
OUTPUT = "probabilities"
SERVING = "serving_default"
CALIBRATION_BATCH = 8  # crops
MAX_ONNX_DIFFERENCE = 1e-4  # of a probability between a network in Keras and in ONNX Runtime
CHECK_CROPS = 32


def combined_network(original: Bundle[KerasNetwork]) -> keras.Model:
    """All of a bundle as one Keras model: float32 0..255 (n, s, s, channels) `faces` -> `probabilities` (n, classes)."""
    import keras
    from keras import ops

    size, channels = original.image_size, 3 if original.color == RGB else 1
    faces = keras.Input((size, size, channels), dtype="float32", name=INPUT)
    shown = faces
    if original.flip:  # as one batch, so that the weights are in the export once; by indices, which every converter knows
        shown = ops.concatenate([faces, ops.take(faces, np.arange(size)[::-1].copy(), axis=2)], axis=0)
    # Networks of one architecture have one name, which may stand only once in a model.
    networks = [member.network.model for member in original.members]
    answers = [keras.Model(network.input, network.output, name=f"network_{number}")(shown) for number, network in enumerate(networks)]
    logits = answers[0]
    if original.flip or len(answers) > 1:
        mean = ops.mean(ops.stack([ops.softmax(answer) for answer in answers]), axis=0)
        if original.flip:
            mean = ops.mean(ops.reshape(mean, (2, -1, len(original.classes))), axis=0)
        logits = ops.log(ops.maximum(mean, 1e-12))
    probabilities = keras.layers.Softmax(dtype="float32", name=OUTPUT)(logits / original.temperature)
    return keras.Model(faces, {OUTPUT: probabilities}, name="fer_ray")


def add_onnx(folder: str) -> str:
    """Complete a bundle in this folder with its ONNX networks, which its metadata names last.

    Returns:
        Its model_version, which stays.

    Raises:
        BundleError: the bundle cannot be used.
        FerRayError: a network cannot be converted, or answers differently as ONNX.
    """
    load_keras()
    original, content = keras_bundle.load(folder), bundle.read_metadata(folder)
    hashes = []
    for index, member in enumerate(original.members):
        file = Path(folder) / bundle.onnx_file(index)
        try:
            with silence():
                _to_onnx(member.network.model, file, None)
                _describe_inside(file, LOGITS, {})
            _check_answers(member, OnnxNetwork(file, member.config, len(original.classes), threads=1))
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300].rstrip(".")
            raise FerRayError(f"The model {original.model_version} cannot be converted to ONNX ({reason}).") from error
        hashes.append(bundle.sha256(file))
    bundle.write_metadata(folder, {**content, "format_version": bundle.FORMAT_VERSION, "onnx_sha256": hashes})
    return original.model_version


def _check_answers(member: Member[KerasNetwork], made: OnnxNetwork) -> None:
    """Compare the two on random images, half of them coarse as faces are."""
    import cv2

    side, channels = member.config.image_size, 3 if member.config.color == RGB else 1
    generator = np.random.default_rng(0)
    fine = generator.integers(0, 256, (CHECK_CROPS // 2, side, side, channels)).astype(np.uint8)
    coarse = [cv2.resize(image[:6, :6], (side, side)).reshape(side, side, channels) for image in fine]
    images: UInt8Array = np.concatenate([fine, np.stack(coarse)]).astype(np.uint8)
    difference = float(np.abs(softmax(made.logits(images)) - softmax(member.network.logits(images))).max())
    if not difference <= MAX_ONNX_DIFFERENCE:  # also where it is NaN
        raise ValueError(f"its probabilities differ by up to {difference:.2g}")


def convert(original: Bundle[KerasNetwork], format_name: str, made: Path, calibration: Float32Array | None) -> None:
    """Write the file, or for a SavedModel the folder, `made`; in 8 bits where crops for calibration (n, s, s, channels) are given.

    Raises:
        FerRayError: the converter refuses the model.
    """
    try:
        with silence():
            _CONVERTERS[format_name](combined_network(original), made, calibration)
            if format_name == ONNX:
                _describe_inside(made, OUTPUT, describe(original, calibration is not None))
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise FerRayError(f"The model {original.model_version} cannot be converted to {format_name} ({reason}).") from error


def open_converted(format_name: str, made: Path, threads: int) -> Predict:
    """What was written, as a function from faces to probabilities; it reads the file and knows nothing of Keras."""
    with silence():
        return _RUNTIMES[format_name](made, threads)


def _to_savedmodel(network: keras.Model, made: Path, calibration: Float32Array | None) -> None:
    """TensorFlow's own writer, as that of Keras 3.15 stores every weight twice."""
    import tensorflow as tf

    module = tf.Module()
    module.weights = [variable.value for variable in network.variables]
    signature = [tf.TensorSpec(network.input_shape, tf.float32, name=INPUT)]
    module.serve = tf.function(lambda faces: network(faces, training=False), input_signature=signature)
    tf.saved_model.save(module, str(made), signatures={SERVING: module.serve})


def _to_tflite(network: keras.Model, made: Path, calibration: Float32Array | None) -> None:
    """With int8: weights in 8 bits per channel, activations quantised anew for every batch.

    This dynamic-range form agreed with the original on 99.6 % of FER-2013's validation faces, static scales on 97 % at about the
    same speed; and it needs no calibration.
    """
    import tensorflow as tf

    with tempfile.TemporaryDirectory(prefix="fer-ray-") as folder:
        _to_savedmodel(network, Path(folder) / "saved", None)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(Path(folder) / "saved"))
        if calibration is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        made.write_bytes(converter.convert())


def _to_onnx(network: keras.Model, made: Path, calibration: Float32Array | None) -> None:
    for layer in _layers_of(network):
        if type(layer).__name__ == "Normalization":  # a tensor would become an input of the ONNX network that nobody can feed
            layer.mean, layer.variance = np.asarray(layer.mean), np.asarray(layer.variance)
    network(np.zeros((1, *network.input_shape[1:]), np.float32))  # Keras exports no model that was never called
    network.export(str(made), format="onnx", verbose=False)
    if calibration is not None:
        _quantise_onnx(made, calibration)


def _layers_of(network: keras.Model) -> Iterator[keras.Layer]:
    for layer in network.layers:
        yield layer
        if hasattr(layer, "layers"):
            yield from _layers_of(layer)


class _CalibrationReader:
    """Hands out crops as ONNX Runtime's quantiser asks for them."""

    def __init__(self, crops: Float32Array) -> None:
        self._batches = iter([{INPUT: crops[i : i + CALIBRATION_BATCH]} for i in range(0, len(crops), CALIBRATION_BATCH)])

    def get_next(self) -> dict[str, Float32Array] | None:
        return next(self._batches, None)


def _quantise_onnx(made: Path, calibration: Float32Array) -> None:
    """Static scales (QDQ): weights by channel, activations by the least and the greatest value that the crops give them."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        str(made),
        str(made),
        _CalibrationReader(calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=True,  # 7 bits for weights: processors without VNNI add pairs of products in 16 bits, which overflow otherwise
        nodes_to_exclude=_nodes_outside_the_networks(made),
    )


def _nodes_outside_the_networks(file: Path) -> list[str]:
    """What comes before the first convolution and after the last dense layer: 8 bits cost accuracy there and save nothing."""
    import onnx

    nodes = list(onnx.load(file).graph.node)
    weighted = {node.name for node in nodes if node.op_type in ("Conv", "Gemm", "MatMul")}
    behind: set[str] = set()
    ahead: set[str] = set()
    before, after = [], []
    for node in nodes:
        if node.name in weighted or behind & set(node.input):
            behind |= set(node.output)
        else:
            before.append(node.name)
    for node in reversed(nodes):
        if node.name in weighted or ahead & set(node.output):
            ahead |= set(node.input)
        else:
            after.append(node.name)
    return before + after


_CONVERTERS: dict[str, Callable[[Any, Path, Float32Array | None], None]] = {
    ONNX: _to_onnx,
    SAVEDMODEL: _to_savedmodel,
    TFLITE: _to_tflite,
}


def describe(original: Bundle[KerasNetwork], int8: bool) -> dict[str, Any]:
    """What a reader of the export must know: classes in the order of the output, and how to cut and colour the input."""
    channels = 3 if original.color == RGB else 1
    return {
        "model_version": original.model_version,
        "classes": list(original.classes),
        "image_size": original.image_size,
        "color": original.color,
        "crop": dataclasses.asdict(original.crop),
        "temperature": original.temperature,
        "flip": original.flip,
        "int8": int8,
        "input": {"name": INPUT, "shape": ["n", original.image_size, original.image_size, channels], "dtype": "float32", "range": [0, 255]},
        "output": {"name": OUTPUT, "shape": ["n", len(original.classes)], "dtype": "float32", "calibrated": True},
        "inside_the_network": "standardisation, average of networks and mirror images, temperature, softmax",
    }


def _describe_inside(file: Path, output: str, description: dict[str, Any]) -> None:
    """ONNX carries its description in the file; input and output get names, which the converter loses, and the batch its letter."""
    import onnx

    model = onnx.load(file)
    if len(model.graph.input) != 1:
        raise ValueError(f"it would need {', '.join(value.name for value in model.graph.input)} as input")
    names = {model.graph.input[0].name: INPUT, model.graph.output[0].name: output}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (model.graph.input[0], model.graph.output[0]):
        value.name = names[value.name]
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in description.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model)
    onnx.save(model, file)


def _run_onnx(made: Path, threads: int) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = onnxruntime.InferenceSession(str(made), options, providers=["CPUExecutionProvider"])
    return lambda faces: np.asarray(session.run([OUTPUT], {INPUT: faces})[0])


def _run_savedmodel(made: Path, threads: int) -> Predict:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(made))
    # Asking `loaded` anew keeps it alive: a signature alone does not keep its variables.
    return lambda faces: np.asarray(loaded.signatures[SERVING](**{INPUT: tf.constant(faces)})[OUTPUT])


def _run_tflite(made: Path, threads: int) -> Predict:
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(model_path=str(made), num_threads=threads or os.cpu_count())
    signature = interpreter.get_signature_runner(SERVING)
    return lambda faces: np.asarray(signature(**{INPUT: faces})[OUTPUT])


_RUNTIMES: dict[str, Callable[[Path, int], Predict]] = {ONNX: _run_onnx, SAVEDMODEL: _run_savedmodel, TFLITE: _run_tflite}
