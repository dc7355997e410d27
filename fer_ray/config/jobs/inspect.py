"""What the look at a data set can be told."""

from __future__ import annotations

from dataclasses import field

from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.options import PathText, check, config, option


@config("The look")
class InspectConfig:
    """What `jobs/inspect_dataset.py` can be told."""

    output: PathText = option(
        default="", help="folder or s3://bucket/prefix for the sample sheet and the list of duplicates (required)", metavar="DIR"
    )
    samples: int = option(default=8, help="faces of each class and split on the sample sheet", metavar="N", ge=1, le=40)
    data: DatasetConfig = field(default_factory=DatasetConfig)

    def __post_init__(self) -> None:
        check(bool(self.output), "Where to? Give --output FOLDER for the sample sheet and the duplicates.")
