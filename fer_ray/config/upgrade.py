"""What the upgrade of a bundle can be told."""

from __future__ import annotations

from fer_ray.config.options import PathText, check, config, option
from fer_ray.config.stores import StoresConfig


@config("The bundle")
class UpgradeConfig(StoresConfig):
    """What `fer-ray upgrade` can be told."""

    model: PathText = option(default="", help="the bundle, in a folder or at s3://bucket/prefix (required)", metavar="DIR")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.model), "Which bundle? Give --model DIR.")
