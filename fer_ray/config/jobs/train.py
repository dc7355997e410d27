"""What the training job can be told."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Any

from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.options import PathText, check, check_part, check_tracker, config, option, seconds_of
from fer_ray.config.recipe import Recipe
from fer_ray.config.stores import STORE_OPTIONS


@config("The training")
class TrainConfig:
    """What `jobs/train.py` can be told."""

    output: PathText = option(
        default="", help="folder, s3://, gs:// or az://bucket/prefix to write the model bundle to; must be new (required)", metavar="DIR"
    )
    weights: PathText = option(
        default="imagenet",
        help="initial weights of Keras Applications: imagenet (a download), none, or a Keras weights file",
        metavar="FILE",
    )
    start_from: PathText = option(
        default="", help="bundle to fine-tune: its network is taken, with a new last layer where the classes differ", metavar="DIR"
    )
    teacher: tuple[PathText, ...] = option(
        default=(), help="bundles whose answers to the clean training images are learnt beside their labels", metavar="NAME|DIR"
    )
    teacher_share: tuple[float, ...] = option(
        default=(), help="share of each teacher's answers in the targets (default: half, in equal parts)", metavar="SHARE"
    )
    resume: bool = option(default=False, help="go on from the last checkpoint of a training into the same output that was ended")
    track: str = option(
        default="",
        help="send the figures of every epoch to mlflow:URI (a server, sqlite:///FILE or a folder) or wandb:PROJECT",
        metavar="SYSTEM:PLACE",
    )
    workers: int = option(
        default=1,
        help="Ray Train workers with synchronised gradients; each takes a share of every batch",
        metavar="N",
        gt=0,
        group="Resources",
    )
    cpus_per_worker: float | None = option(
        default=None,
        help="CPUs reserved for each worker (default: one, with the threads of an equal share)",
        metavar="N",
        group="Resources",
    )
    use_gpu: bool = option(default=False, help="give every worker a GPU of the cluster", group="Resources")
    max_failures: int = option(
        default=2, help="how often a dead worker is replaced before the training fails", metavar="N", ge=0, group="Resources"
    )
    wait_for_machines: str = option(
        default="1h",
        help="end with an error after waiting so long for CPUs or GPUs that never come, such as 30m",
        metavar="TIME",
        group="Resources",
    )
    data: DatasetConfig = field(default_factory=DatasetConfig)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        check(bool(self.output), "Where to? Give --output FOLDER for the model bundle.")
        check_part(self, "cpus_per_worker")
        check_tracker(self.track)
        seconds_of("setting wait_for_machines", self.wait_for_machines)
        shares = self.teacher_share
        check(not shares or len(shares) == len(self.teacher), "The setting teacher_share needs one share for each teacher.")
        check(
            all(share > 0 for share in shares) and sum(shares) <= 1,
            f"The teachers' shares must be above 0 and 1 at most in all, not {list(shares)}.",
        )
        even = self.recipe.optimization.batch_size % self.workers == 0
        check(even, f"The batch of {self.recipe.optimization.batch_size} images cannot be shared evenly by {self.workers} workers.")

    @property
    def teacher_shares(self) -> tuple[float, ...]:
        """The share of each teacher in the targets; the labels have the rest."""
        return self.teacher_share or (0.5 / len(self.teacher),) * len(self.teacher) if self.teacher else ()

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as the bundle records them: all but the places, which say nothing about the model."""
        return {
            "workers": self.workers,
            "teacher_share": self.teacher_shares,
            "dataset": {
                key: bool(value) if key in ("ferplus", "labels") else value
                for key, value in self.data.to_dict().items()
                if key not in ("dataset", *STORE_OPTIONS)
            },
            **dataclasses.asdict(self.recipe),
        }
