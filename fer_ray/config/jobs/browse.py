"""What the jobs that look at tables can be told."""

from __future__ import annotations

from fer_ray.config.options import PathText, check, config, option
from fer_ray.config.stores import StoresConfig

MAX_FACES = 100_000
MAX_SHEET = 2_000  # faces of a contact sheet: 40 megapixels


@config("The tables")
class TablesConfig(StoresConfig):
    """Which tables; a part of the classes of jobs that look at them."""

    tables: PathText = option(
        default="", help="folder or s3://bucket/prefix with the tables, the output of `fer-ray label` (required)", metavar="DIR"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.tables), "Which tables? Give --tables DIR, the output of `fer-ray label`.")


@config("The runs")
class RunsConfig(TablesConfig):
    """What `fer-ray runs` can be told."""

    limit: int = option(default=20, help="show the newest N", metavar="N", gt=0)


@config("The run")
class ShowConfig(TablesConfig):
    """What `fer-ray show` can be told."""

    run_id: str = option(default="", help="the run (default: the newest)", metavar="RUN")


@config("The run")
class ErrorsConfig(ShowConfig):
    """What `fer-ray errors` can be told."""

    limit: int = option(default=20, help="name so many images of each reason", metavar="N", ge=0)


@config("The faces")
class CropsConfig(TablesConfig):
    """What `fer-ray crops` can be told."""

    where: str = option(
        default="true",
        help="condition in SQL on the columns of faces_latest, such as \"emotion = 'fear' AND confidence < 0.5\"",
        metavar="SQL",
    )
    order_by: str = option(
        default="image_uri, face_index",
        help='what the faces are sorted by, such as "confidence" for the least certain first',
        metavar="SQL",
    )
    output: PathText = option(
        default="", help="a new folder for the faces as files, or a file .jpg or .png for a contact sheet (required)", metavar="DIR|FILE"
    )
    limit: int = option(default=200, help="take the first N", metavar="N", gt=0, le=MAX_FACES)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.output), "Where to? Give --output FOLDER for files, or --output FILE.jpg for a contact sheet.")
        check(
            not self.is_sheet or self.limit <= MAX_SHEET,
            f"A contact sheet holds at most {MAX_SHEET:,} faces: lower --limit, or name a folder.",
        )

    @property
    def is_sheet(self) -> bool:
        """Whether the faces go onto a contact sheet."""
        return self.output.lower().endswith((".jpg", ".jpeg", ".png"))
