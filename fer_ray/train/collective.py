"""Several TensorFlow processes that train one network: every step all of them apply the same sum of their gradients.

Keras 3's `fit` cannot do this with `MultiWorkerMirroredStrategy` (keras issue 20585), so the step is written out here. The variables are
ordinary ones: workers start from the same seed, apply the same gradients, and so stay identical. Batch normalisation uses each worker's own
share of the batch, as is usual; its moving statistics become the mean over the workers at the end of every epoch (`loop`).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.train.backend import Backend, BackendConfig

from fer_ray.typing import AnyArray

if TYPE_CHECKING:
    import keras

    from fer_ray.train.strategy import Step


@dataclass
class CollectiveConfig(BackendConfig):  # type: ignore[misc]  # Ray has no types
    """Tells every worker of a Ray Train job the addresses of all, where TensorFlow looks for them: in TF_CONFIG."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _CollectiveBackend


class _CollectiveBackend(Backend):  # type: ignore[misc]  # Ray has no types
    def on_start(self, worker_group: Any, backend_config: CollectiveConfig) -> None:
        addresses = worker_group.execute(_free_address)
        if len(addresses) > 1:
            ray.get([worker_group.execute_single_async(rank, _set_cluster, addresses, rank) for rank in range(len(addresses))])


def _free_address() -> str:
    import socket

    with socket.socket() as opened:
        opened.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{opened.getsockname()[1]}"


def _set_cluster(addresses: list[str], rank: int) -> None:
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}})


class CollectiveWorkers:
    """This process among the workers of a training; must be made before TensorFlow computes anything."""

    def __init__(self, rank: int, count: int) -> None:
        import tensorflow as tf

        self.rank, self.count = rank, count
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy()
        # TensorFlow reduces only what was computed on a device of the strategy, so the values are copied there.
        self._reduce = tf.function(lambda values: self._strategy.run(lambda: _all_reduce(tf.identity(values))))

    def sum(self, array: AnyArray) -> AnyArray:
        """The sum of the workers' arrays, as float32."""
        import tensorflow as tf

        return np.asarray(self._reduce(tf.constant(array, tf.float32)))

    def make_step(self, network: keras.Model, optimizer: keras.optimizers.Optimizer) -> Step:
        """One step of all workers: gradients of the mean loss over everybody's images, summed in one message."""
        import tensorflow as tf

        variables = [variable.value for variable in network.trainable_variables]
        sizes = [int(np.prod(variable.shape)) for variable in variables]

        def gradients_of_all(images: Any, targets: Any, weights: Any) -> Any:
            with tf.GradientTape() as tape:
                losses = tf.nn.softmax_cross_entropy_with_logits(targets, network(images, training=True))
                loss = tf.reduce_mean(losses * weights) / self.count
            gradients = tape.gradient(loss, variables)
            return _all_reduce(tf.concat([tf.reshape(part, [-1]) for part in (loss, *gradients)], axis=0))

        def step(images: Any, targets: Any, weights: Any) -> Any:
            loss, *parts = tf.split(self._strategy.run(gradients_of_all, args=(images, targets, weights)), [1, *sizes])
            gradients = [tf.reshape(part, variable.shape) for part, variable in zip(parts, variables, strict=True)]
            optimizer.apply(gradients, network.trainable_variables)
            return loss[0]

        compiled = tf.function(step)
        return lambda images, targets, weights: float(compiled(images, targets, weights))


def _all_reduce(values: Any) -> Any:
    import tensorflow as tf

    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)
