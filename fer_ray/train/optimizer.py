"""How the weights move: the optimizer with its average of the weights, and the learning rate from step to step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fer_ray.config.recipe import PRETRAINED, OptimizationConfig, Recipe
from fer_ray.models.architectures import BASE

if TYPE_CHECKING:
    import keras

MAX_WARMUP_SHARE = 0.25  # of all steps: a try of two epochs would end before its learning rate has risen


def make_optimizer(settings: OptimizationConfig) -> keras.optimizers.Optimizer:
    """The optimizer of the settings; weights of normalisation layers and biases do not decay."""
    import keras

    average = {"use_ema": True, "ema_momentum": settings.weight_average} if settings.weight_average else {}
    shared: dict[str, Any] = {"learning_rate": settings.learning_rate, "clipnorm": 1.0, **average}
    if settings.optimizer == "sgd":
        shared |= {"momentum": 0.9, "nesterov": True, "weight_decay": settings.weight_decay or None}
    elif settings.optimizer == "adamw":
        shared |= {"weight_decay": settings.weight_decay}
    kind = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}[settings.optimizer]
    optimizer: keras.optimizers.Optimizer = _with_growing_average(kind)(**shared)
    if settings.weight_decay and settings.optimizer != "adam":
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def _with_growing_average(kind: type[keras.optimizers.Optimizer]) -> type[keras.optimizers.Optimizer]:
    """The optimizer class, with a moving average of the weights over few steps at first.

    With Keras' constant decay of 0.995 the random weights of the beginning would weigh on the average for epochs. As in
    TensorFlow's `ExponentialMovingAverage`, the decay is (1 + steps) / (10 + steps) until it reaches the one of the settings.
    """
    from keras import ops

    class WithGrowingAverage(kind):  # type: ignore[misc]  # the three classes share all that is used here
        @property
        def ema_momentum(self) -> Any:
            steps = ops.cast(self.iterations, "float32")
            return ops.minimum(self._final_ema_momentum, (1 + steps) / (10 + steps))

        @ema_momentum.setter
        def ema_momentum(self, decay: float) -> None:
            self._final_ema_momentum = decay

    return WithGrowingAverage


def set_trainable(network: keras.Model, recipe: Recipe, frozen_share: float) -> None:
    """Freeze a share of the layers of the base, counted from the input; the base of our own networks is all but the last layer."""
    layers = network.get_layer(BASE).layers if recipe.model.architecture in PRETRAINED else network.layers[:-1]
    network.trainable = True
    for index, layer in enumerate(layers):
        layer.trainable = index >= round(frozen_share * len(layers))


class LearningRate:
    """Linear warm-up, then a cosine to zero over all steps, or a factor whenever validation accuracy stops rising.

    The warm-up takes a quarter of all steps at most, however many epochs are asked for.
    """

    def __init__(self, settings: OptimizationConfig, steps_per_epoch: int) -> None:
        self.settings = settings
        self.total_steps = settings.epochs * steps_per_epoch
        self.warmup_steps = round(min(settings.warmup_epochs * steps_per_epoch, MAX_WARMUP_SHARE * self.total_steps))
        self.steps = 0
        self.factor = 1.0
        self.epochs_without_gain = 0
        self.value = 0.0

    def step(self) -> float:
        """The rate of the step that comes next."""
        self.steps += 1
        if self.steps <= self.warmup_steps:
            share = self.steps / self.warmup_steps
        elif self.settings.schedule == "cosine":
            progress = (self.steps - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
            share = 0.5 * (1 + math.cos(math.pi * progress))
        else:
            share = self.factor
        self.value = self.settings.learning_rate * share
        return self.value

    def end_epoch(self, improved: bool) -> None:
        """Lower the factor when it is time to."""
        self.epochs_without_gain = 0 if improved else self.epochs_without_gain + 1
        if self.epochs_without_gain >= self.settings.plateau_patience:
            self.factor *= self.settings.plateau_factor
            self.epochs_without_gain = 0
