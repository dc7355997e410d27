"""Where labeled faces lie, and how their labels are read."""

from __future__ import annotations

from dataclasses import dataclass

from fer_ray.config.options import check, option
from fer_ray.emotions import EMOTIONS

TRAIN = "train"
VALIDATION = "validation"
TEST = "test"
SPLITS = (TRAIN, VALIDATION, TEST)


@dataclass(frozen=True)
class DatasetConfig:
    """Where labeled faces lie and how their labels are read; `fer_ray.data.dataset` says which layouts are known."""

    dataset: str = option("", "split folders, one folder per emotion, fer2013.csv, s3://bucket/prefix, or kaggle:owner/dataset (required)")
    ferplus: tuple[str, ...] = option((), "CSVs of FER+ votes for these images, this project's layout or Microsoft's fer2013new.csv")
    ferplus_labels: str = option("soft", "train on the distribution of the votes, or on the majority", ("soft", "majority"))
    classes: tuple[str, ...] = option((), "use only images of these emotions (default: those of the data set; eight with --ferplus)")
    validation_share: float = option(0.2, "share of the training images for validation, where the data set has no such split")
    split_seed: int = option(0, "seed of that split, which is stratified by emotion")
    keep_duplicates: bool = option(False, "train also on images whose very content stands in validation or test too")
    limit: int | None = option(None, "read only the first N images of each class and split, for a small try")
    s3_endpoint: str = option("", "address of an S3-compatible store (default: AWS_ENDPOINT_URL, or AWS)")

    def __post_init__(self) -> None:
        check(bool(self.dataset), "Which data set? Give --dataset FOLDER.")
        check(0 < self.validation_share < 1, f"The setting validation_share must lie between 0 and 1, not {self.validation_share}.")
        check(self.limit is None or self.limit > 0, "The setting limit must be above 0.")
        check(set(self.classes) <= set(EMOTIONS), f"The setting classes takes {', '.join(EMOTIONS)}.")
        check(len(set(self.classes)) == len(self.classes) != 1, "The setting classes must name two different emotions at least.")
