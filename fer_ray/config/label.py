"""What the labeling job can be told."""

from __future__ import annotations

import dataclasses
import datetime
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fer_ray.config.options import check, check_part, check_positive, check_share, option
from fer_ray.errors import UsageError

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ENDPOINT_RULE = "The S3 endpoint must look like https://store.example.org:9000, without credentials in it."
_RUN_ID_RULE = "The run id must be 1 to 128 letters, digits, '.', '_' or '-' and begin with a letter or digit."


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
