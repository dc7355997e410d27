"""The loop that fits a network to labeled faces: arrays and a recipe in, one epoch after the other out. No Ray, any Keras backend."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fer_ray.config.recipe import PRETRAINED, OptimizationConfig, Recipe
from fer_ray.data.dataset import Dataset, Split
from fer_ray.errors import TrainingError
from fer_ray.models import metrics
from fer_ray.models.architectures import BASE, build
from fer_ray.models.bundle import predict_logits
from fer_ray.train.augment import training_batches
from fer_ray.typing import AnyArray, Float32Array

if TYPE_CHECKING:
    import keras

Step = Callable[[Float32Array, Float32Array, Float32Array], float]
State = dict[str, AnyArray]


class Workers(Protocol):
    """Who trains together: `rank` of `count`. All of them call these methods in the same order."""

    rank: int
    count: int

    def make_step(self, network: keras.Model, optimizer: keras.optimizers.Optimizer) -> Step:
        """A function that takes this worker's images, targets and weights and gives the mean loss over all workers' images."""

    def add(self, array: AnyArray) -> AnyArray:
        """The sum of the workers' arrays (float32)."""


class OneWorker:
    """Training alone: Keras' own step, on whatever backend it runs."""

    rank, count = 0, 1

    def make_step(self, network: keras.Model, optimizer: keras.optimizers.Optimizer) -> Step:
        import keras

        network.compile(optimizer, keras.losses.CategoricalCrossentropy(from_logits=True), jit_compile=False)
        return lambda images, targets, weights: float(network.train_on_batch(images, targets, sample_weight=weights))

    def add(self, array: AnyArray) -> AnyArray:
        return array


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images: its figures, the weights as they would be saved, and what is needed to go on from here."""

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
        figures = {name: self.figures[name] for name in ("accuracy", "macro_f1", "nll", "ece")}
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
    """Fit a network (a new one unless given) and yield after every epoch until the epochs or the patience are used up.

    With `until`, training pauses after that epoch; the schedule is that of all epochs.

    The figures and the weights of an epoch are those of the weight average, where there is one. With the `state` of an
    epoch, training goes on after it.

    Raises:
        TrainingError: the loss is no longer a number.
    """
    workers = workers or OneWorker()
    network = network or make_network(recipe, len(data.classes))
    fit = _Fit(network, recipe, len(data.train), workers)
    if state:
        fit.restore(state)
    while fit.epoch < min(recipe.optimization.epochs, until or recipe.optimization.epochs) and fit.stale < recipe.optimization.patience:
        started = time.monotonic()
        fit.begin_epoch()
        loss = fit.run_epoch(data.train)
        raw_weights = fit.use_average()
        logits = _shared_logits(network, data.validation, workers)
        figures = metrics.compute_metrics(logits, data.validation.labels)
        weights = network.get_weights()
        network.set_weights(raw_weights)
        improved = fit.end_epoch(figures["accuracy"])
        yield Epoch(fit.epoch, loss, figures, fit.rate.value, time.monotonic() - started, improved, weights, fit.state())


def make_network(recipe: Recipe, class_count: int, weights: str = "none") -> keras.Model:
    """A new network of the recipe, with its seed and its arithmetic."""
    import keras

    keras.utils.set_random_seed(recipe.optimization.seed)
    coarse = recipe.optimization.precision == "bfloat16" or (recipe.optimization.precision == "auto" and gains_from_bfloat16())
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if coarse else "float32")
    try:
        return build(recipe.model, class_count, weights)
    finally:
        keras.mixed_precision.set_global_policy("float32")


def gains_from_bfloat16() -> bool:
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


class _Fit:
    """What changes while a network is fitted."""

    def __init__(self, network: keras.Model, recipe: Recipe, image_count: int, workers: Workers) -> None:
        self.network, self.recipe, self.workers = network, recipe, workers
        self.settings = recipe.optimization
        self.rate = LearningRate(self.settings, image_count // self.settings.batch_size)
        self.epoch, self.stale, self.best = 0, 0, -1.0
        self._make_step()

    @property
    def frozen(self) -> bool:
        """Whether the base rests in the epoch that comes next."""
        return self.epoch < self.settings.frozen_epochs

    def _make_step(self) -> None:
        set_trainable(self.network, self.recipe, 1.0 if self.frozen else self.settings.fine_tune_from)
        self.optimizer = make_optimizer(self.settings)
        self.optimizer.build(self.network.trainable_variables)
        self.step = self.workers.make_step(self.network, self.optimizer)

    def begin_epoch(self) -> None:
        if self.epoch and self.epoch == self.settings.frozen_epochs:
            self._make_step()

    def run_epoch(self, split: Split) -> float:
        losses = []
        for images, targets, weights in training_batches(split, self.recipe, self.epoch, self.workers.rank, self.workers.count):
            self.optimizer.learning_rate.assign(self.rate.step())
            loss = self.step(images, targets, weights)
            if not math.isfinite(loss):
                remedy = "lower --learning-rate or use --precision float32"
                raise TrainingError(f"The loss is no longer a number in epoch {self.epoch + 1}: {remedy}.")
            losses.append(loss)
        self._average_statistics()
        return float(np.mean(losses))

    def _average_statistics(self) -> None:
        """Every worker has seen other images, so the moving statistics of normalisation layers become their mean everywhere."""
        if self.workers.count == 1:
            return
        variables = [variable for variable in self.network.non_trainable_variables if variable.dtype.startswith("float")]
        flat = np.concatenate([np.asarray(variable, np.float32).reshape(-1) for variable in variables])
        means = np.split(self.workers.add(flat) / self.workers.count, np.cumsum([int(np.prod(v.shape)) for v in variables])[:-1])
        for variable, mean in zip(variables, means, strict=True):
            variable.assign(mean.reshape(variable.shape))

    def use_average(self) -> list[AnyArray]:
        """Put the weight average into the network; gives the weights that were there."""
        raw: list[AnyArray] = self.network.get_weights()
        if self.settings.weight_average:
            self.optimizer.finalize_variable_values(self.network.trainable_variables)
        return raw

    def end_epoch(self, accuracy: float) -> bool:
        self.epoch += 1
        improved = accuracy > self.best
        self.best, self.stale = (accuracy, 0) if improved else (self.best, self.stale + 1)
        self.rate.end_epoch(improved)
        return improved

    def state(self) -> State:
        counters = np.array([self.epoch, self.stale, self.best, self.rate.steps, self.rate.factor, self.rate.stale], np.float64)
        weights = {f"weight_{i}": value for i, value in enumerate(self.network.get_weights())}
        optimizer = {f"optimizer_{i}": np.asarray(variable) for i, variable in enumerate(self.optimizer.variables)}
        seeds = {f"seed_{i}": np.asarray(variable) for i, variable in enumerate(self._seeds())}
        return {"counters": counters, **weights, **optimizer, **seeds}

    def _seeds(self) -> list[Any]:
        """The states of the random generators of dropout layers."""
        return [variable for variable in self.network.variables if "int" in variable.dtype]

    def restore(self, state: State) -> None:
        epoch, stale, self.best, steps, self.rate.factor, rate_stale = (float(value) for value in state["counters"])
        self.epoch, self.stale, self.rate.steps, self.rate.stale = int(epoch), int(stale), int(steps), int(rate_stale)
        if not self.frozen and self.settings.frozen_epochs and self.epoch > self.settings.frozen_epochs:
            self._make_step()
        self.network.set_weights([state[f"weight_{i}"] for i in range(len(self.network.weights))])
        for i, variable in enumerate(self._seeds()):
            variable.assign(state[f"seed_{i}"])
        if self.epoch == self.settings.frozen_epochs:
            return  # the optimizer is made anew when the base wakes up
        for i, variable in enumerate(self.optimizer.variables):
            variable.assign(state[f"optimizer_{i}"])


def set_trainable(network: keras.Model, recipe: Recipe, frozen_share: float) -> None:
    """Freeze this share of the layers of the base, counted from the input; the base of our own networks is all but the last layer."""
    layers = network.get_layer(BASE).layers if recipe.model.architecture in PRETRAINED else network.layers[:-1]
    network.trainable = True
    for index, layer in enumerate(layers):
        layer.trainable = index >= round(frozen_share * len(layers))


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
    optimizer: keras.optimizers.Optimizer = type(kind.__name__, (_GrowingAverage, kind), {})(**shared)
    if settings.weight_decay and settings.optimizer != "adam":
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


class _GrowingAverage:
    """A moving average of the weights that is one of few steps at first; the first steps would weigh on it for epochs otherwise."""

    iterations: keras.Variable

    @property
    def ema_momentum(self) -> Any:
        from keras import ops

        steps = ops.cast(self.iterations, "float32")
        return ops.minimum(self._most, (1 + steps) / (10 + steps))

    @ema_momentum.setter
    def ema_momentum(self, most: float) -> None:
        self._most = most


class LearningRate:
    """Linear warm-up, then a cosine to zero over all steps, or a factor whenever validation accuracy stands still."""

    def __init__(self, settings: OptimizationConfig, steps_per_epoch: int) -> None:
        self.settings = settings
        self.warmup_steps = round(settings.warmup_epochs * steps_per_epoch)
        self.total_steps = settings.epochs * steps_per_epoch
        self.steps, self.factor, self.stale, self.value = 0, 1.0, 0, 0.0

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
        self.stale = 0 if improved else self.stale + 1
        if self.stale >= self.settings.plateau_patience:
            self.factor, self.stale = self.factor * self.settings.plateau_factor, 0


def _shared_logits(network: keras.Model, split: Split, workers: Workers) -> AnyArray:
    """Logits of all images of the split, each worker computing its share."""
    mine = np.arange(workers.rank, len(split), workers.count)
    logits = np.zeros((len(split), split.targets.shape[1]), np.float32)
    logits[mine] = predict_logits(network, split.images[mine])
    return workers.add(logits)
