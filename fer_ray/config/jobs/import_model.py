"""What the import of a model can be told, and what a bundle says of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fer_ray.config.options import PathText, check, config, option
from fer_ray.config.recipe import GRAY, MAX_SIDE, RGB
from fer_ray.config.stores import StoresConfig
from fer_ray.emotions import EMOTIONS
from fer_ray.errors import UsageError

IMPORTED = "imported"  # the architecture of a network that came as ONNX
CHANNELS = {GRAY: 1, RGB: 3}


@dataclass(frozen=True)
class ImportedModel:
    """A network that came as ONNX: what this code knows of it is what it takes."""

    image_size: int
    color: str
    architecture: str = IMPORTED

    def __post_init__(self) -> None:
        whole = isinstance(self.image_size, int) and 8 <= self.image_size <= MAX_SIDE
        check(whole, f"The setting image_size must lie between 8 and {MAX_SIDE} pixels.")
        check(self.color in CHANNELS, f"The setting color must be one of {', '.join(CHANNELS)}.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ImportedModel:
        """The description as JSON gives it.

        Raises:
            UsageError: an unknown key or a value of a wrong type or size.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise UsageError(f"The imported model does not read ({error}).") from error


@config("The model")
class ImportConfig(StoresConfig):
    """What `fer-ray import-model` can be told."""

    onnx: PathText = option(default="", help="the network: one ONNX file with one input and one output (required)", metavar="FILE")
    output: PathText = option(default="", help="folder to write the bundle to; must not exist yet (required)", metavar="DIR")
    classes: tuple[str, ...] = option(
        default=(), help=f"what its outputs stand for, in their order: {', '.join(EMOTIONS)} (required)", metavar="EMOTION"
    )
    image_size: int = option(default=224, help="side of the square crops that it takes, in pixels", metavar="PIXELS", ge=8, le=MAX_SIDE)
    color: str = option(default=RGB, help="what it takes", choices=tuple(CHANNELS))
    mean: tuple[float, ...] = option(
        default=(), help="what it subtracts from pixel values 0..1, for each channel (default: 0)", metavar="VALUE"
    )
    std: tuple[float, ...] = option(default=(), help="what it divides the rest by, for each channel (default: 1)", metavar="VALUE")
    crop_scale: float = option(default=1.05, help="side of the crop, in sides of the detector's box", metavar="FACTOR", ge=0.2, le=5)
    dataset: PathText = option(
        default="", help="data set whose validation faces calibrate its confidences (default: they stay as they are)", metavar="DIR"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.onnx), "Which network? Give --onnx FILE.")
        check(bool(self.output), "Where to? Give --output FOLDER for the model bundle.")
        check(len(set(self.classes)) >= 2, "Which emotions does it tell apart? Give --classes in the order of its outputs.")
        check(set(self.classes) <= set(EMOTIONS), f"The setting classes takes {', '.join(EMOTIONS)}.")
        check(len(set(self.classes)) == len(self.classes), "The setting classes names an emotion twice.")
        channels = CHANNELS[self.color]
        for name in ("mean", "std"):
            count = len(getattr(self, name))
            check(count in (0, channels), f"The setting {name} takes {channels} numbers for {self.color}, not {count}.")
        check(all(value > 0 for value in self.std), "The setting std takes numbers above 0.")
