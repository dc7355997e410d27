"""The import job: a bundle of a network that others trained, so that `label` and `evaluate` work with it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

import fer_ray
from fer_ray.config.crop import CropGeometry
from fer_ray.config.dataset import VALIDATION, DatasetConfig
from fer_ray.config.jobs.import_model import CHANNELS, ImportConfig, ImportedModel
from fer_ray.data.dataset import load_dataset
from fer_ray.errors import BundleError, DatasetError, UsageError
from fer_ray.models import bundle
from fer_ray.models.calibration import calibrate, is_at_bound
from fer_ray.models.metrics import softmax
from fer_ray.models.onnx_network import OnnxNetwork
from fer_ray.text import sanitize

PREFIX = "imported/"  # of the names inside the network, so that ours cannot meet them
INPUT = "faces"
OUTPUT = "logits"
LEAST_PROBABILITY = 1e-12  # whose logarithm is still a number
MAX_BATCH_DIFFERENCE = 1e-3  # of a probability between a crop alone and among others

logger = logging.getLogger(__name__)


def import_model(config: ImportConfig) -> dict[str, Any]:
    """Write a bundle whose network takes pixel values 0..255, as all do, and hands them to the imported one as that wants them.

    Args:
        config: the network, what it takes and what its outputs stand for.

    Returns:
        The summary: the version of the model, its figures on validation where there is a data set, and the output.

    Raises:
        BundleError: the network is refused, with the reason.
        UsageError: the data set or the output cannot be used.
    """
    output, takes = Path(config.output).absolute(), ImportedModel(config.image_size, config.color)
    if output.exists():
        raise UsageError(f"The output {config.output} exists already: name a new folder, or remove it.")
    unfinished = output.with_name(output.name + ".unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        summary = _write(config, takes, unfinished)
        unfinished.rename(output)
    except OSError as error:
        raise UsageError(f"The output {config.output} cannot be written ({error.strerror}).") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    logger.info("Label with it: fer-ray label --model %s", sanitize(config.output))
    return {**summary, "output": config.output}


def _write(config: ImportConfig, takes: ImportedModel, folder: Path) -> dict[str, Any]:
    """The bundle, in a folder that nobody knows yet; the metadata comes last."""
    file = folder / bundle.onnx_file(0)
    try:
        _write_network(config, file)
    except (ValueError, DecodeError) as error:
        raise BundleError(f"The network {config.onnx} is refused: {' '.join(str(error).split())[:300].rstrip('.')}.") from error
    network = OnnxNetwork(file, takes, len(config.classes))
    _check_batches(config, network)
    temperature, figures, calibrated_on = _calibrate(config, network) if config.dataset else (1.0, {}, {})
    hashed = bundle.sha256(file)
    content: dict[str, Any] = {
        "format_version": bundle.FORMAT_VERSION,
        "members": [{"model": vars(takes), "weights_sha256": hashed}],
        "onnx_sha256": [hashed],
        "flip": False,
        "classes": list(config.classes),
        "preprocessing": {"mean": config.mean, "std": config.std, "crop": vars(CropGeometry(scale=config.crop_scale))},
        "calibration": {"method": "temperature", "temperature": temperature, "at_bound": is_at_bound(temperature)},
        "metrics": {"validation": figures},
        "lineage": {"imported_from": Path(config.onnx).name, "source_sha256": bundle.sha256(Path(config.onnx)), **calibrated_on},
        "versions": {"fer-ray": fer_ray.__version__},
    }
    bundle.write_metadata(str(folder), content)
    return {"model_version": content["model_version"], **figures}


def _calibrate(config: ImportConfig, network: OnnxNetwork) -> tuple[float, dict[str, float], dict[str, Any]]:
    """The temperature and the figures on validation faces, and which faces these were."""
    wanted = DatasetConfig(dataset=config.dataset, **config.store_options())
    data = load_dataset(wanted, config.image_size, config.color, splits=(VALIDATION,))
    if lacking := set(data.classes) - set(config.classes):
        raise DatasetError(f"The data set {config.dataset} has {', '.join(sorted(lacking))}, which the network does not know.")
    labels = np.array([config.classes.index(name) for name in data.classes])[data.validation.labels]
    counts = data.validation.counts(data.classes)
    return *calibrate(network.logits(data.validation.images), labels), {"data_sha256": data.sha256, "validation_counts": counts}


def _write_network(config: ImportConfig, file: Path) -> None:
    """The network with our ends: pixel values 0..255 with the channels last in, logits out."""
    import onnx
    from onnx import helper, numpy_helper

    source = Path(config.onnx)
    if not source.is_file():
        raise UsageError(f"The network {config.onnx} is not there: give --onnx FILE.")
    if source.stat().st_size > bundle.MAX_WEIGHTS_BYTES:
        raise BundleError(f"The network {config.onnx} is larger than this version reads.")
    model = onnx.compose.add_prefix(onnx.load_model_from_string(source.read_bytes()), PREFIX)
    graph, side, channels = model.graph, config.image_size, CHANNELS[config.color]
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ValueError(f"it has {len(inputs)} inputs and {len(graph.output)} outputs where one of each is wanted")
    shape = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim][1:]
    first = shape == [channels, side, side] or (shape[:1] == [channels] and not any(shape[1:]))
    if not first and shape != [side, side, channels]:
        raise ValueError(f"it takes {shape}, which is neither [{channels}, {side}, {side}] nor [{side}, {side}, {channels}]")
    mean, std = np.array(config.mean or [0.0]), np.array(config.std or [1.0])
    scaled = {"fer_ray_factor": 1 / (255 * std), "fer_ray_offset": -mean / std}
    before = [helper.make_node("Mul", [INPUT, "fer_ray_factor"], ["fer_ray_scaled"])]
    before.append(helper.make_node("Add", ["fer_ray_scaled", "fer_ray_offset"], ["fer_ray_input" if first else inputs[0].name]))
    if first:
        before.append(helper.make_node("Transpose", ["fer_ray_input"], [inputs[0].name], perm=[0, 3, 1, 2]))
    probabilities = any(node.op_type == "Softmax" and graph.output[0].name in node.output for node in graph.node)
    after = [
        helper.make_node("Max", [graph.output[0].name, "fer_ray_least"], ["fer_ray_clipped"]),
        helper.make_node("Log", ["fer_ray_clipped"], [OUTPUT]),
    ]
    after = after if probabilities else [helper.make_node("Identity", [graph.output[0].name], [OUTPUT])]
    nodes = [*before, *graph.node, *after]
    scaled |= {"fer_ray_least": np.array(LEAST_PROBABILITY)} if probabilities else {}
    graph.initializer.extend(numpy_helper.from_array(value.astype(np.float32), name) for name, value in scaled.items())
    for part, new in (
        (graph.node, nodes),
        (graph.input, [helper.make_tensor_value_info(INPUT, onnx.TensorProto.FLOAT, ["n", side, side, channels])]),
        (graph.output, [helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["n", len(config.classes)])]),
    ):
        del part[:]
        part.extend(new)
    del graph.value_info[:]
    onnx.save(model, file)


def _check_batches(config: ImportConfig, network: OnnxNetwork) -> None:
    """A network that was exported for one image at a time fails with several, or mixes them."""
    shape = (3, config.image_size, config.image_size, CHANNELS[config.color])
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    try:
        together = softmax(network.logits(images))
        alone = np.concatenate([softmax(network.logits(images[i : i + 1])) for i in range(len(images))])
    except Exception as error:  # ONNX Runtime's classes have no common one but this
        raise BundleError(f"The network {config.onnx} cannot take several images at once: export it for any batch size.") from error
    if not np.abs(together - alone).max() <= MAX_BATCH_DIFFERENCE:  # also where it is NaN
        raise BundleError(f"The network {config.onnx} answers differently for an image alone and among others: it cannot be used.")
