"""What the evaluation job can be told."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Any

from fer_ray.config.dataset import ALL, SPLITS, DatasetConfig
from fer_ray.config.options import PathText, check, config, option
from fer_ray.config.stores import STORE_OPTIONS

MAX_SAMPLES = 500


@config("The judgement")
class EvaluateConfig:
    """What `jobs/evaluate.py` can be told."""

    model: tuple[PathText, ...] = option(
        default=(),
        help="fer2013 or ferplus, which come with the package, or bundles in folders or s3://bucket/prefix (required)",
        metavar="NAME|DIR",
    )
    output: PathText = option(default="", help="folder, s3://, gs:// or az:// address for page and figures (required)", metavar="DIR")
    split: str = option(default="test", help="the split that the models are judged on; all: every image", choices=(*SPLITS, ALL))
    flip: bool = option(default=False, help="average the answers for each face and its mirror image")
    degrade: bool = option(default=False, help="judge on the same faces degraded as well: noise, JPEG, few pixels, a mask")
    group_by: tuple[str, ...] = option(
        default=(), help="columns of --groups: figures for each group, and the largest gap between two", metavar="COLUMN"
    )
    groups: PathText = option(default="", help="CSV with a column image and one of each --group-by", metavar="FILE")
    samples: int = option(default=50, help="random predictions to show", metavar="N", gt=0, le=MAX_SAMPLES)
    seed: int = option(default=0, help="seed of that choice and of the resamples behind the intervals", metavar="N", ge=0)
    data: DatasetConfig = field(default_factory=DatasetConfig)

    def __post_init__(self) -> None:
        check(bool(self.model) and all(self.model), "Which model? Give --model fer2013, or a bundle.")
        check(bool(self.groups) == bool(self.group_by), "Groups take both: give --groups FILE.csv and --group-by COLUMN.")
        check(bool(self.output), "Where to? Give --output FOLDER for the page and the figures.")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as the report records them: all but the address of the store."""
        values = dataclasses.asdict(self)
        values["dataset"] = {key: value for key, value in values.pop("data").items() if key not in STORE_OPTIONS}
        return values
