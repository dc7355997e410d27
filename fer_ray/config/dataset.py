"""Where labeled faces lie, and how their labels are read."""

from __future__ import annotations

from fer_ray.config.options import PathText, check, config, option
from fer_ray.config.stores import StoresConfig
from fer_ray.emotions import EMOTIONS

TRAIN = "train"
VALIDATION = "validation"
TEST = "test"
SPLITS = (TRAIN, VALIDATION, TEST)


@config("Data set")
class DatasetConfig(StoresConfig):
    """Where labeled faces lie and how their labels are read; `fer_ray.data.dataset` says which layouts are known."""

    dataset: PathText = option(
        default="",
        help="split folders, one folder per emotion, fer2013.csv, s3://bucket/prefix, or kaggle:owner/dataset (required)",
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
    keep_duplicates: bool = option(default=False, help="train also on images whose very content stands in validation or test too")
    limit: int | None = option(
        default=None, help="read only the first N images of each class and split, for a small try", metavar="N", gt=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.dataset), "Which data set? Give --dataset FOLDER.")
        check(set(self.classes) <= set(EMOTIONS), f"The setting classes takes {', '.join(EMOTIONS)}.")
        check(len(set(self.classes)) == len(self.classes) != 1, "The setting classes must name two different emotions at least.")
