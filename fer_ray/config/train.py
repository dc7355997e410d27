"""What the training job can be told."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.options import check, check_part, check_positive, option
from fer_ray.config.recipe import Recipe


@dataclass(frozen=True)
class TrainConfig:
    """What `jobs/train.py` can be told."""

    output: str = option("", "folder to write the model bundle to; must not exist yet (required)")
    weights: str = option("imagenet", "initial weights of Keras Applications: imagenet (a download), none, or a Keras weights file")
    start_from: str = option("", "bundle to fine-tune: its network is taken, with a new last layer where the classes differ")
    resume: bool = option(False, "go on from the last checkpoint of a training into the same output that was ended")
    workers: int = option(1, "Ray Train workers with synchronised gradients; each takes a share of every batch")
    cpus_per_worker: float | None = option(None, "CPUs reserved for each worker (default: one, with the threads of an equal share)")
    use_gpu: bool = option(False, "give every worker a GPU of the cluster")
    max_failures: int = option(2, "how often a dead worker is replaced before the training fails")
    data: DatasetConfig = field(default_factory=DatasetConfig)
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        check(bool(self.output), "Where to? Give --output FOLDER for the model bundle.")
        check_part(self, "cpus_per_worker")
        check_positive(self, "workers")
        check(self.max_failures >= 0, "The setting max_failures must not be negative.")
        even = self.recipe.optimization.batch_size % self.workers == 0
        check(even, f"The batch of {self.recipe.optimization.batch_size} images cannot be shared evenly by {self.workers} workers.")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as the bundle records them: all but the places, which say nothing about the model."""
        return {
            "workers": self.workers,
            "dataset": {
                key: value for key, value in dataclasses.asdict(self.data).items() if key not in ("dataset", "ferplus", "s3_endpoint")
            }
            | {"ferplus": bool(self.data.ferplus)},
            **dataclasses.asdict(self.recipe),
        }
