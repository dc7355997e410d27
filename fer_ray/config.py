"""What each job can be told: frozen dataclasses that check themselves. Field names are the flags and the keys of --config files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from fer_ray.errors import UsageError

MAX_BLOCKS = 64
MAX_WIDTH = 2048


def option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field that is also a command-line flag."""
    return field(default=default, metadata={"help": help, "choices": choices})


def _check(condition: bool, sentence: str) -> None:
    if not condition:
        raise UsageError(sentence)


def _check_share(config: Any, *names: str) -> None:
    for name in names:
        _check(0 <= getattr(config, name) <= 1, f"The setting {name} must lie between 0 and 1, not {getattr(config, name)}.")


def _check_positive(config: Any, *names: str) -> None:
    for name in names:
        _check(getattr(config, name) > 0, f"The setting {name} must be above 0, not {getattr(config, name)}.")


@dataclass(frozen=True)
class ResidualConfig:
    """A residual network with squeeze-and-excitation; one entry of `widths` and `depths` per stage."""

    image_size: int = option(48, "side of the square gray input in pixels")
    stem: int = option(32, "filters of the first convolution")
    widths: tuple[int, ...] = option((48, 96, 192), "filters of each stage")
    depths: tuple[int, ...] = option((2, 2, 2), "residual blocks of each stage")
    attention_reduction: int = option(8, "squeeze-and-excitation narrows the channels by this factor")
    dropout: float = option(0.4, "share of features dropped before the last layer while training")

    def __post_init__(self) -> None:
        stages = len(self.widths) == len(self.depths) > 0 and min(self.depths) > 0 and sum(self.depths) <= MAX_BLOCKS
        _check(stages, f"The model needs one width and one depth for each stage and at most {MAX_BLOCKS} blocks in all.")
        sizes = (self.image_size, self.stem, self.attention_reduction, *self.widths)
        _check(all(0 < size <= MAX_WIDTH for size in sizes), f"The model's sizes must lie between 1 and {MAX_WIDTH}.")
        _check(0 <= self.dropout < 1, "The setting dropout must lie between 0 and 1.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ResidualConfig:
        """The configuration as JSON gives it, with lists for tuples.

        Raises:
            UsageError: an unknown key or a value of a wrong type or size.
        """
        try:
            return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
        except TypeError as error:
            raise UsageError(f"The model configuration does not fit the architecture ({error}).") from error


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of the training images, drawn anew every epoch."""

    flip: bool = option(True, "mirror half of the training images")
    rotation: float = option(20.0, "rotate by up to this many degrees")
    zoom: float = option(0.2, "enlarge or shrink by up to this share")
    shift: float = option(0.1, "shift by up to this share of the side")
    brightness: float = option(0.15, "brighten or darken by up to this share of the full range")
    contrast: float = option(0.3, "raise or lower the contrast by up to this share")
    blur: float = option(0.7, "blur a quarter of the images by up to this many pixels (sigma)")
    erasing: float = option(0.4, "share of the images of which a rectangle is erased")

    def __post_init__(self) -> None:
        _check_share(self, "shift", "brightness", "contrast", "erasing")
        _check(0 <= self.zoom < 1, f"The setting zoom must lie between 0 and 1, not {self.zoom}.")
        _check(0 <= self.rotation <= 180 and 0 <= self.blur <= 5, "The setting rotation must lie in 0..180 and blur in 0..5.")


@dataclass(frozen=True)
class TrainConfig:
    """What `jobs/train.py` can be told."""

    dataset: str = option("", "folder with train/<emotion>/ and validation/<emotion>/ (required)")
    output: str = option("", "folder to write the model bundle to; must not exist yet (required)")
    epochs: int = option(45, "passes over the training images at most")
    batch_size: int = option(128, "images per step")
    learning_rate: float = option(2e-3, "the highest learning rate (AdamW)")
    weight_decay: float = option(0.05, "AdamW's decoupled weight decay")
    schedule: str = option("cosine", "how the learning rate falls: to zero over all epochs, or x 0.2 on a plateau", ("cosine", "plateau"))
    warmup_epochs: float = option(2.0, "epochs over which the learning rate rises")
    plateau_patience: int = option(4, "epochs without gain before the learning rate falls (schedule plateau)")
    patience: int = option(12, "stop after this many epochs without gain in validation accuracy")
    label_smoothing: float = option(0.1, "probability spread evenly over the classes")
    weight_average: float = option(0.995, "decay per step of the moving average of the weights that is evaluated and saved; 0 turns it off")
    precision: str = option("float32", "arithmetic of the layers; bfloat16 is faster on recent CPUs", ("float32", "bfloat16"))
    seed: int = option(7, "seed of initial weights, order and augmentation")
    use_gpu: bool = option(False, "train on a GPU of the cluster")
    model: ResidualConfig = field(default_factory=ResidualConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)

    def __post_init__(self) -> None:
        _check(bool(self.dataset), "Which data set? Give --dataset FOLDER.")
        _check(bool(self.output), "Where to? Give --output FOLDER for the model bundle.")
        _check_positive(self, "epochs", "batch_size", "learning_rate", "patience", "plateau_patience")
        _check(self.weight_decay >= 0 and self.warmup_epochs >= 0, "The settings weight_decay and warmup_epochs must not be negative.")
        _check(0 <= self.label_smoothing < 1 and 0 <= self.weight_average < 1, "label_smoothing and weight_average must lie in 0..1.")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as the bundle records them: everything but the places, which say nothing about the model."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in ("dataset", "output")}
