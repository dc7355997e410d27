"""Who trains a network together: one worker alone, or several that share what they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from fer_ray.typing import AnyArray, Float32Array

if TYPE_CHECKING:
    import keras

Step = Callable[[Float32Array, Float32Array, Float32Array], float]


class Workers(Protocol):
    """Who trains together: `rank` of `count`. All of them call these methods in the same order."""

    rank: int
    count: int

    def make_step(self, network: keras.Model, optimizer: keras.optimizers.Optimizer) -> Step:
        """A function that takes this worker's images, targets and weights and returns the mean loss over all workers' images."""

    def sum(self, array: AnyArray) -> AnyArray:
        """The sum of the workers' arrays (float32)."""


class SingleWorker:
    """Training alone: Keras' own step, on whatever backend it runs."""

    rank, count = 0, 1

    def make_step(self, network: keras.Model, optimizer: keras.optimizers.Optimizer) -> Step:
        import keras

        network.compile(optimizer, keras.losses.CategoricalCrossentropy(from_logits=True), jit_compile=False)
        return lambda images, targets, weights: float(network.train_on_batch(images, targets, sample_weight=weights))

    def sum(self, array: AnyArray) -> AnyArray:
        return array
