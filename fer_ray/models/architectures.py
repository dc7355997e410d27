"""The architectures by name. Preprocessing is part of the network: every model takes pixel values 0..255 and gives logits."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_ray.config.recipe import PRETRAINED, RGB, ModelConfig
from fer_ray.errors import UsageError
from fer_ray.models.silence import load_keras
from fer_ray.models.sizes import APPLICATIONS, check_size
from fer_ray.models.weights_file import checked_weights

if TYPE_CHECKING:
    import keras

BASE = "base"  # the name of the layer that holds the pretrained part of a transfer network
LOGITS = "logits"
IMAGENET = "imagenet"
NO_WEIGHTS = "none"


def share_gpus() -> None:
    """Make TensorFlow take the memory of GPUs as it needs it instead of all at once, so that processes can share one."""
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


def build(config: ModelConfig, class_count: int, weights: str = NO_WEIGHTS) -> keras.Model:
    """The network of a configuration: (n, s, s, 1) gray or (n, s, s, 3) RGB float32 0..255 -> (n, class_count) logits.

    `weights` are the first weights of a network of Keras Applications: `imagenet`, `none`, or a weights file of Keras.

    Raises:
        UsageError: it would be too large, or those weights cannot be had or do not fit.
    """
    check_size(config, classes=class_count)
    load_keras()
    import keras
    from keras import layers

    channels = 3 if config.color == RGB else 1
    inputs = layers.Input((config.image_size, config.image_size, channels), dtype="float32")
    if config.architecture in PRETRAINED:
        features = _pretrained(inputs, config, weights)
    else:
        features = _OWN[config.architecture](_standardise(inputs), config)
    outputs = layers.Dense(class_count, dtype="float32", name=LOGITS)(features)
    return keras.Model(inputs, outputs, name=config.architecture)


def _standardise(inputs: Any) -> Any:
    """Each image by its own mean and deviation, so light and contrast of a photograph matter little."""
    from keras import layers

    layer = layers.GroupNormalization(groups=1, center=False, scale=False, epsilon=1.0, dtype="float32", name="standardise")
    return layer(inputs)


def _convolution(x: Any, width: int, kernel: int, strides: int = 1, activation: str | None = "relu") -> Any:
    from keras import layers

    x = layers.Conv2D(width, kernel, strides=strides, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    x = layers.BatchNormalization(momentum=0.98)(x)
    return layers.Activation(activation)(x) if activation else x


def _dense(x: Any, units: int, dropout: float) -> Any:
    from keras import layers

    x = layers.Dense(units, use_bias=False, kernel_initializer="he_normal")(x)
    x = layers.Activation("relu")(layers.BatchNormalization(momentum=0.98)(x))
    return layers.Dropout(dropout)(x)


def _residual(x: Any, config: ModelConfig) -> Any:
    """ResNet basic blocks (He et al. 2015, arXiv 1512.03385) with squeeze-and-excitation (Hu et al. 2018, arXiv 1709.01507).

    An `attention_reduction` of 0 leaves the squeeze-and-excitation out. Every stage halves the resolution with its first block.
    """
    from keras import layers

    x = _convolution(x, config.stem, 3)
    for width, depth in zip(config.widths, config.depths, strict=True):
        for block in range(depth):
            x = _residual_block(x, width, 2 if block == 0 else 1, config.attention_reduction)
    return layers.Dropout(config.dropout)(layers.GlobalAveragePooling2D()(x))


def _residual_block(x: Any, width: int, strides: int, reduction: int) -> Any:
    from keras import layers

    shortcut = x
    if strides > 1:
        shortcut = layers.AveragePooling2D(strides, padding="same")(shortcut)
    if shortcut.shape[-1] != width:
        shortcut = _convolution(shortcut, width, 1, activation=None)
    x = _convolution(_convolution(x, width, 3, strides), width, 3, activation=None)
    if reduction:
        x = _attention(x, width, reduction)
    return layers.Activation("relu")(layers.Add()([shortcut, x]))


def _attention(x: Any, width: int, reduction: int) -> Any:
    """Squeeze-and-excitation: every channel is weighed by what all of them say on average."""
    from keras import layers

    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(max(1, width // reduction), 1, activation="relu")(gate)
    gate = layers.Conv2D(width, 1, activation="sigmoid")(gate)
    return layers.Multiply()([x, gate])


def _classic(x: Any, config: ModelConfig) -> Any:
    """Blocks of one convolution, batch normalisation, max pooling and dropout, then fully connected layers.

    As these networks are usually written, the second convolution of `cnn_64_128_512` has kernels of 5 x 5, all others of 3 x 3.
    """
    from keras import layers

    for width, kernel in zip(config.widths, config.kernels, strict=True):
        x = layers.Dropout(config.dropout)(layers.MaxPooling2D()(_convolution(x, width, kernel)))
    x = layers.Flatten()(x)
    for units in config.dense:
        x = _dense(x, units, config.dropout or 0.0)
    return x


def _vgg(x: Any, config: ModelConfig) -> Any:
    """Stages of 3 x 3 convolutions with batch normalisation and max pooling: Khaireddin and Chen 2021, arXiv 2105.03588."""
    from keras import layers

    for width, depth in zip(config.widths, config.depths, strict=True):
        for _ in range(depth):
            x = _convolution(x, width, 3)
        x = layers.MaxPooling2D()(x)
    x = layers.Flatten()(x)
    for units in config.dense:
        x = layers.Dropout(config.dropout)(layers.Dense(units, activation="relu")(x))
    return x


_OWN = {"residual": _residual, "cnn_32_64_128": _classic, "cnn_64_128_512": _classic, "vgg": _vgg}


def _pretrained(inputs: Any, config: ModelConfig, weights: str) -> Any:
    """A network of Keras Applications without its last layer; each gets the pixel values that it was trained with."""
    from keras import layers

    base = _application(config, weights)
    x = inputs
    if config.architecture in ("resnet50_v2", "mobilenet_v2"):
        x = layers.Rescaling(1 / 127.5, offset=-1)(x)
    elif config.architecture == "vgg16":  # Caffe's way: BGR, less the mean colour of ImageNet
        blue_green_red = layers.Concatenate()([x[..., 2:3], x[..., 1:2], x[..., 0:1]])
        x = layers.Normalization(mean=[103.939, 116.779, 123.68], variance=[1.0, 1.0, 1.0])(blue_green_red)
    x = layers.GlobalAveragePooling2D()(base(x))
    for units in config.dense:
        x = _dense(x, units, config.dropout or 0.0)
    return layers.Dropout(config.dropout)(x)


def _application(config: ModelConfig, weights: str) -> keras.Model:
    import keras

    make = {
        "efficientnet_b0": keras.applications.EfficientNetB0,
        "resnet50_v2": keras.applications.ResNet50V2,
        "mobilenet_v2": keras.applications.MobileNetV2,
        "vgg16": keras.applications.VGG16,
    }[config.architecture]
    shape = (config.image_size, config.image_size, 3)
    try:
        with ExitStack() as stack:
            if weights not in (NO_WEIGHTS, IMAGENET):
                base_weights, *_ = APPLICATIONS[config.architecture]
                weights = str(stack.enter_context(checked_weights(Path(weights), base_weights)))
            return make(include_top=False, weights=None if weights == NO_WEIGHTS else weights, input_shape=shape, name=BASE)
    except Exception as error:  # Keras raises this very class where a download fails
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"The weights {weights!r} for {config.architecture} cannot be used ({reason}): give --weights FILE or none."
        ) from error
