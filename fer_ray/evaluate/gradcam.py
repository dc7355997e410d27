"""What a network looks at: Grad-CAM heat maps, and the feature maps of its first convolution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fer_ray.models.architectures import BASE
from fer_ray.typing import Float32Array, IntArray, UInt8Array

if TYPE_CHECKING:
    import keras


def heat_maps(network: keras.Model, images: UInt8Array, classes: IntArray) -> Float32Array | None:
    """Where the evidence for one class of each image lies: (n, s, s) float32 0..1, by Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391).

    `images` (n, s, s) gray or (n, s, s, 3) RGB uint8, `classes` (n,) indices. None for a network without convolutional
    features before its classifier.
    """
    import cv2
    import keras
    import tensorflow as tf

    features = _last_features(network)
    if features is None:
        return None
    both = keras.Model(network.input, [features, network.output])
    with tf.GradientTape() as tape:
        inputs = tf.constant(_batch(images))
        tape.watch(inputs)  # a frozen network records nothing by itself
        maps, logits = both(inputs, training=False)
        score = tf.reduce_sum(tf.gather(logits, classes, axis=1, batch_dims=1))
    importance = tf.reduce_mean(tape.gradient(score, maps), axis=(1, 2), keepdims=True)
    evidence = np.asarray(tf.nn.relu(tf.reduce_sum(importance * maps, axis=-1)), np.float32)
    evidence = evidence / np.maximum(evidence.max(axis=(1, 2), keepdims=True), 1e-12)
    side = images.shape[1]
    return np.stack([np.asarray(cv2.resize(one, (side, side), interpolation=cv2.INTER_LINEAR), np.float32) for one in evidence])


def first_activations(network: keras.Model, image: UInt8Array) -> Float32Array | None:
    """The feature maps (filters, height, width) of the first convolution for one image (s, s) or (s, s, 3) uint8; None without one."""
    import keras

    model, inputs = network, _batch(image[None])
    names = [layer.name for layer in network.layers]
    if BASE in names:
        before = network.layers[names.index(BASE) - 1]
        inputs = keras.Model(network.input, before.output)(inputs, training=False)
        model = network.get_layer(BASE)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            maps = keras.Model(model.input, layer.output)(inputs, training=False)
            return np.asarray(np.moveaxis(np.asarray(maps)[0], -1, 0), np.float32)
    return None


def _batch(images: UInt8Array) -> Float32Array:
    batch = images.astype(np.float32)
    return batch[..., None] if batch.ndim == 3 else batch


def _last_features(network: keras.Model) -> Any:
    """The tensor of feature maps (n, height, width, channels) that the classifier starts from, before it is pooled."""
    import keras

    reducing = [layer for layer in network.layers if not isinstance(layer.input, list) and _ranks(layer) == (4, 2)]
    if not reducing:
        return None
    tensor = reducing[0].input
    producers = {id(layer.output): layer for layer in network.layers if not isinstance(layer.output, list)}
    coarse = (keras.layers.MaxPooling2D, keras.layers.Dropout)
    while isinstance(producers.get(id(tensor)), coarse):
        tensor = producers[id(tensor)].input
    return tensor


def _ranks(layer: Any) -> tuple[int, int]:
    return len(layer.input.shape), len(layer.output.shape)
