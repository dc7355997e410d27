"""What the calibration of a bundle can be told."""

from __future__ import annotations

from dataclasses import field

from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.options import PathText, check, config, option


@config("The calibration")
class CalibrateConfig:
    """What `fer-ray calibrate` can be told."""

    model: PathText = option(default="", help="the bundle: fer2013, ferplus, a folder, s3://bucket/prefix (required)", metavar="NAME|DIR")
    output: PathText = option(default="", help="folder to write the calibrated bundle to; must not exist yet (required)", metavar="DIR")
    views: int = option(default=6, help="how many poor views of each face the confidences are fitted to", metavar="N", gt=0)
    balance: float = option(
        default=0.0,
        help="how much more faces of rare emotions count, so that these are named more often: the inverse of the share to this power",
        metavar="POWER",
        ge=0,
        le=1,
    )
    seed: int = option(default=0, help="seed of these views", metavar="N", ge=0)
    data: DatasetConfig = field(default_factory=DatasetConfig)

    def __post_init__(self) -> None:
        check(bool(self.model), "Which model? Give --model BUNDLE.")
        check(bool(self.output), "Where to? Give --output FOLDER for the model bundle.")
