"""What the relabeling job can be told."""

from __future__ import annotations

from fer_ray.config.jobs.label import LabelConfig, LabelingOptions
from fer_ray.config.options import PathText, check, config, option
from fer_ray.config.stores import StoresConfig


@config("The run")
class RelabelConfig(StoresConfig):
    """What `fer-ray relabel` can be told; what is missing here means what it means in `fer-ray label`."""

    tables: PathText = option(
        default="",
        help="folder or s3://bucket/prefix with the tables of `fer-ray label --keep-crops`; the new rows come there too (required)",
        metavar="DIR",
        group="Input and output",
    )
    model: PathText = option(
        default="",
        help="fer2013, ferplus (bundled), a folder, s3://, gs:// or az://bucket/prefix (default: ferplus)",
        metavar="NAME|DIR",
        group="Input and output",
    )
    publish: str = option(
        default="",
        help="register the tables' files in this Iceberg catalog of ~/.pyiceberg.yaml after the run, as iceberg:team.emotions",
        metavar="iceberg:CATALOG.NAMESPACE",
        group="Input and output",
        kw_only=True,
    )
    flip: bool = option(default=False, help="average the answers for each face and its mirror image, at twice the cost of the model")
    unknown_below: float = option(
        default=0.0, help="call the emotion `unknown` when its probability is below this", metavar="SHARE", ge=0, le=1
    )
    run_id: str = option(
        default="",
        help="name of the run: letters, digits, '.', '_' and '-' (default: the run date and a hash of the settings)",
        metavar="NAME",
    )
    run_date: str = option(default="", help="date of the run (default: today in UTC)", metavar="YYYY-MM-DD")
    latest: bool = option(
        default=True, help="let images_latest and faces_latest show this model; with --no-latest they stay with the one that they show"
    )
    workers: int | None = option(
        default=None,
        help="labeling processes, one CPU each; a cluster may grow for them (default: one for each CPU)",
        metavar="N",
        gt=0,
        group="Resources",
    )
    gpus: float | None = option(
        default=None,
        help="GPUs for the model, in processes of their own; 0.5 is half of one, 0 keeps it on the CPUs (default: those that are free)",
        metavar="N",
        ge=0,
        group="Resources",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.tables), "Which tables? Give --tables DIR, which `fer-ray label --keep-crops` has written.")
        self.as_label_config("crops", self.tables)

    def as_label_config(self, crops: str, tables: str) -> LabelConfig:
        """The same as the settings of a labeling run whose input are the crops."""
        return LabelConfig(
            (crops,),
            tables,
            self.model,
            run_id=self.run_id,
            run_date=self.run_date,
            thumbnails=False,
            latest=self.latest,
            publish=self.publish,
            workers=self.workers,
            gpus=self.gpus,
            labeling=LabelingOptions(flip=self.flip, unknown_below=self.unknown_below),
            **self.store_options(),
        )
