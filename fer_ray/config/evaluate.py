"""What the evaluation job can be told."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from fer_ray.config.dataset import SPLITS, DatasetConfig
from fer_ray.config.options import check, check_positive, option

MAX_SAMPLES = 500


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
