"""What each job can be told: frozen dataclasses that check themselves. Field names are the flags and the keys of --config files."""

from __future__ import annotations

import dataclasses
import datetime
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fer_ray.errors import UsageError
from fer_ray.options import check, check_part, check_positive, check_share, option
from fer_ray.recipe import DatasetConfig, Recipe

SPLITS = ("train", "validation", "test")
MAX_SAMPLES = 500
AVERAGES = ("answers", "weights")
SEARCHERS, SCHEDULERS, OBJECTIVES = ("tpe", "random", "grid"), ("asha", "hyperband", "pbt", "none"), ("accuracy", "macro_f1", "nll")
ONNX, SAVEDMODEL, TFLITE = "onnx", "savedmodel", "tflite"
EXPORT_FORMATS = (ONNX, SAVEDMODEL, TFLITE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smh])")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ENDPOINT_RULE = "The S3 endpoint must look like https://store.example.org:9000, without credentials in it."
_RUN_ID_RULE = "The run id must be 1 to 128 letters, digits, '.', '_' or '-' and begin with a letter or digit."


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
        check(near, "The crop must be 0.2 to 5 times the box, and moved and turned by at most 1.")

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
class LabelingConfig:
    """What is found and said about an image; also the options of `fer_ray.Labeler`."""

    detector_side: int = option(480, "longest side of the detector's input in pixels; 1280 and more find the small faces of crowds")
    min_face_score: float = option(0.65, "leave out faces that the detector is less sure of")
    min_face_size: int = option(20, "leave out faces whose longer side is below this many pixels of the original")
    flip: bool = option(False, "average the answers for each face and its mirror image, at twice the cost of the model")
    unknown_below: float = option(0.0, "call the emotion `unknown` when its probability is below this")
    max_megapixels: float = option(100.0, "do not decode images with more pixels than this (status too_large)")
    max_file_megabytes: float = option(256.0, "do not read files larger than this (status too_large)")

    def __post_init__(self) -> None:
        check(32 <= self.detector_side <= 8192, f"The setting detector_side must lie between 32 and 8192, not {self.detector_side}.")
        check_share(self, "min_face_score", "unknown_below")
        check_positive(self, "max_megapixels", "max_file_megabytes")
        check(self.max_megapixels <= 178, "The setting max_megapixels must be at most 178, where Pillow suspects a decompression bomb.")
        check(self.min_face_size >= 1, "The setting min_face_size must be at least 1 pixel.")

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
    model: str = option("", "fer2013, ferplus (bundled), a folder, or s3://bucket/prefix (default: ferplus)")
    s3_endpoint: str = option("", "address of an S3-compatible store (default: AWS_ENDPOINT_URL, or AWS)")
    run_id: str = option("", "name of the run: letters, digits, '.', '_' and '-' (default: the run date and a hash of the settings)")
    run_date: str = option("", "date of the run as YYYY-MM-DD (default: today in UTC)")
    all: bool = option(False, "label every image, not only those that are new, changed, or not yet labeled with this model")
    limit: int | None = option(None, "label only the first N images that are due")
    dry_run: bool = option(False, "say what would be labeled and how long it would take, and write nothing")
    picture: int = option(0, "draw the faces of the first N images with any into reports/<run id>/faces.jpg")
    thumbnails: bool = option(True, "show sample faces in the run's report, cut again from the images")
    max_error_share: float = option(0.5, "exit with code 3 when more than this share of the images failed")
    alarm_command: str = option("", "run this command then, without a shell; the summary comes as JSON on its standard input")
    batch_size: int = option(64, "images whose faces go through the model together")
    keep_days: float = option(7.0, "remove unfinished work that nobody touched for so many days")
    workers: int | None = option(
        None,
        "labeling processes, one CPU each; a cluster may grow for them (default: one for each CPU that it has)",
    )
    gpus: float | None = option(
        None,
        "GPUs for the model, in processes of their own: 2, 0.5 for half of one, 0 to keep it on the CPUs (default: those that are free)",
    )
    labeling: LabelingConfig = field(default_factory=LabelingConfig)

    def __post_init__(self) -> None:
        check(bool(self.output) or not self.input, "Where to? Give --output FOLDER for the tables.")
        check(self.limit is None or self.limit > 0, "The setting limit must be above 0.")
        check(self.workers is None or self.workers > 0, "The setting workers must be above 0.")
        if self.gpus:
            check_part(self, "gpus")
        check_share(self, "max_error_share")
        check_positive(self, "batch_size", "keep_days")
        parts = urlsplit(self.s3_endpoint)
        plain = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
        check(not self.s3_endpoint or bool(plain), _ENDPOINT_RULE)
        check(not self.run_id or bool(_RUN_ID.fullmatch(self.run_id)), _RUN_ID_RULE)
        if self.run_date:
            try:
                datetime.date.fromisoformat(self.run_date)
            except ValueError as error:
                raise UsageError(f"The run date {self.run_date!r} is not a date like 2026-11-21.") from error

    def date(self) -> datetime.date:
        """The run date, today in UTC unless one was given."""
        return datetime.date.fromisoformat(self.run_date) if self.run_date else datetime.datetime.now(datetime.UTC).date()

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as the run records them; the alarm's command, which may hold a secret, is left out."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "alarm_command"}


@dataclass(frozen=True)
class TrainConfig:
    """What `jobs/train.py` can be told."""

    output: str = option("", "folder to write the model bundle to; must not exist yet (required)")
    weights: str = option("imagenet", "initial weights of Keras Applications: imagenet (a download), none, or a Keras weights file")
    start_from: str = option("", "bundle to fine-tune: its network is taken, with a new last layer where the classes differ")
    resume: bool = option(False, "go on from the last checkpoint of a training into the same output that was ended")
    workers: int = option(1, "Ray Train workers with synchronised gradients; each takes a share of every batch")
    cpus_per_worker: float | None = option(None, "CPUs reserved for each worker (default: one, with the threads of an equal share)")
    use_gpu: bool = option(False, "give every worker a GPU of the cluster")
    max_failures: int = option(2, "how often a dead worker is replaced before the training fails")
    data: DatasetConfig = field(default_factory=DatasetConfig)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        check(bool(self.output), "Where to? Give --output FOLDER for the model bundle.")
        check_part(self, "cpus_per_worker")
        check_positive(self, "workers")
        check(self.max_failures >= 0, "The setting max_failures must not be negative.")
        even = self.recipe.optimization.batch_size % self.workers == 0
        check(even, f"The batch of {self.recipe.optimization.batch_size} images cannot be shared evenly by {self.workers} workers.")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as the bundle records them: all but the places, which say nothing about the model."""
        return {
            "workers": self.workers,
            "dataset": {
                key: value for key, value in dataclasses.asdict(self.data).items() if key not in ("dataset", "ferplus", "s3_endpoint")
            }
            | {"ferplus": bool(self.data.ferplus)},
            **dataclasses.asdict(self.recipe),
        }


_NOT_OF_THE_SEARCH = ("output", "resume", "max_concurrent", "time_budget", "train_best", "ensemble")


@dataclass(frozen=True)
class TuneConfig:
    """What `jobs/tune.py` can be told."""

    output: str = option("", "folder for the trials, the report, best.yaml and the best bundle (required)")
    space: str = option("compact", "search space: compact, classic, or a YAML file")
    trials: int = option(24, "how many configurations are tried")
    epochs: int = option(8, "epochs of a trial at most")
    time_budget: str = option("", "stop the search after this time, such as 90m or 2h")
    searcher: str = option("tpe", "how configurations are chosen: Optuna's TPE, at random, or every one of a grid", SEARCHERS)
    scheduler: str = option(
        "asha", "what becomes of poor trials: ASHA or HyperBand stop them, with pbt they go on from better ones", SCHEDULERS
    )
    objective: str = option("accuracy", "what is to be best on validation", OBJECTIVES)
    low_cost: bool = option(False, "look for networks of few multiply-adds too, and leave the front of both (TPE)")
    seeds: int = option(1, "trainings of each configuration, which stands with their mean")
    grid_points: int = option(3, "values of each range in a grid")
    pbt_interval: int = option(2, "epochs until the trials of pbt are compared")
    max_concurrent: int | None = option(None, "trials at a time; a cluster may grow for them (default: as many as it has room for)")
    workers_per_trial: int = option(1, "Ray Train workers of each trial")
    cpus_per_worker: float | None = option(None, "CPUs reserved for each worker (default: one); a fraction shares one")
    use_gpu: bool = option(False, "train on GPUs")
    gpus_per_worker: float = option(1.0, "GPUs of each worker with --use-gpu; a fraction shares one")
    search_seed: int = option(0, "seed of the searcher")
    resume: bool = option(False, "go on with a search into the same output that was ended")
    train_best: int = option(0, "train the best configuration for so many epochs in the end")
    ensemble: int = option(0, "make one bundle of the best K trials in the end")
    data: DatasetConfig = field(default_factory=DatasetConfig)

    def __post_init__(self) -> None:
        check(bool(self.output), "Where to? Give --output FOLDER for the trials and the report.")
        check_positive(self, "trials", "epochs", "grid_points", "workers_per_trial", "seeds", "pbt_interval")
        check(self.max_concurrent is None or self.max_concurrent > 0, "The setting max_concurrent must be above 0.")
        check_part(self, "cpus_per_worker", "gpus_per_worker")
        single = self.searcher == "tpe" and self.seeds == 1 and self.scheduler != "pbt"
        check(single or not self.low_cost, "The setting low_cost needs the searcher tpe, one seed, and another scheduler than pbt.")
        check(self.scheduler != "pbt" or self.seeds == 1, "The scheduler pbt compares single trainings: leave --seeds out.")
        check(min(self.train_best, self.ensemble) >= 0, "The settings train_best and ensemble must not be negative.")
        self.seconds()

    def seconds(self) -> float | None:
        """The time budget in seconds."""
        if not self.time_budget:
            return None
        match = _DURATION.fullmatch(self.time_budget)
        if match is None or not float(match[1]):
            raise UsageError(f"The time budget {self.time_budget!r} must be a number with s, m or h, such as 90m.")
        return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values: what must be the same for a search to be gone on with."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in _NOT_OF_THE_SEARCH}


@dataclass(frozen=True)
class InspectConfig:
    """What `jobs/inspect_dataset.py` can be told."""

    output: str = option("", "folder or s3://bucket/prefix for the sample sheet and the list of duplicates (required)")
    samples: int = option(8, "faces of each class and split on the sample sheet")
    data: DatasetConfig = field(default_factory=DatasetConfig)

    def __post_init__(self) -> None:
        check(bool(self.output), "Where to? Give --output FOLDER for the sample sheet and the duplicates.")
        check(0 < self.samples <= 40, f"The setting samples must lie between 1 and 40, not {self.samples}.")


@dataclass(frozen=True)
class EnsembleConfig:
    """What `jobs/ensemble.py` can be told."""

    model: tuple[str, ...] = option((), "the bundles to average: fer2013, ferplus, folders, or s3://bucket/prefix (required)")
    output: str = option("", "folder to write the bundle to; must not exist yet (required)")
    average: str = option(
        "answers", "the answers of all networks; or the weights, for one network of several fine-tuned from one another", AVERAGES
    )
    flip: bool = option(False, "average in the answers for mirror images as well, at twice the cost")
    data: DatasetConfig = field(default_factory=DatasetConfig)

    def __post_init__(self) -> None:
        check(bool(self.model) and all(self.model), "Which models? Give --model BUNDLE BUNDLE ...")
        check(self.average in AVERAGES, f"The setting average must be one of {', '.join(AVERAGES)}.")
        check(bool(self.output), "Where to? Give --output FOLDER for the model bundle.")


@dataclass(frozen=True)
class EvaluateConfig:
    """What `jobs/evaluate.py` can be told."""

    model: tuple[str, ...] = option(
        (), "fer2013 or ferplus, which come with the package, or bundles in folders or s3://bucket/prefix (required)"
    )
    output: str = option("", "folder or s3://bucket/prefix for index.html, the pictures and the figures (required)")
    split: str = option("test", "the split that the models are judged on", SPLITS)
    flip: bool = option(False, "average the answers for each face and its mirror image")
    samples: int = option(50, "random predictions to show")
    seed: int = option(0, "seed of that choice and of the resamples behind the intervals")
    data: DatasetConfig = field(default_factory=DatasetConfig)

    def __post_init__(self) -> None:
        check(bool(self.model) and all(self.model), "Which model? Give --model fer2013, or a bundle.")
        check(bool(self.output), "Where to? Give --output FOLDER for the pages and figures.")
        check(self.split in SPLITS, f"The setting split must be one of {', '.join(SPLITS)}.")
        check_positive(self, "samples")
        check(self.samples <= MAX_SAMPLES, f"The setting samples must be at most {MAX_SAMPLES}.")
        check(self.seed >= 0, "The setting seed must not be negative.")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as the report records them: all but the address of the store."""
        values = dataclasses.asdict(self)
        values["dataset"] = {key: value for key, value in values.pop("data").items() if key != "s3_endpoint"}
        return values


@dataclass(frozen=True)
class ExportConfig:
    """What `jobs/export.py` can be told."""

    model: str = option("", "fer2013 or ferplus, which come with the package, or a bundle in a folder or at s3://... (default: ferplus)")
    format: str = option(ONNX, "for ONNX Runtime, for TensorFlow, or for LiteRT (TensorFlow Lite)", EXPORT_FORMATS)
    int8: bool = option(False, "store the weights in 8 bits and calculate with them: a quarter of the size, not quite the same answers")
    flip: bool = option(False, "average the answers for each face and its mirror image, at twice the cost of the model")
    output: str = option("", "file (onnx, tflite) or folder (savedmodel) to write, local or s3://bucket/name; must be new (required)")
    dataset: str = option("", "data set whose validation faces calibrate and check the export (default: faces of the demo photographs)")
    s3_endpoint: str = option("", "address of an S3-compatible store (default: AWS_ENDPOINT_URL, or AWS)")

    def __post_init__(self) -> None:
        check(bool(self.output), "Where to? Give --output PATH for the exported model.")
        check(self.format in EXPORT_FORMATS, f"The setting format must be one of {', '.join(EXPORT_FORMATS)}, not {self.format!r}.")
        check(not self.int8 or self.format != SAVEDMODEL, "A SavedModel has no int8 form here: give --format onnx or tflite with --int8.")
