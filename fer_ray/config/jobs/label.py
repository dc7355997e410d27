"""What the labeling job can be told."""

from __future__ import annotations

import dataclasses
import datetime
import re
import reprlib
from dataclasses import field
from fractions import Fraction
from typing import Any

from fer_ray.config.options import PathText, check, check_part, config, option
from fer_ray.config.stores import StoresConfig
from fer_ray.errors import UsageError

MAX_DAYS = 36_500.0  # a hundred years: dates end in the year 9999
MAX_WORKERS = 100_000
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_RUN_ID_RULE = "The run id must be 1 to 128 letters, digits, '.', '_' or '-' and begin with a letter or digit."

_PUBLISH = re.compile(r"iceberg:[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")
_PUBLISH_RULE = "The setting publish must be iceberg:CATALOG.NAMESPACE, such as iceberg:team.emotions."


@config("Faces")
class LabelingOptions:
    """What is found and said about an image; also the options of `fer_ray.Labeler`."""

    detector_side: int = option(
        default=480,
        help="longest side of the detector's input in pixels; 1280 and more find the small faces of crowds",
        metavar="PIXELS",
        ge=32,
        le=8192,
    )
    min_face_score: float = option(default=0.65, help="leave out faces that the detector is less sure of", metavar="SHARE", ge=0, le=1)
    min_face_size: int = option(
        default=20, help="leave out faces whose longer side is below this many pixels of the original", metavar="PIXELS", ge=1
    )
    flip: bool = option(default=False, help="average the answers for each face and its mirror image, at twice the cost of the model")
    unknown_below: float = option(
        default=0.0, help="call the emotion `unknown` when its probability is below this", metavar="SHARE", ge=0, le=1
    )
    max_megapixels: float = option(
        default=100.0, help="do not decode images with more pixels than this (status too_large)", metavar="N", gt=0
    )
    max_file_megabytes: float = option(default=256.0, help="do not read files larger than this (status too_large)", metavar="N", gt=0)

    location: bool = option(default=False, help="record where a picture was taken, if its file says so, in latitude and longitude")

    def __post_init__(self) -> None:
        check(self.max_megapixels <= 178, "The setting max_megapixels must be at most 178, where Pillow suspects a decompression bomb.")

    @property
    def detector_version(self) -> str:
        """Names the detector, its way of looking (2: at half the size first) and the settings that change what it finds."""
        return f"yunet-2023mar-2-side{self.detector_side}-score{self.min_face_score:g}-size{self.min_face_size}"


@config("The run")
class LabelConfig(StoresConfig):
    """What `jobs/label.py` can be told."""

    input: tuple[PathText, ...] = option(
        default=(),
        help="folders, s3://, gs:// or az://bucket/prefix, https:// files, tar shards, zips, lists of URIs (default: the demo photographs)",
        metavar="URI",
        group="Input and output",
    )
    output: PathText = option(
        default="",
        help="folder, s3://, gs:// or az://bucket/prefix for the tables (default: demo/ when there is no --input, otherwise required)",
        metavar="DIR",
        group="Input and output",
    )
    model: PathText = option(
        default="",
        help="fer2013, ferplus (bundled), a folder, s3://, gs:// or az://bucket/prefix (default: ferplus)",
        metavar="NAME|DIR",
        group="Input and output",
    )
    publish: str = option(
        default="",
        help="register the tables' files in this Iceberg catalog of ~/.pyiceberg.yaml after the run, as iceberg:team.emotions",
        metavar="iceberg:CATALOG.NAMESPACE",
        group="Input and output",
        kw_only=True,
    )
    include: tuple[str, ...] = option(
        default=(),
        help="label only the files that these patterns match, such as '*.jpg' or '2026/**' (default: all but what is no image by its name)",
        metavar="PATTERN",
        group="Input and output",
        kw_only=True,
    )
    exclude: tuple[str, ...] = option(
        default=(),
        help="leave out the files and folders that these patterns match, such as 'thumbs' or '*_small.jpg'",
        metavar="PATTERN",
        group="Input and output",
        kw_only=True,
    )
    video_fps: str = option(
        default="1",
        help="label so many frames of each second of a film, `all` for each of them, 0 to leave films out",
        metavar="N|all",
        group="Films",
        kw_only=True,
    )
    max_video_hours: float = option(
        default=24.0, help="do not label films that are longer than this (status too_large)", metavar="N", gt=0, group="Films", kw_only=True
    )
    run_id: str = option(
        default="",
        help="name of the run: letters, digits, '.', '_' and '-' (default: the run date and a hash of the settings)",
        metavar="NAME",
    )
    run_date: str = option(default="", help="date of the run (default: today in UTC)", metavar="YYYY-MM-DD")
    all: bool = option(default=False, help="label every image, not only those that are new, changed, or not yet labeled with this model")
    latest: bool = option(
        default=True,
        help="let images_latest and faces_latest show this run's model; with --no-latest they stay with the model that they show",
        kw_only=True,
    )
    limit: int | None = option(default=None, help="label only the first N images that are due", metavar="N", gt=0)
    dry_run: bool = option(default=False, help="say what would be labeled and how long it would take, and write nothing")
    picture: int = option(
        default=0, help="draw the faces of the first N images with any into reports/<run id>/faces.jpg", metavar="N", ge=0
    )
    thumbnails: bool = option(default=True, help="show sample faces in the run's report, cut again from the images")
    keep_crops: bool = option(
        default=False, help="keep each face's crop, about 3 kB, so that `fer-ray relabel` needs no images", kw_only=True
    )
    crop_pixels: int = option(
        default=112,
        help="longest side of a kept crop, of which the face takes five eighths; models that look closer want more",
        metavar="PIXELS",
        ge=48,
        le=1024,
        kw_only=True,
    )
    max_error_share: float = option(
        default=0.5, help="exit with code 3 when more than this share of the images failed", metavar="SHARE", ge=0, le=1
    )
    max_drift: float = option(
        default=0.03,
        help="exit with code 3 when the emotions of a folder have moved by a PSI above this since earlier runs",
        metavar="PSI",
        ge=0,
        le=10,
        kw_only=True,
    )
    max_face_drop: float = option(
        default=0.5,
        help="exit with code 3 when faces per image have fallen by more than this share since earlier runs of the same folders",
        metavar="SHARE",
        ge=0,
        le=1,
        kw_only=True,
    )
    alarm_command: str = option(
        default="",
        help="run this command, without a shell, when the exit code is not 0; JSON with the reason comes on its standard input",
        metavar="COMMAND",
    )
    batch_size: int = option(default=64, help="images whose faces go through the model together", metavar="N", gt=0, group="Resources")
    keep_days: float = option(
        default=7.0, help="remove unfinished work that nobody touched for so many days", metavar="DAYS", gt=0, le=MAX_DAYS
    )
    wait_for_store: float = option(
        default=300.0, help="wait so long for a store that is down, then end the run; the same command resumes it", metavar="SECONDS", ge=0
    )
    workers: int | None = option(
        default=None,
        help="labeling processes, one CPU each; a cluster may grow for them (default: one for each CPU)",
        metavar="N",
        gt=0,
        group="Resources",
    )
    gpus: float | None = option(
        default=None,
        help="GPUs for the model, in processes of their own; 0.5 is half of one, 0 keeps it on the CPUs (default: those that are free)",
        metavar="N",
        ge=0,
        group="Resources",
    )
    labeling: LabelingOptions = field(default_factory=LabelingOptions)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.output) or not self.input, "Where to? Give --output FOLDER for the tables.")
        for name in ("include", "exclude"):
            empty = any(not pattern.strip("/") for pattern in getattr(self, name))
            check(not empty, f"The setting {name} has an empty pattern: give one such as '*.jpg'.")
        check(_is_frame_rate(self.video_fps), "The setting video_fps must be a number from 0.001 to 1000, all, or 0.")
        if self.gpus:
            check_part(self, "gpus")
        check(not self.run_id or bool(_RUN_ID.fullmatch(self.run_id)), _RUN_ID_RULE)
        check(not self.publish or bool(_PUBLISH.fullmatch(self.publish)), _PUBLISH_RULE)
        if self.run_date:
            try:
                datetime.date.fromisoformat(self.run_date)
            except ValueError as error:
                raise UsageError(f"The run date {reprlib.repr(self.run_date)} is not a date like 2026-11-21.") from error

    def date(self) -> datetime.date:
        """The run date, today in UTC unless one was given."""
        return datetime.date.fromisoformat(self.run_date) if self.run_date else datetime.datetime.now(datetime.UTC).date()

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as the run records them; the alarm's command, which may hold a secret, is left out."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "alarm_command"}


def _is_frame_rate(text: str) -> bool:
    try:
        return text in ("all", "0") or 0.001 <= Fraction(text) <= 1000
    except (ValueError, ZeroDivisionError):
        return False
