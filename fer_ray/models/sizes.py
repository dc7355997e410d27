"""What a network takes, worked out from its description: descriptions come from strangers, so nothing is built for it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from fer_ray.config.recipe import MAX_WEIGHTS, PRETRAINED, RGB, ModelConfig
from fer_ray.errors import UsageError

MAX_ACTIVATION_BYTES = 512 << 20  # of one crop, over all layers: 5 times what an EfficientNet-B2 takes for 260 pixels
BYTES = 4  # of a weight or an activation, float32

# The networks of Keras Applications without their last layer: weights, numbers that a pixel of the crop leads to over all layers,
# and features.
APPLICATIONS = {
    "efficientnet_b0": (4_049_571, 511, 1280),
    "resnet50_v2": (23_564_800, 641, 2048),
    "mobilenet_v2": (2_257_984, 443, 1280),
    "vgg16": (14_714_688, 313, 512),
}


@dataclass(frozen=True)
class Size:
    """Of one network: its weights, those that training leaves alone included, and the bytes of all that it calculates for one crop."""

    weights: int
    activation_bytes: int


def size_of(config: ModelConfig, classes: int) -> Size:
    """The size of the network that `architectures.build` would make."""
    counter = _Counter(config)
    if config.architecture in PRETRAINED:
        counter.application(*APPLICATIONS[config.architecture])
        for units in config.dense:
            counter.dense(units, normalised=True, steps=4)
    elif config.architecture == "residual":
        _count_residual(counter, config)
    else:
        _count_stages(counter, config)
    counter.dense(classes, normalised=False, steps=1)
    return Size(counter.weights, counter.numbers * BYTES)


def check_size(*networks: ModelConfig, classes: int) -> None:
    """Refuse networks that would fill the memory, alone or together.

    Raises:
        UsageError: they have too many weights, or calculate too much for one crop.
    """
    sizes = [size_of(network, classes) for network in networks]
    if (weights := sum(size.weights for size in sizes)) > MAX_WEIGHTS:
        raise UsageError(f"The model would have {weights:,} weights, more than {MAX_WEIGHTS:,}: make it narrower or shallower.")
    for network, size in zip(networks, sizes, strict=True):  # those of Keras Applications are as they are: MAX_SIDE bounds them
        if network.architecture not in PRETRAINED and size.activation_bytes > MAX_ACTIVATION_BYTES:
            gigabytes = size.activation_bytes / 1e9
            raise UsageError(f"The model would take {gigabytes:.1f} GB for one crop: make it narrower, or its image_size smaller.")


class _Counter:
    """Walks through a network as `architectures` builds it, and adds up."""

    def __init__(self, config: ModelConfig) -> None:
        self.side, self.channels = config.image_size, 3 if config.color == RGB else 1
        self.weights, self.numbers = 0, prod((self.side, self.side, self.channels))

    def give(self, steps: int = 1) -> None:
        """So many layers whose output is as it is now."""
        self.numbers += steps * self.side * self.side * self.channels

    def convolution(self, width: int, kernel: int, strides: int = 1, activation: bool = True) -> None:
        """A convolution, its normalisation and its activation."""
        self.weights += kernel * kernel * self.channels * width + 4 * width
        self.side, self.channels = -(-self.side // strides), width
        self.give(3 if activation else 2)

    def pool(self, steps: int) -> None:
        """Half the resolution, and layers after it that leave the shape."""
        self.side //= 2
        self.give(steps)

    def flatten(self, steps: int = 1) -> None:
        self.channels, self.side = self.side * self.side * self.channels, 1
        self.give(steps)

    def dense(self, units: int, normalised: bool, steps: int) -> None:
        """A fully connected layer with a normalisation or a bias, and layers after it that leave the shape."""
        self.weights += self.channels * units + (4 if normalised else 1) * units
        self.channels = units
        self.give(steps)

    def application(self, weights: int, numbers_per_pixel: int, features: int) -> None:
        self.weights, self.numbers = weights, numbers_per_pixel * self.side * self.side
        self.side, self.channels = 1, features


def _count_residual(counter: _Counter, config: ModelConfig) -> None:
    counter.give()  # the standardised crop
    counter.convolution(config.stem, 3)
    for width, depth in zip(config.widths, config.depths, strict=True):
        for block in range(depth):
            _count_block(counter, width, 2 if block == 0 else 1, config.attention_reduction)
    counter.side = 1
    counter.give(2)


def _count_block(counter: _Counter, width: int, strides: int, reduction: int) -> None:
    side, channels = counter.side, counter.channels
    if strides > 1:
        counter.side = -(-side // 2)
        counter.give()
    if channels != width:
        counter.convolution(width, 1, activation=False)
    counter.side, counter.channels = side, channels
    counter.convolution(width, 3, strides)
    counter.convolution(width, 3, activation=False)
    if reduction:
        narrow = max(1, width // reduction)
        counter.weights += 2 * width * narrow + narrow + width
        counter.numbers += 2 * width + narrow
        counter.give()
    counter.give(2)


def _count_stages(counter: _Counter, config: ModelConfig) -> None:
    """The classic networks and vgg: stages of convolutions with pooling, then fully connected layers."""
    classic = bool(config.kernels)
    counter.give()  # the standardised crop
    for width, depth, kernel in zip(config.widths, config.depths or (1,) * 8, config.kernels or (3,) * 8, strict=False):
        for _ in range(depth):
            counter.convolution(width, kernel)
        counter.pool(2 if classic else 1)
    counter.flatten()
    for units in config.dense:
        counter.dense(units, normalised=classic, steps=4 if classic else 2)
