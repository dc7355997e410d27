"""What forgetting can be told."""

from __future__ import annotations

from fer_ray.config.jobs.browse import TablesConfig
from fer_ray.config.options import PathText, check, config, option


@config("What to forget")
class ForgetConfig(TablesConfig):
    """What `fer-ray forget` can be told."""

    addresses: tuple[PathText, ...] = option(
        default=(),
        help="images, films, archives, images in archives (x.tar#name), or folders with all that is in them; as image_uri has them",
        metavar="ADDRESS",
    )
    list: PathText = option(default="", help="a list of such addresses, in any form that `label --input` takes", metavar="FILE")
    drop_unfinished: bool = option(
        default=False, help="remove the work of unfinished runs that hold such images, which then begin again; no run may be at work"
    )
    dry_run: bool = option(default=False, help="say what would be removed; writes nothing")

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.addresses or self.list), "What to forget? Give addresses, or --list FILE.")
