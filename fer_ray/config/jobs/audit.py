"""What the audit can be told."""

from __future__ import annotations

from fer_ray.config.jobs.browse import TablesConfig
from fer_ray.config.options import PathText, check, config, option


@config("The audit")
class AuditConfig(TablesConfig):
    """What `fer-ray audit` can be told."""

    output: PathText = option(
        default="", help="a new folder for the page and the tasks; with --answers the folder of the audit (required)", metavar="DIR"
    )
    faces: int = option(default=300, help="how many faces to ask about", metavar="N", ge=30, le=5000)
    seed: int = option(default=0, help="draws another sample", metavar="N", ge=0)
    answers: PathText = option(default="", help="the file that the page saved, or that Label Studio exported as JSON", metavar="FILE")
    model: PathText = option(
        default="",
        help="with --answers: the model that labeled, to be calibrated (default: the bundled one, where that did)",
        metavar="NAME|DIR",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.output), "Where to? Give --output FOLDER.")
