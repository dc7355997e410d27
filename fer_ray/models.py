"""The architectures by name. Preprocessing is part of the network: every model takes gray levels 0..255 and gives logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fer_ray.config import ResidualConfig

if TYPE_CHECKING:
    import keras


def build_residual(config: ResidualConfig, class_count: int) -> keras.Model:
    """ResNet basic blocks (He et al. 2015) with squeeze-and-excitation (Hu et al. 2018): (n, s, s, 1) gray -> (n, classes) logits.

    The first layer standardises each image by itself, so light and contrast of a photograph matter little. Every stage
    halves the resolution with its first block.
    """
    import keras
    from keras import layers

    inputs = layers.Input((config.image_size, config.image_size, 1), dtype="float32")
    standardise = layers.GroupNormalization(groups=1, center=False, scale=False, epsilon=1.0, dtype="float32", name="standardise")
    x = _convolution(standardise(inputs), config.stem, 3)
    for width, depth in zip(config.widths, config.depths, strict=True):
        for block in range(depth):
            x = _residual_block(x, width, 2 if block == 0 else 1, config.attention_reduction)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(config.dropout)(x)
    return keras.Model(inputs, layers.Dense(class_count, dtype="float32", name="logits")(x), name="residual")


def _convolution(x: Any, width: int, kernel: int, strides: int = 1, activation: str | None = "relu") -> Any:
    from keras import layers

    x = layers.Conv2D(width, kernel, strides=strides, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    x = layers.BatchNormalization(momentum=0.98)(x)
    return layers.Activation(activation)(x) if activation else x


def _residual_block(x: Any, width: int, strides: int, reduction: int) -> Any:
    from keras import layers

    shortcut = x
    if strides > 1:
        shortcut = layers.AveragePooling2D(strides, padding="same")(shortcut)
    if shortcut.shape[-1] != width:
        shortcut = _convolution(shortcut, width, 1, activation=None)
    x = _convolution(_convolution(x, width, 3, strides), width, 3, activation=None)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(max(1, width // reduction), 1, activation="relu")(gate)
    gate = layers.Conv2D(width, 1, activation="sigmoid")(gate)
    return layers.Activation("relu")(layers.Add()([shortcut, layers.Multiply()([x, gate])]))
