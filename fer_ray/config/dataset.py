"""Where labeled faces lie, and how their labels are read."""

from __future__ import annotations

import dataclasses
from typing import Any

from fer_ray.config.label_names import PRESETS, parse_label_names
from fer_ray.config.options import PathText, check, config, option
from fer_ray.config.stores import StoresConfig
from fer_ray.emotions import EMOTIONS

TRAIN = "train"
VALIDATION = "validation"
TEST = "test"
SPLITS = (TRAIN, VALIDATION, TEST)
ALL = "all"  # the images of every split, and of data sets without any
_NEW = ("labels", "label_names", "find_faces", "split_by")  # all of them are empty where nothing is said


@config("Data set")
class DatasetConfig(StoresConfig):
    """Where labeled faces lie and how their labels are read; `fer_ray.data.layouts` knows the layouts."""

    dataset: PathText = option(
        default="",
        help="folder, archive, CSV of pixels or Parquet, here or in s3://bucket/prefix, or kaggle:owner/dataset (required)",
        metavar="DIR",
    )
    ferplus: tuple[PathText, ...] = option(
        default=(), help="CSVs of FER+ votes for these images, this project's layout or Microsoft's fer2013new.csv", metavar="FILE"
    )
    ferplus_labels: str = option(
        default="soft", help="train on the distribution of the votes, or on the majority", choices=("soft", "majority")
    )
    classes: tuple[str, ...] = option(
        default=(), help="use only images of these emotions (default: those of the data set; eight with --ferplus)", metavar="EMOTION"
    )
    validation_share: float = option(
        default=0.2, help="share of the training images for validation, where the data set has no such split", metavar="SHARE", gt=0, lt=1
    )
    split_seed: int = option(default=0, help="seed of that split, which is stratified by emotion", metavar="N", ge=0)
    keep_duplicates: bool = option(default=False, help="train also on images that stand in validation or test too, or copies of them")
    labels: tuple[PathText, ...] = option(
        default=(), help="CSV or text files that name images and their labels, perhaps splits and boxes of faces", metavar="FILE"
    )
    label_names: tuple[str, ...] = option(
        default=(),
        help=f"what labels and folders mean: {', '.join(PRESETS)}, or emotions in the order of numbers from 0, or LABEL=EMOTION for each",
        metavar="NAME",
    )
    find_faces: bool = option(default=False, help="find and crop the face in each image as label does, where they are photographs")
    split_by: str = option(
        default="",
        help="keep images together when a validation split is drawn: by a column of --labels, or a regular expression for their names",
        metavar="PATTERN",
    )
    limit: int | None = option(
        default=None, help="read only the first N images of each class and split, for a small try", metavar="N", gt=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_label_names(self.label_names)
        check(bool(self.dataset), "Which data set? Give --dataset FOLDER.")
        check(set(self.classes) <= set(EMOTIONS), f"The setting classes takes {', '.join(EMOTIONS)}.")
        check(len(set(self.classes)) == len(self.classes) != 1, "The setting classes must name two different emotions at least.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what version 0.1 did not know only where it is set, so that its trainings and searches are resumed."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value or name not in _NEW}
