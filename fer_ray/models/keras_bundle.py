"""The Keras side of a bundle: what trainings save and start from, and what exports and heat maps are made of.

The networks are built by this code from the named architectures, once the weights in the `.keras` files of strangers were looked at
and are as many as the description says. No code or configuration inside them is run.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import fer_ray
from fer_ray.config.crop import CropGeometry
from fer_ray.config.recipe import ModelConfig
from fer_ray.errors import BundleError
from fer_ray.models import bundle
from fer_ray.models.architectures import build
from fer_ray.models.bundle import Bundle, Member
from fer_ray.models.calibration import has_few_errors, is_at_bound
from fer_ray.models.sizes import BYTES, size_of
from fer_ray.models.weights_file import BROKEN, checked_weights
from fer_ray.typing import Float32Array, UInt8Array

if TYPE_CHECKING:
    import keras

PREDICTION_BATCH = 256  # crops at once
MAX_LAYER_BYTES = 256 << 20  # of what one layer gives for all crops at once: of these, two or three are held at a time


@dataclass(frozen=True)
class KerasNetwork:
    """(n, s, s, 1) gray or (n, s, s, 3) RGB float32 0..255 -> logits (n, classes)."""

    model: keras.Model

    def logits(self, images: UInt8Array) -> Float32Array:
        """Logits (n, classes) of crops (n, s, s) gray or (n, s, s, 3) RGB uint8."""
        return predict_logits(self.model, images)


def predict_logits(network: keras.Model, images: UInt8Array) -> Float32Array:
    """Logits (n, classes) of one network for crops (n, s, s) gray or (n, s, s, 3) RGB uint8, in batches that bound the memory.

    Many crops are filled up to a multiple of 4 or 8: TensorFlow prepares itself for every new number, which costs as much
    as dozens of crops.
    """
    if not len(images):
        return np.empty((0, network.output_shape[-1]), np.float32)
    parts, size = [], max(1, min(PREDICTION_BATCH, MAX_LAYER_BYTES // _largest_layer(network)))
    for start in range(0, len(images), size):
        batch = images[start : start + size].astype(np.float32)
        batch = batch[..., None] if batch.ndim == 3 else batch
        padding = -len(batch) % (8 if len(batch) > 32 else 4) if len(batch) > 8 else 0
        filled = np.concatenate([batch, np.zeros_like(batch[:padding])]) if padding else batch
        parts.append(network.predict_on_batch(filled)[: len(batch)])
    return np.concatenate(parts).astype(np.float32)


def _largest_layer(network: keras.Model) -> int:
    """The most bytes that a layer gives for one crop, inside networks in the network too."""
    inner = [_largest_layer(layer) for layer in network.layers if hasattr(layer, "layers")]
    own = [BYTES * int(prod(layer.output.shape[1:])) for layer in network.layers if not isinstance(layer.output, list)]
    return max(inner + own)


@dataclass(frozen=True)
class Description:
    """What a bundle says about its networks besides their architectures.

    Attributes:
        classes: the emotions in the order of the logits.
        temperature: what logits are divided by before softmax.
        validation: figures on the validation split, by name.
        lineage: what the networks were trained on, and how.
        flip: whether the answers for a face and its mirror image are averaged.
        crop: what is cut out of a photograph around a face.
    """

    classes: tuple[str, ...]
    temperature: float
    validation: dict[str, float]
    lineage: dict[str, Any]
    flip: bool = False
    crop: CropGeometry = field(default_factory=CropGeometry)


def save(folder: str, members: Sequence[Member[KerasNetwork]], description: Description) -> str:
    """Write a bundle without its ONNX networks into an existing folder; `conversion.add_onnx` completes it.

    Returns:
        Its model_version, which is derived from all of its contents.
    """
    described = []
    for index, member in enumerate(members):
        file = Path(folder) / bundle.weights_file(index)
        member.network.model.save(file)
        described.append({"model": asdict(member.config), "weights_sha256": bundle.sha256(file)})
    first = members[0].config
    content: dict[str, Any] = {
        "format_version": bundle.FORMAT_VERSION,
        "members": described,
        "flip": description.flip,
        "classes": list(description.classes),
        "preprocessing": {
            "image_size": first.image_size,
            "color": first.color,
            "range": [0, 255],
            "inside_the_network": "everything else",
            "crop": asdict(description.crop),
        },
        "calibration": {
            "method": "temperature",
            "temperature": description.temperature,
            "at_bound": is_at_bound(description.temperature),
            "bounded": has_few_errors(description.validation),
        },
        "metrics": {"validation": description.validation},
        "lineage": description.lineage,
        "versions": {"fer-ray": fer_ray.__version__} | {name: metadata.version(name) for name in ("keras", "tensorflow", "numpy")},
    }
    bundle.write_metadata(folder, content)
    return str(content["model_version"])


def load(folder: str, flip: bool = False) -> Bundle[KerasNetwork]:
    """Build the networks of a bundle and read their weights.

    Args:
        folder: where it lies on this machine.
        flip: average mirror images in even where the bundle does not ask for it.

    Raises:
        BundleError: the bundle is missing, broken, altered, newer than this code, or was imported and has no Keras weights.
    """
    content = bundle.read_metadata(folder)
    members = [_load_member(folder, index, content) for index in range(len(content["members"]))]
    return bundle.assemble(members, content, flip)


def _load_member(folder: str, index: int, content: dict[str, Any]) -> Member[KerasNetwork]:
    config = bundle.member_config(content["members"][index])
    if not isinstance(config, ModelConfig):
        raise BundleError(f"The model bundle {folder} was imported as ONNX: it has no Keras network to train, average or export.")
    classes = len(content["classes"])
    try:
        with checked_weights(Path(folder) / bundle.weights_file(index), size_of(config, classes).weights) as file:
            network = build(config, classes)
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # Keras only warns where a layer finds no weights and stays random
                network.load_weights(file)
    except (*BROKEN, UserWarning) as error:
        first_line = next(iter(str(error).strip().splitlines()), "").rstrip(".") or type(error).__name__
        raise BundleError(f"The weights of the model bundle {folder} do not fit its architecture ({first_line[:300]}).") from error
    return Member(KerasNetwork(network), config)
