"""What the look at a data set can be told."""

from __future__ import annotations

from dataclasses import dataclass, field

from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.options import check, option


@dataclass(frozen=True)
class InspectConfig:
    """What `jobs/inspect_dataset.py` can be told."""

    output: str = option("", "folder or s3://bucket/prefix for the sample sheet and the list of duplicates (required)")
    samples: int = option(8, "faces of each class and split on the sample sheet")
    data: DatasetConfig = field(default_factory=DatasetConfig)

    def __post_init__(self) -> None:
        check(bool(self.output), "Where to? Give --output FOLDER for the sample sheet and the duplicates.")
        check(0 < self.samples <= 40, f"The setting samples must lie between 1 and 40, not {self.samples}.")
