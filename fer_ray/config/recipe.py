"""What a training is made of: the network, the augmentation, and how the weights are found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fer_ray.config.options import check, config, option
from fer_ray.errors import UsageError

MAX_BLOCKS = 64  # blocks of a network, over all stages
MAX_WIDTH = 4096  # filters or units of a layer
MAX_WEIGHTS = 150_000_000  # 600 MB as float32: a whole VGG-16 has 138 million
MAX_SIDE = 512  # pixels of the input
MAX_DENSE = 16  # fully connected layers
MAX_KERNEL = 11  # pixels, as in AlexNet's first layer
_POOR = "Poor pictures"  # heading in --help
GRAY = "gray"
RGB = "rgb"


@dataclass(frozen=True)
class _Defaults:
    """What an architecture uses where nothing else is asked for."""

    image_size: int = 48
    color: str = GRAY
    stem: int = 0
    widths: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    kernels: tuple[int, ...] = ()
    dense: tuple[int, ...] = ()
    dropout: float = 0.25


ARCHITECTURES = {
    "residual": _Defaults(stem=24, widths=(32, 64, 128), depths=(2, 2, 2), dropout=0.3),
    "cnn_32_64_128": _Defaults(widths=(32, 64, 128), kernels=(3, 3, 3), dense=(128,)),
    "cnn_64_128_512": _Defaults(widths=(64, 128, 512), kernels=(3, 5, 3), dense=(256, 512)),
    "vgg": _Defaults(widths=(64, 128, 256, 512), depths=(2, 2, 2, 2), dense=(1024, 1024), dropout=0.5),
    "efficientnet_b0": _Defaults(96, RGB, dropout=0.3),
    "resnet50_v2": _Defaults(96, RGB, dropout=0.3),
    "mobilenet_v2": _Defaults(96, RGB, dropout=0.3),
    "vgg16": _Defaults(96, RGB, dense=(256,), dropout=0.5),
}
PRETRAINED = ("efficientnet_b0", "resnet50_v2", "mobilenet_v2", "vgg16")


@config("Network")
class ModelConfig:
    """The network by name, and its sizes; what is left at 0 or empty becomes the architecture's own, and is then in the field."""

    architecture: str = option(default="residual", help="the network", choices=tuple(ARCHITECTURES))
    image_size: int = option(
        default=0, help="side of the square input in pixels (default: 48, or 96 for the networks of Keras Applications)", metavar="PIXELS"
    )
    stem: int = option(default=0, help="filters of the first convolution (residual)", metavar="N")
    widths: tuple[int, ...] = option(default=(), help="filters of each stage (own networks)", metavar="N")
    depths: tuple[int, ...] = option(default=(), help="blocks of each stage (residual), convolutions of each stage (vgg)", metavar="N")
    kernels: tuple[int, ...] = option(
        default=(), help="side of the convolution kernels of each stage, odd (cnn_32_64_128, cnn_64_128_512)", metavar="N"
    )
    dense: tuple[int, ...] = option(
        default=(), help="units of the fully connected layers before the last (own networks but residual; vgg16)", metavar="N"
    )
    attention_reduction: int = option(
        default=8, help="squeeze-and-excitation narrows the channels by this factor; 0 leaves it out (residual)", metavar="N"
    )
    dropout: float | None = option(
        default=None, help="share of features dropped while training (default: the architecture's own)", metavar="SHARE"
    )

    def __post_init__(self) -> None:
        defaults = ARCHITECTURES[self.architecture]
        for name in ("image_size", "stem", "widths", "depths", "dense"):
            object.__setattr__(self, name, getattr(self, name) or getattr(defaults, name))
        if defaults.kernels and not self.kernels:  # the widths asked for may be more or fewer than the architecture's own
            object.__setattr__(self, "kernels", (defaults.kernels + (3,) * len(self.widths))[: len(self.widths)])
        object.__setattr__(self, "dropout", defaults.dropout if self.dropout is None else self.dropout)
        self._check_sizes()

    def _check_sizes(self) -> None:
        sizes = (self.image_size, *self.widths, *self.depths, *self.kernels, *self.dense)
        whole = all(isinstance(size, int) and 0 < size <= MAX_WIDTH for size in sizes)
        whole = whole and all(isinstance(size, int) and 0 <= size <= MAX_WIDTH for size in (self.stem, self.attention_reduction))
        check(whole, f"The model's sizes must be whole numbers between 1 and {MAX_WIDTH}.")
        check(8 <= self.image_size <= MAX_SIDE, f"The setting image_size must lie between 8 and {MAX_SIDE} pixels.")
        defaults = ARCHITECTURES[self.architecture]
        stages = len(self.widths) == len(self.depths) or not defaults.depths
        fixed = bool(defaults.widths) or not self.widths
        check(stages and fixed, f"The architecture {self.architecture} needs one depth for each of its widths, or has neither.")
        check(self.architecture != "residual" or self.stem > 0, "The architecture residual needs a stem.")
        self._check_kernels()
        check(len(self.dense) <= MAX_DENSE, f"The model may have {MAX_DENSE} fully connected layers at most.")
        check(sum(self.depths) <= MAX_BLOCKS and len(self.widths) <= 8, f"The model may have {MAX_BLOCKS} blocks in 8 stages at most.")
        check(self.image_size >> len(self.widths) > 0, "The model has more stages than its image_size can be halved.")
        stage_sizes = zip(self.widths, self.depths or (1,) * 8, self.kernels or (5,) * 8, strict=False)
        weights = sum(2 * max(25, kernel * kernel) * width * width * depth for width, depth, kernel in stage_sizes)
        check(weights <= MAX_WEIGHTS, f"The model would have more than {MAX_WEIGHTS:,} weights: make it narrower or shallower.")
        number = isinstance(self.dropout, (int, float)) and 0 <= self.dropout < 1
        check(number, "The setting dropout must lie between 0 and 1.")

    def _check_kernels(self) -> None:
        if not ARCHITECTURES[self.architecture].kernels:
            check(not self.kernels, f"The setting kernels is for the classic CNNs: leave it out for the architecture {self.architecture}.")
            return
        odd = all(kernel % 2 == 1 and kernel <= MAX_KERNEL for kernel in self.kernels)
        check(odd, f"The setting kernels takes odd numbers from 1 to {MAX_KERNEL}, not {list(self.kernels)}.")
        one_each = len(self.kernels) == len(self.widths)
        check(one_each, f"The setting kernels needs one number for each of the {len(self.widths)} widths, not {list(self.kernels)}.")

    @property
    def color(self) -> str:
        """What the network takes: `gray` (n, s, s, 1) or `rgb` (n, s, s, 3)."""
        return ARCHITECTURES[self.architecture].color

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The configuration as JSON gives it, with lists for tuples.

        Raises:
            UsageError: an unknown key or a value of a wrong type or size.
        """
        arguments: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        try:
            return cls(**arguments)
        except TypeError as error:
            raise UsageError(f"The model configuration does not fit the architecture ({error}).") from error


@config("Augmentation")
class AugmentationConfig:
    """Random changes of the training images, drawn anew every epoch."""

    flip: bool = option(default=True, help="mirror half of the training images")
    rotation: float = option(default=20.0, help="rotate by up to this many degrees", metavar="DEGREES", ge=0, le=180)
    zoom: float = option(default=0.2, help="enlarge or shrink by up to this share", metavar="SHARE", ge=0, lt=1)
    shift: float = option(default=0.1, help="shift by up to this share of the side", metavar="SHARE", ge=0, le=1)
    brightness: float = option(default=0.15, help="brighten or darken by up to this share of the full range", metavar="SHARE", ge=0, le=1)
    contrast: float = option(default=0.3, help="raise or lower the contrast by up to this share", metavar="SHARE", ge=0, le=1)
    blur: float = option(default=0.7, help="blur a quarter of the images by up to this many pixels (sigma)", metavar="PIXELS", ge=0, le=5)
    erasing: float = option(default=0.4, help="share of the images of which a rectangle is erased", metavar="SHARE", ge=0, le=1)
    degrade: float = option(
        default=0.0,
        help="share of the images that are made poor in some of the ways below",
        metavar="SHARE",
        group=_POOR,
        ge=0,
        le=1,
    )
    degrade_noise: float = option(
        default=16.0, help="noise: the highest sigma, in levels of 255; 0 leaves it out", metavar="SIGMA", group=_POOR, ge=0, le=64
    )
    degrade_jpeg: int = option(
        default=10, help="compression: the lowest JPEG quality, up to 75; 100 leaves it out", metavar="QUALITY", group=_POOR, ge=1, le=100
    )
    degrade_pixels: int = option(
        default=12, help="few pixels: the smallest side; 0 leaves it out", metavar="PIXELS", group=_POOR, ge=0, le=MAX_SIDE
    )
    degrade_motion: float = option(
        default=7.0, help="motion blur: the longest way, in pixels of 48; 0 leaves it out", metavar="PIXELS", group=_POOR, ge=0, le=48
    )
    degrade_gamma: float = option(
        default=2.0, help="light: the highest gamma, and the lowest its inverse; 1 leaves it out", metavar="GAMMA", group=_POOR, ge=1, le=5
    )
    degrade_patch: float = option(default=0.15, help="share of these with a patch over the face", metavar="SHARE", group=_POOR, ge=0, le=1)
    degrade_mask: float = option(
        default=0.1, help="share of these with a mask over nose and mouth", metavar="SHARE", group=_POOR, ge=0, le=1
    )


@config("Optimization")
class OptimizationConfig:
    """How the weights are found: everything that `train_epochs` needs beside data, network and augmentation."""

    epochs: int = option(default=45, help="passes over the training images at most", metavar="N", gt=0)
    batch_size: int = option(default=128, help="images per step, over all workers", metavar="N", gt=0)
    optimizer: str = option(default="adamw", help="the optimizer; sgd has Nesterov momentum 0.9", choices=("adamw", "adam", "sgd"))
    learning_rate: float = option(default=2e-3, help="the highest learning rate", metavar="RATE", gt=0)
    weight_decay: float = option(
        default=0.05, help="decoupled weight decay of adamw and sgd; not on biases and normalisation", metavar="RATE", ge=0
    )
    schedule: str = option(
        default="cosine", help="how the learning rate falls: to zero over all epochs, or on a plateau", choices=("cosine", "plateau")
    )
    warmup_epochs: float = option(default=2.0, help="epochs over which the learning rate rises", metavar="N", ge=0)
    plateau_patience: int = option(
        default=4, help="epochs without gain before the learning rate falls (schedule plateau)", metavar="N", gt=0
    )
    plateau_factor: float = option(default=0.2, help="what the learning rate is multiplied with then", metavar="FACTOR", gt=0, lt=1)
    patience: int = option(
        default=8, help="stop after this many epochs without gain in validation accuracy; the best epoch is kept", metavar="N", gt=0
    )
    label_smoothing: float = option(default=0.1, help="probability spread evenly over the classes", metavar="SHARE", ge=0, lt=1)
    mixup: float = option(
        default=0.0, help="alpha of the Beta distribution that mixes pairs of training images; 0 turns it off", metavar="ALPHA", ge=0
    )
    class_weights: str = option(
        default="none", help="weigh rare classes more, by the inverse of their share or its root", choices=("none", "root", "balanced")
    )
    weight_average: float = option(
        default=0.995,
        help="decay per step of the moving average of the weights that is evaluated and saved; 0 turns it off",
        metavar="DECAY",
        ge=0,
        lt=1,
    )
    precision: str = option(
        default="auto", help="arithmetic of the layers; auto is bfloat16 where the hardware gains", choices=("auto", "float32", "bfloat16")
    )
    frozen_epochs: int = option(
        default=0, help="epochs with a frozen base first (networks of Keras Applications and --start-from)", metavar="N", ge=0
    )
    fine_tune_from: float = option(
        default=0.0, help="share of the base's layers, from the input, that stays frozen afterwards", metavar="SHARE", ge=0, le=1
    )
    seed: int = option(default=7, help="seed of initial weights, order and augmentation", metavar="N")


@config("Recipe")
class Recipe:
    """Everything that makes a model from data; a bundle records it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
