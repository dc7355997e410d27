"""What changes while a network is trained: its weights, the optimizer, the learning rate, and their state between epochs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from fer_ray.config.recipe import Recipe
from fer_ray.data.dataset import Split
from fer_ray.errors import TrainingError
from fer_ray.train.augment import Batch, training_batches
from fer_ray.train.optimizer import LearningRate, make_optimizer, set_trainable
from fer_ray.train.strategy import Workers
from fer_ray.typing import AnyArray, Float32Array

if TYPE_CHECKING:
    import keras

State = dict[str, AnyArray]  # of a training after an epoch: arrays by name, as a checkpoint stores them

STATISTICS_IMAGES = 1024  # enough for the mean and the variance of every channel
SETTLED = 3  # time constants of a moving average, after which a twentieth of its start is left


class Learner:
    """What changes while a network is trained: weights, optimizer, learning rate, and what the epochs so far have come to."""

    def __init__(self, network: keras.Model, recipe: Recipe, image_count: int, workers: Workers) -> None:
        self.network, self.recipe, self.workers = network, recipe, workers
        self.settings = recipe.optimization
        self.rate = LearningRate(self.settings, image_count // self.settings.batch_size)
        self.epoch = 0
        self.epochs_without_gain = 0
        self.best_accuracy = -1.0
        self._set_up_step()

    @property
    def has_ended(self) -> bool:
        """Whether the epochs or the patience are used up."""
        return self.epoch >= self.settings.epochs or self.epochs_without_gain >= self.settings.patience

    def _set_up_step(self) -> None:
        frozen = self.epoch < self.settings.frozen_epochs
        set_trainable(self.network, self.recipe, 1.0 if frozen else self.settings.fine_tune_from)
        self.optimizer = make_optimizer(self.settings)
        self.optimizer.build(self.network.trainable_variables)
        self.step = self.workers.make_step(self.network, self.optimizer)
        self.forward = _forward_of_training(self.network)

    def train_epoch(self, split: Split) -> float:
        """One pass over the images; returns the mean loss.

        Raises:
            TrainingError: the loss is no longer a number.
        """
        if self.epoch and self.epoch == self.settings.frozen_epochs:
            self._set_up_step()
        losses = []
        for images, targets, weights in self._batches(split):
            self.optimizer.learning_rate.assign(self.rate.step())
            loss = self.step(images, targets, weights)
            if not math.isfinite(loss):
                remedy = "lower --learning-rate or use --precision float32"
                raise TrainingError(f"The loss is no longer a number in epoch {self.epoch + 1}: {remedy}.")
            losses.append(loss)
        self._average_over_workers([variable for variable in self.network.non_trainable_variables if variable.dtype.startswith("float")])
        return float(np.mean(losses))

    def _batches(self, split: Split) -> Iterator[Batch]:
        return training_batches(split, self.recipe, self.epoch, self.workers.rank, self.workers.count)

    def _average_over_workers(self, variables: Sequence[keras.Variable]) -> None:
        """Every worker has seen other images, so what layers measured on them becomes the mean over the workers."""
        if self.workers.count == 1 or not variables:
            return
        flat = np.concatenate([np.asarray(variable, np.float32).reshape(-1) for variable in variables])
        means = np.split(self.workers.sum(flat) / self.workers.count, np.cumsum([int(np.prod(v.shape)) for v in variables])[:-1])
        for variable, mean in zip(variables, means, strict=True):
            variable.assign(mean.reshape(variable.shape))

    @contextmanager
    def averaged_weights(self, split: Split) -> Iterator[None]:
        """Put the weight average into the network for a while, with statistics that belong to it."""
        raw: list[AnyArray] = self.network.get_weights()
        if self.settings.weight_average:
            self.optimizer.finalize_variable_values(self.network.trainable_variables)
        self._measure_statistics(split)
        yield
        self.network.set_weights(raw)

    def _measure_statistics(self, split: Split) -> None:
        """Measure mean and variance for batch normalisation anew in the first steps of a training.

        The moving ones begin at 0 and 1 and need 1 / (1 - momentum) steps, here 50, to come near those of the images: until then
        the network would answer by chance whatever it has learnt (Wu and Johnson 2021, arXiv 2105.07576, section 3).
        """
        layers = [layer for layer in self.network.layers if hasattr(layer, "moving_variance") and layer.trainable]
        if not layers or self.rate.steps > SETTLED / (1 - max(layer.momentum for layer in layers)):
            return
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.momentum = 0.0  # the moving statistics are then those of the last batch
        variables = [variable for layer in layers for variable in (layer.moving_mean, layer.moving_variance)]
        measured = []
        for images, _, _ in itertools.islice(self._batches(split), -(-STATISTICS_IMAGES // self.settings.batch_size)):
            self.forward(images)
            measured.append([np.asarray(variable).copy() for variable in variables])
        for variable, values in zip(variables, zip(*measured, strict=True), strict=True):
            variable.assign(np.mean(values, axis=0))
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        self._average_over_workers(variables)

    def end_epoch(self, accuracy: float) -> bool:
        """Count the epoch with the accuracy that epochs are chosen by; returns whether it is the best so far."""
        self.epoch += 1
        improved = accuracy > self.best_accuracy
        if improved:
            self.best_accuracy = accuracy
        self.epochs_without_gain = 0 if improved else self.epochs_without_gain + 1
        self.rate.end_epoch(improved)
        return improved

    def state(self) -> State:
        """Everything that `restore` needs."""
        rate = self.rate
        counters = [self.epoch, self.epochs_without_gain, self.best_accuracy, rate.steps, rate.factor, rate.epochs_without_gain]
        weights = {f"weight_{i}": value for i, value in enumerate(self.network.get_weights())}
        optimizer = {f"optimizer_{i}": np.asarray(variable) for i, variable in enumerate(self.optimizer.variables)}
        seeds = {f"seed_{i}": np.asarray(variable) for i, variable in enumerate(self._seeds())}
        return {"counters": np.array(counters, np.float64), **weights, **optimizer, **seeds}

    def _seeds(self) -> list[keras.Variable]:
        """The states of the random generators of dropout layers."""
        return [variable for variable in self.network.variables if "int" in variable.dtype]

    def restore(self, state: State) -> None:
        """Resume after the epoch that has this state."""
        epoch, without_gain, self.best_accuracy, steps, self.rate.factor, rate_without_gain = (float(value) for value in state["counters"])
        self.epoch, self.epochs_without_gain = int(epoch), int(without_gain)
        self.rate.steps, self.rate.epochs_without_gain = int(steps), int(rate_without_gain)
        if 0 < self.settings.frozen_epochs < self.epoch:
            self._set_up_step()
        self.network.set_weights([state[f"weight_{i}"] for i in range(len(self.network.weights))])
        for i, variable in enumerate(self._seeds()):
            variable.assign(state[f"seed_{i}"])
        if self.epoch == self.settings.frozen_epochs:
            return  # the next epoch sets up a new optimizer, since the base is trained from then on
        for i, variable in enumerate(self.optimizer.variables):
            variable.assign(state[f"optimizer_{i}"])


def _forward_of_training(network: keras.Model) -> Callable[[Float32Array], Any]:
    """What layers see in a step, without the step; TensorFlow alone computes single operations many times slower than a graph."""
    import keras

    def forward(images: Float32Array) -> Any:
        return network(images, training=True)

    if keras.backend.backend() != "tensorflow":
        return forward
    import tensorflow as tf

    return tf.function(forward)  # type: ignore[no-any-return]  # TensorFlow has no types
