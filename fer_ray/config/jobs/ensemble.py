"""What the ensemble job can be told."""

from __future__ import annotations

from dataclasses import field

from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.options import PathText, check, config, option

AVERAGES = ("answers", "weights")


@config("The ensemble")
class EnsembleConfig:
    """What `jobs/ensemble.py` can be told."""

    model: tuple[PathText, ...] = option(
        default=(), help="the bundles to average: fer2013, ferplus, folders, or s3://bucket/prefix (required)", metavar="NAME|DIR"
    )
    output: PathText = option(
        default="", help="folder, s3://, gs:// or az:// address for the bundle; must be new (required)", metavar="DIR"
    )
    average: str = option(
        default="answers",
        help="the answers of all networks; or the weights, for one network of several fine-tuned from one another",
        choices=AVERAGES,
    )
    share: tuple[float, ...] = option(default=(), help="share of each bundle in the mean of the weights (default: equal)", metavar="SHARE")
    flip: bool = option(default=False, help="average in the answers for mirror images as well, at twice the cost")
    data: DatasetConfig = field(default_factory=DatasetConfig)

    def __post_init__(self) -> None:
        check(bool(self.model) and all(self.model), "Which models? Give --model BUNDLE BUNDLE ...")
        fits = not self.share or (len(self.share) == len(self.model) and min(self.share) > 0)
        check(fits, "The setting share needs a number above 0 for each model.")
        check(not self.share or self.average == "weights", "The setting share is for --average weights.")
        check(bool(self.output), "Where to? Give --output FOLDER for the model bundle.")
