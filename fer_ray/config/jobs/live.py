"""What the live view can be told."""

from __future__ import annotations

import ipaddress
from dataclasses import field

from fer_ray.config.jobs.label import LabelingOptions
from fer_ray.config.options import PathText, check, config, option

MIN_TOKEN = 12  # characters: fewer can be guessed over a network


@config("The live view")
class LiveConfig:
    """What `fer-ray live` can be told."""

    source: PathText = option(default="0", help="a camera by its number, rtsp://..., or a film", metavar="N|ADDRESS|FILE")
    model: PathText = option(default="", help="fer2013, ferplus (bundled) or a folder (default: ferplus)", metavar="NAME|DIR")
    host: str = option(
        default="127.0.0.1", help="address to serve the page at; any other than this machine's own wants a --token", metavar="ADDRESS"
    )
    port: int = option(default=8765, help="port of the page; 0 takes a free one", metavar="N", ge=0, le=65535)
    token: str = option(default="", help="what the page's address must end with: ?token=...", metavar="TEXT")
    record: PathText = option(
        default="", help="write a row for each face of each frame into this Parquet file; nothing is stored otherwise", metavar="FILE"
    )
    smoothing: float = option(default=0.5, help="time over which the shown emotions follow the face's", metavar="SECONDS", ge=0, le=60)
    limit: int | None = option(default=None, help="end after so many labeled frames", metavar="N", gt=0)
    labeling: LabelingOptions = field(default_factory=LabelingOptions)

    def __post_init__(self) -> None:
        check(not self.token or len(self.token) >= MIN_TOKEN, f"The setting token needs {MIN_TOKEN} characters or more.")
        check(
            self.is_private or bool(self.token),
            f"At the address {self.host} others can see the camera: give --token TEXT with {MIN_TOKEN} characters or more.",
        )

    @property
    def is_private(self) -> bool:
        """Whether only this machine can open the page."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
