"""What each job can be told: frozen dataclasses that check themselves. Field names are the flags and the keys of --config files."""

from __future__ import annotations

import dataclasses
import datetime
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fer_ray.errors import UsageError

MAX_BLOCKS = 64
MAX_WIDTH = 2048
MAX_WEIGHTS = 200_000_000
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ENDPOINT_RULE = "The S3 endpoint must look like https://store.example.org:9000, without credentials in it."
_RUN_ID_RULE = "The run id must be 1 to 128 letters, digits, '.', '_' or '-' and begin with a letter or digit."


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
        whole = all(isinstance(size, int) and 0 < size <= MAX_WIDTH for size in sizes)
        _check(whole, f"The model's sizes must be whole numbers between 1 and {MAX_WIDTH}.")
        weights = sum(2 * 9 * width * width * depth for width, depth in zip(self.widths, self.depths, strict=True))
        _check(weights <= MAX_WEIGHTS, f"The model would have more than {MAX_WEIGHTS:,} weights: make it narrower or shallower.")
        _check(0 <= self.dropout < 1, "The setting dropout must lie between 0 and 1.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ResidualConfig:
        """The configuration as JSON gives it, with lists for tuples.

        Raises:
            UsageError: an unknown key or a value of a wrong type or size.
        """
        arguments: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        try:
            return cls(**arguments)
        except TypeError as error:
            raise UsageError(f"The model configuration does not fit the architecture ({error}).") from error


@dataclass(frozen=True)
class CropGeometry:
    """How a face is cut out for a model, relative to the detector's box; it travels in the model's bundle.

    The crop's side is `scale` times the geometric mean of the box's sides, its centre is moved by shares of that side, and
    it is turned by `rotation` times the angle of the line through the eyes. The defaults were chosen on photographs with
    `benchmarks/quality.py --crops`.
    """

    scale: float = 1.05
    shift_x: float = 0.0
    shift_y: float = -0.04
    rotation: float = 1.0

    def __post_init__(self) -> None:
        values = dataclasses.astuple(self)
        plain = all(isinstance(value, (int, float)) for value in values)
        near = plain and 0.2 <= self.scale <= 5 and max(abs(value) for value in values[1:]) <= 1
        _check(near, "The crop must be 0.2 to 5 times the box, and moved and turned by at most 1.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CropGeometry:
        """The geometry as JSON gives it.

        Raises:
            UsageError: an unknown key, or a value of a wrong type or size.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise UsageError(f"The crop does not read ({error}).") from error


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
    limit: int | None = option(None, "read only the first N images of each class and split, for a small try")
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
        _check(self.limit is None or self.limit > 0, "The setting limit must be above 0.")
        _check_positive(self, "epochs", "batch_size", "learning_rate", "patience", "plateau_patience")
        _check(self.weight_decay >= 0 and self.warmup_epochs >= 0, "The settings weight_decay and warmup_epochs must not be negative.")
        _check(0 <= self.label_smoothing < 1 and 0 <= self.weight_average < 1, "label_smoothing and weight_average must lie in 0..1.")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as the bundle records them: everything but the places, which say nothing about the model."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in ("dataset", "output")}


@dataclass(frozen=True)
class LabelingConfig:
    """What is found and said about an image; also the options of `fer_ray.Labeler`."""

    detector_side: int = option(480, "longest side of the detector's input in pixels; 1280 and more find the small faces of crowds")
    min_face_score: float = option(0.65, "leave out faces that the detector is less sure of")
    min_face_size: int = option(20, "leave out faces whose longer side is below this many pixels of the original")
    unknown_below: float = option(0.0, "call the emotion `unknown` when its probability is below this")
    max_megapixels: float = option(100.0, "do not decode images with more pixels than this (status too_large)")
    max_file_megabytes: float = option(256.0, "do not read files larger than this (status too_large)")

    def __post_init__(self) -> None:
        _check(32 <= self.detector_side <= 8192, f"The setting detector_side must lie between 32 and 8192, not {self.detector_side}.")
        _check_share(self, "min_face_score", "unknown_below")
        _check_positive(self, "max_megapixels", "max_file_megabytes")
        _check(self.max_megapixels <= 178, "The setting max_megapixels must be at most 178, where Pillow suspects a decompression bomb.")
        _check(self.min_face_size >= 1, "The setting min_face_size must be at least 1 pixel.")

    @property
    def detector_version(self) -> str:
        """Names the detector and the settings that change what it finds."""
        return f"yunet-2023mar-side{self.detector_side}-score{self.min_face_score:g}-size{self.min_face_size}"


@dataclass(frozen=True)
class LabelConfig:
    """What `jobs/label.py` can be told."""

    input: tuple[str, ...] = option(
        (), "folders, s3://bucket/prefix, tar shards, or Parquet or CSV lists of URIs (default: the demo photographs of packages)"
    )
    output: str = option("", "folder or s3://bucket/prefix for the tables (default: demo/ when there is no --input, otherwise required)")
    model: str = option("", "model bundle, a folder or s3://bucket/prefix (default: the one that comes with the package)")
    s3_endpoint: str = option("", "address of an S3-compatible store (default: AWS_ENDPOINT_URL, or AWS)")
    run_id: str = option("", "name of the run: letters, digits, '.', '_' and '-' (default: the run date and a hash of the settings)")
    run_date: str = option("", "date of the run as YYYY-MM-DD (default: today in UTC)")
    all: bool = option(False, "label every image, not only those that are new, changed, or not yet labeled with this model")
    limit: int | None = option(None, "label only the first N images that are due")
    dry_run: bool = option(False, "say what would be labeled and how long it would take, and write nothing")
    picture: int = option(0, "draw the faces of the first N images with any into reports/<run id>/faces.jpg")
    max_error_share: float = option(0.5, "exit with code 3 when more than this share of the images failed")
    batch_size: int = option(64, "images whose faces go through the model together")
    keep_days: float = option(7.0, "remove unfinished work that nobody touched for so many days")
    workers: int | None = option(None, "labeling processes, one CPU each (default: one for each CPU of the cluster)")
    labeling: LabelingConfig = field(default_factory=LabelingConfig)

    def __post_init__(self) -> None:
        _check(bool(self.output) or not self.input, "Where to? Give --output FOLDER for the tables.")
        _check(self.limit is None or self.limit > 0, "The setting limit must be above 0.")
        _check(self.workers is None or self.workers > 0, "The setting workers must be above 0.")
        _check_share(self, "max_error_share")
        _check_positive(self, "batch_size", "keep_days")
        parts = urlsplit(self.s3_endpoint)
        plain = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
        _check(not self.s3_endpoint or bool(plain), _ENDPOINT_RULE)
        _check(not self.run_id or bool(_RUN_ID.fullmatch(self.run_id)), _RUN_ID_RULE)
        if self.run_date:
            try:
                datetime.date.fromisoformat(self.run_date)
            except ValueError as error:
                raise UsageError(f"The run date {self.run_date!r} is not a date like 2026-11-21.") from error

    def date(self) -> datetime.date:
        """The run date, today in UTC unless one was given."""
        return datetime.date.fromisoformat(self.run_date) if self.run_date else datetime.datetime.now(datetime.UTC).date()

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as the run records them."""
        return dataclasses.asdict(self)
