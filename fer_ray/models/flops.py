"""What a network costs to run: multiply-adds (half its FLOPs), weights, and the time that an image takes on this machine."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fer_ray.models.keras_bundle import predict_logits

if TYPE_CHECKING:
    import keras

BATCH = 64  # images: a step of `label`
ROUNDS = 5


@dataclass(frozen=True)
class Cost:
    """The cost of one image: multiply-adds, and milliseconds where they were measured; and how many weights there are."""

    multiply_adds: int
    parameters: int
    milliseconds: float | None = None


def measure_cost(network: keras.Model) -> Cost:
    """Everything about the cost of a network, the time included."""
    return Cost(multiply_adds(network), int(network.count_params()), milliseconds_per_image(network))


def multiply_adds(network: keras.Model) -> int:
    """The multiply-adds (MACs; about half the FLOPs) of one image through a network of a fixed input size.

    Counted are convolutions (plain, grouped, depthwise, separable) and fully connected layers, also those of networks inside
    the network: at every position of a layer's output each of its kernel's weights is used once. Biases, normalisation,
    activations, pooling and additions count 0; they are few beside these. Every layer counts once, as all networks of
    `fer_ray.models.architectures` use each of theirs once, with the channels last.
    """
    import keras

    total = 0
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            total += multiply_adds(layer)
        else:
            weights = sum(math.prod(kernel.shape) for kernel in _kernels(layer))
            total += weights * math.prod(layer.output.shape[1:-1]) if weights else 0
    return total


def _kernels(layer: keras.layers.Layer) -> list[Any]:
    """The weights of a layer that are multiplied at every position of its output."""
    from keras import layers

    if isinstance(layer, layers.SeparableConv2D):
        return [layer.depthwise_kernel, layer.pointwise_kernel]
    return [layer.kernel] if isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)) else []


def milliseconds_per_image(network: keras.Model) -> float:
    """How long one of 64 images takes on this machine's CPUs: the median of five rounds after one to warm up.

    It depends on the machine, on its threads and on what else it does: compare only what was measured together.
    """
    import keras

    side, channels = network.input_shape[1], network.input_shape[3]
    images = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, channels)).astype(np.uint8)
    seconds = []
    with keras.device("cpu"):
        predict_logits(network, images)
        for _ in range(ROUNDS):
            started = time.perf_counter()
            predict_logits(network, images)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) * 1000 / BATCH
