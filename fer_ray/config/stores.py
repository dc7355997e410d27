"""How a job gets at stores."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from fer_ray.config.options import check, config, option

_ENDPOINT_RULE = "The S3 endpoint must look like https://store.example.org:9000, without credentials in it."
STORE_OPTIONS = ("s3_endpoint", "public_buckets", "requester_pays")


@config("Stores")
class StoresConfig:
    """How a job gets at stores; a part of the classes of jobs that read from them."""

    s3_endpoint: str = option(
        default="",
        help="address of an S3-compatible store (default: AWS_ENDPOINT_URL, or AWS)",
        metavar="URL",
        group="Stores",
        kw_only=True,
    )
    public_buckets: tuple[str, ...] = option(
        default=(), help="buckets to read without credentials", metavar="NAME", group="Stores", kw_only=True
    )
    requester_pays: bool = option(
        default=False, help="pay for the requests where the owner of a bucket in S3 wants that", group="Stores", kw_only=True
    )

    def __post_init__(self) -> None:
        check(not self.s3_endpoint or _is_plain(self.s3_endpoint), _ENDPOINT_RULE)

    def store_options(self) -> dict[str, Any]:
        """For another class of options of the same job."""
        return {name: getattr(self, name) for name in STORE_OPTIONS}


def _is_plain(address: str) -> bool:
    """Whether this is the address of a server and nothing else."""
    try:
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
    except ValueError:  # a port or brackets that cannot be
        return False
