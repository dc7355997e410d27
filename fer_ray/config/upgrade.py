"""What the upgrade of a bundle can be told."""

from __future__ import annotations

from fer_ray.config.options import PathText, check, config, option


@config("The bundle")
class UpgradeConfig:
    """What `fer-ray upgrade` can be told."""

    model: PathText = option(default="", help="the bundle, in a folder or at s3://bucket/prefix (required)", metavar="DIR")
    s3_endpoint: str = option(default="", help="address of an S3-compatible store (default: AWS_ENDPOINT_URL, or AWS)", metavar="URL")

    def __post_init__(self) -> None:
        check(bool(self.model), "Which bundle? Give --model DIR.")
