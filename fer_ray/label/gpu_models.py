"""The model on GPUs: processes that hold it there, and what stands for it in the labeling processes, which stay on CPUs."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from fer_ray.cluster import exceeds_this_machine
from fer_ray.config.crop import CropGeometry
from fer_ray.errors import UsageError
from fer_ray.label.run import Run
from fer_ray.models import bundle
from fer_ray.models.bundle import Bundle
from fer_ray.models.onnx_network import Device, OnnxNetwork
from fer_ray.text import plural
from fer_ray.typing import Float32Array, Float64Array, UInt8Array

GPU = "GPU"
LOGGER = logging.getLogger(__name__)
WAIT_SECONDS = 120  # for GPUs that are free, and for a sign of life
WAIT_FOR_MACHINES_SECONDS = 900  # where the cluster starts them first
ANSWER_SECONDS = 600  # for one batch of crops, behind those of all other processes; a machine that dies is noticed at once


@dataclass(frozen=True)
class ModelOnGpus:
    """The processes that hold the model, and what a labeling process must know of it; pickled to every one of them."""

    actors: Sequence[Any]
    image_size: int
    color: str
    crop: CropGeometry
    classes: tuple[str, ...]
    model_version: str

    def lost(self) -> int:
        """How many of the processes have ended."""
        return sum(not _answers(actor) for actor in self.actors)


class RemoteModel:
    """What the labeler needs of a bundle, calculated on the GPUs; on this CPU, once none of their processes answers any more."""

    def __init__(self, model: ModelOnGpus, load: Callable[[], Bundle[OnnxNetwork]]) -> None:
        self.image_size, self.color, self.crop = model.image_size, model.color, model.crop
        self.classes, self.model_version = model.classes, model.model_version
        self._actors, self._load = list(model.actors), load
        self._turns = itertools.count(random.randrange(len(model.actors)))  # the processes are not to ask the same one first
        self._here: Bundle[OnnxNetwork] | None = None

    def probabilities(self, images: UInt8Array, seen: Float32Array) -> Float64Array:
        """Calibrated probabilities (n, classes) of crops (n, s, s) gray or (n, s, s, 3) RGB, of which `vision.quality` said `seen`."""
        return self.ask(images, seen)()

    def ask(self, images: UInt8Array, seen: Float32Array) -> Callable[[], Float64Array]:
        """Send crops to one GPU after the other; what comes back waits for the answer, and asks another GPU where there is none."""
        if not self._actors:
            return functools.partial(self._calculate, images, seen)
        actor = self._actors[next(self._turns) % len(self._actors)]
        return functools.partial(self._wait, actor, actor.probabilities.remote(images, seen), images, seen)

    def _wait(self, actor: Any, answer: ray.ObjectRef, images: UInt8Array, seen: Float32Array) -> Float64Array:
        try:
            return np.asarray(ray.get(answer, timeout=ANSWER_SECONDS))
        except RayError:  # its machine is gone, or the GPU's memory is full
            if actor in self._actors:
                self._actors.remove(actor)
            return self.probabilities(images, seen)

    def _calculate(self, images: UInt8Array, seen: Float32Array) -> Float64Array:
        self._here = self._here or self._load()
        return self._here.probabilities(images, seen)


class ModelProcess:
    """A process with (a share of) a GPU that answers for crops; it takes memory of the GPU as it needs it."""

    def __init__(self, run: Run, device: Device) -> None:
        with bundle.local_copy(run.storage, run.model) as folder:
            self.model = bundle.load(folder, run.config.labeling.flip, device=device)

    def describe(self) -> tuple[Any, ...]:
        """The fields of `ModelOnGpus` after the first."""
        model = self.model
        return model.image_size, model.color, model.crop, model.classes, model.model_version

    def probabilities(self, images: UInt8Array, seen: Float32Array) -> Float64Array:
        return self.model.probabilities(images, seen)


def start_models(run: Run) -> ModelOnGpus | None:
    """Put the model on as many GPUs as `--gpus` says, or on those that are free; None where it has to run on the CPUs.

    Raises:
        UsageError: this machine is all there is, and lacks the GPUs.
    """
    wanted = run.config.gpus
    if wanted is not None and exceeds_this_machine(0, wanted):
        raise UsageError(f"The model is to run on {wanted:g} GPUs, more than this machine has: lower --gpus or leave it out.")
    amount = math.floor(ray.available_resources().get(GPU, 0)) if wanted is None else wanted
    if not amount:
        return None
    processes = math.ceil(amount)
    kind = ray.remote(num_cpus=0, num_gpus=amount / processes, scheduling_strategy="SPREAD")(ModelProcess)
    return gather([kind.remote(run, "gpu") for _ in range(processes)], WAIT_SECONDS if wanted is None else WAIT_FOR_MACHINES_SECONDS)


def gather(actors: Sequence[Any], seconds: float) -> ModelOnGpus | None:
    """Those of the processes that are ready within the time; None, with a warning, where there is none."""
    descriptions = [actor.describe.remote() for actor in actors]
    ray.wait(descriptions, num_returns=len(actors), timeout=seconds)
    usable: list[Any] = []
    described: tuple[Any, ...] = ()
    why = ""
    for actor, description in zip(actors, descriptions, strict=True):
        answer = _answer(description)
        if isinstance(answer, tuple):
            usable.append(actor)
            described = answer
        else:
            why = answer
            ray.kill(actor)
    place = f"the model runs on {plural(len(usable), 'GPU') if usable else 'the CPUs'}"
    if why:
        LOGGER.warning("%s: %s.", why, place)
    else:
        LOGGER.info("%s", place)
    return ModelOnGpus(usable, *described) if usable else None


def _answer(description: ray.ObjectRef) -> tuple[Any, ...] | str:
    """What the process says of its model, or why it cannot be used."""
    try:
        described: tuple[Any, ...] = ray.get(description, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return "The GPUs were not free in time"
    except RayError as error:
        return f"The model could not be put on a GPU ({str(error).strip().splitlines()[-1]})"
    return described


def _answers(actor: Any) -> bool:
    try:
        ray.get(actor.describe.remote(), timeout=WAIT_SECONDS)
    except RayError:
        return False
    return True
