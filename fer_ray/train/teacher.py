"""Targets that teachers have a share in: what trained models answer for the clean images (Hinton et al. 2015, arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from fer_ray.config.dataset import TRAIN
from fer_ray.config.jobs.train import TrainConfig
from fer_ray.data.dataset import Dataset
from fer_ray.errors import UsageError
from fer_ray.io.storage import Storage
from fer_ray.models import bundle
from fer_ray.models.bundle import Bundle
from fer_ray.models.onnx_network import OnnxNetwork

CHUNK = 4096  # images of which mirror images are made at a time, where a teacher wants them


def with_teachers(data: Dataset, config: TrainConfig) -> Dataset:
    """The data set with training targets of which each teacher's calibrated probabilities have their share.

    A class that a teacher does not know is one that it never answers.

    Raises:
        UsageError: a teacher knows other classes than the data set, or sees other images.
        BundleError: one cannot be read.
    """
    images = data.train.images
    targets = data.train.targets * np.float32(1 - sum(config.teacher_shares))
    for name, share in zip(config.teacher, config.teacher_shares, strict=True):
        with loaded_teacher(config, name, data.classes) as teacher:
            columns = [data.classes.index(emotion) for emotion in teacher.classes]
            for start in range(0, len(images), CHUNK):
                answers = teacher.probabilities(images[start : start + CHUNK])
                targets[start : start + CHUNK, columns] += share * answers.astype(np.float32)
    return replace(data, splits={**data.splits, TRAIN: replace(data.train, targets=targets)})


@contextmanager
def loaded_teacher(config: TrainConfig, name: str, classes: tuple[str, ...]) -> Iterator[Bundle[OnnxNetwork]]:
    """A teacher of a training on these classes, for as long as its copy is kept."""
    with bundle.local_copy(Storage.of(config.data), name) as folder:
        teacher, model = bundle.load(folder), config.recipe.model
        if not set(teacher.classes) <= set(classes):
            raise UsageError(f"The teacher {name} knows {', '.join(teacher.classes)}, the data set only {', '.join(classes)}.")
        if (teacher.image_size, teacher.color) != (model.image_size, model.color):
            size = f"{teacher.image_size} pixels, {teacher.color}, not {model.image_size} pixels, {model.color}"
            raise UsageError(f"The teacher {name} sees images of {size}: train with those, or take another teacher.")
        yield teacher
