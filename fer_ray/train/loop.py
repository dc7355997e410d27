"""The loop that trains a network on labeled faces: arrays and a recipe in, one epoch after the other out. No Ray, any Keras backend."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fer_ray.config.recipe import Recipe
from fer_ray.data.dataset import Dataset, Split
from fer_ray.data.disk_images import empty_images
from fer_ray.models import metrics
from fer_ray.models.architectures import build
from fer_ray.models.keras_bundle import predict_logits
from fer_ray.train.augment import degrade
from fer_ray.train.learner import Learner, State
from fer_ray.train.strategy import SingleWorker, Workers
from fer_ray.typing import AnyArray

if TYPE_CHECKING:
    import keras

DEGRADED = "degraded_accuracy"  # on validation images that were made poor


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images: its figures, the weights as they would be saved, and what is needed to resume after it."""

    number: int
    train_loss: float
    figures: dict[str, float]
    learning_rate: float
    seconds: float
    improved: bool
    weights: list[AnyArray]
    state: State

    def row(self) -> dict[str, Any]:
        """The epoch as a row of `history.parquet`."""
        figures = {name: self.figures[name] for name in ("accuracy", "macro_f1", "nll", "ece", DEGRADED) if name in self.figures}
        return {
            "epoch": self.number,
            "train_loss": self.train_loss,
            "learning_rate": self.learning_rate,
            "seconds": self.seconds,
            **figures,
            "improved": self.improved,
        }


def train_epochs(
    data: Dataset,
    recipe: Recipe,
    network: keras.Model | None = None,
    state: State | None = None,
    workers: Workers | None = None,
    until: int | None = None,
) -> Iterator[Epoch]:
    """Train a network and yield after every epoch, until the epochs or the patience are used up.

    The figures and the weights of an epoch are those of the weight average, where there is one. Where training images are made
    poor, so are the validation images once more, and the best epoch has the highest mean of both accuracies.

    Args:
        data: The splits `train` and `validation`.
        recipe: The model, its augmentation, and how its weights are found.
        network: The network to train; a new one by default.
        state: The state of an epoch, after which the training resumes.
        workers: Who trains together; by default this process alone.
        until: Pause after this epoch; the learning rate is still scheduled over all epochs of the recipe.

    Yields:
        One `Epoch` after the other.

    Raises:
        TrainingError: the loss is no longer a number.
    """
    workers = workers or SingleWorker()
    network = network or make_network(recipe, len(data.classes))
    learner = Learner(network, recipe, len(data.train), workers)
    if state:
        learner.restore(state)
    poor = _poor(data.validation, recipe)
    while not learner.has_ended and (until is None or learner.epoch < until):
        started = time.monotonic()
        loss = learner.train_epoch(data.train)
        with learner.averaged_weights(data.train):
            figures = metrics.compute_metrics(_shared_logits(network, data.validation, workers), data.validation.labels)
            if poor:
                figures[DEGRADED] = float((_shared_logits(network, poor, workers).argmax(1) == poor.labels).mean())
            weights = network.get_weights()
        improved = learner.end_epoch(float(np.mean([figures[name] for name in ("accuracy", DEGRADED) if name in figures])))
        seconds = time.monotonic() - started
        yield Epoch(learner.epoch, loss, figures, learner.rate.value, seconds, improved, weights, learner.state())


def _poor(split: Split, recipe: Recipe) -> Split | None:
    """The same images in every epoch, all made poor as those of training are."""
    if not recipe.augmentation.degrade:
        return None
    generator = np.random.default_rng(recipe.optimization.seed)
    images = empty_images(split.images.shape)
    for position, image in enumerate(split.images):
        images[position] = degrade(image, recipe.augmentation, generator)
    return replace(split, images=images)


def make_network(recipe: Recipe, class_count: int, weights: str = "none") -> keras.Model:
    """A new network of the recipe, with its seed and its arithmetic."""
    import keras

    keras.utils.set_random_seed(recipe.optimization.seed)
    coarse = recipe.optimization.precision == "bfloat16" or (recipe.optimization.precision == "auto" and has_fast_bfloat16())
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if coarse else "float32")
    try:
        return build(recipe.model, class_count, weights)
    finally:
        keras.mixed_precision.set_global_policy("float32")


def has_fast_bfloat16() -> bool:
    """Whether this machine calculates faster in bfloat16: CPUs with such instructions, and GPUs."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            return True
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _shared_logits(network: keras.Model, split: Split, workers: Workers) -> AnyArray:
    """Logits of all images of the split, each worker computing its share."""
    logits = np.zeros((len(split), split.targets.shape[1]), np.float32)
    logits[workers.rank :: workers.count] = predict_logits(network, split.images[workers.rank :: workers.count])
    return workers.sum(logits)
