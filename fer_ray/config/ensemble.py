"""What the ensemble job can be told."""

from __future__ import annotations

from dataclasses import dataclass, field

from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.options import check, option

AVERAGES = ("answers", "weights")


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
