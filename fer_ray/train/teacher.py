"""Targets that a teacher has a share in: what a trained model answers for the clean images (Hinton et al. 2015, arXiv 1503.02531)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from fer_ray.config.train import TrainConfig
from fer_ray.data.dataset import Dataset
from fer_ray.errors import UsageError
from fer_ray.io.storage import Storage
from fer_ray.models import bundle
from fer_ray.models.bundle import Bundle
from fer_ray.models.onnx_network import OnnxNetwork


def with_teacher(data: Dataset, config: TrainConfig) -> Dataset:
    """The data set with training targets of which `config.teacher_share` are the teacher's calibrated probabilities.

    Raises:
        UsageError: the teacher has other classes, or sees other images.
        BundleError: it cannot be read.
    """
    with loaded_teacher(config, data.classes) as teacher:
        share, images = np.float32(config.teacher_share), data.train.images
        targets = data.train.targets * (1 - share) + share * teacher.probabilities(images).astype(np.float32)
    return replace(data, splits={**data.splits, "train": replace(data.train, targets=targets)})


@contextmanager
def loaded_teacher(config: TrainConfig, classes: tuple[str, ...]) -> Iterator[Bundle[OnnxNetwork]]:
    """The teacher of a training on these classes, for as long as its copy is kept."""
    with bundle.local_copy(Storage.of(config.data), config.teacher) as folder:
        teacher, model = bundle.load(folder), config.recipe.model
        if teacher.classes != classes:
            raise UsageError(f"The teacher {config.teacher} knows {', '.join(teacher.classes)}, the data set {', '.join(classes)}.")
        if (teacher.image_size, teacher.color) != (model.image_size, model.color):
            size = f"{teacher.image_size} pixels, {teacher.color}, not {model.image_size} pixels, {model.color}"
            raise UsageError(f"The teacher {config.teacher} sees images of {size}: train with those, or take another teacher.")
        yield teacher
