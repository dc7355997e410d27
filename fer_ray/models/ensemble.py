"""The ensemble job: several bundles in one, the mean of their answers, calibrated on the validation split of a data set."""

from __future__ import annotations

import logging
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from fer_ray.config.jobs.ensemble import EnsembleConfig
from fer_ray.config.recipe import ModelConfig
from fer_ray.data.dataset import load_dataset
from fer_ray.errors import AccessError, UsageError
from fer_ray.io.storage import Storage, absolute, new_folder
from fer_ray.models import bundle, keras_bundle
from fer_ray.models.architectures import build
from fer_ray.models.bundle import Bundle, Member
from fer_ray.models.calibration import calibrate
from fer_ray.models.conversion import add_onnx
from fer_ray.models.keras_bundle import Description, KerasNetwork
from fer_ray.text import sanitize

logger = logging.getLogger(__name__)


def combine(config: EnsembleConfig) -> dict[str, Any]:
    """The ensemble job: write the bundle; the summary has its version, its figures on validation, and those of its members alone.

    Raises:
        UsageError: the bundles do not go together, or the output exists.
    """
    storage, output = Storage.of(config.data), new_folder(config.output)
    if storage.exists(output):
        raise UsageError(f"The output {config.output} exists already: name a new folder, or remove it.")
    loaded, lineages = _load(config)
    first = loaded[0]
    data = load_dataset(replace(config.data, classes=first.classes), first.image_size, first.color, ("validation",))
    faces = data.validation
    members = [member for one in loaded for member in one.members]
    members = [_averaged(members, config.share)] if config.average == "weights" else members
    together = Bundle(tuple(members), first.classes, config.flip, first.crop, 1.0, "")
    temperature, figures = calibrate(together.logits(faces.images), faces.labels)
    alone = {one.model_version: calibrate(one.logits(faces.images), faces.labels)[1]["accuracy"] for one in loaded}
    lineage = {
        "made_of": [{"model_version": one.model_version, "lineage": lineage} for one, lineage in zip(loaded, lineages, strict=True)],
        "average": config.average,
        "share": list(config.share),
        "data_sha256": data.sha256,
        "validation_counts": faces.counts(first.classes),
    }
    with tempfile.TemporaryDirectory(prefix="fer-ray-") as made:
        keras_bundle.save(made, members, Description(first.classes, temperature, figures, lineage, config.flip, first.crop))
        version = add_onnx(made)
        try:
            storage.put_folder(Path(made), output, last=bundle.METADATA_FILE)
        except AccessError as error:
            raise UsageError(f"The output {config.output} cannot be written ({error.reason}).") from error
    logger.info("Label with it: fer-ray label --model %s", sanitize(config.output))
    return {"model_version": version, **figures, "accuracy_of_members": alone, "output": config.output}


def _averaged(members: list[Member[KerasNetwork]], shares: tuple[float, ...]) -> Member[KerasNetwork]:
    """One network with the mean of the weights (model soups: Wortsman et al. 2022, arXiv 2203.05482)."""
    first = members[0]
    if any(member.config != first.config for member in members):
        raise UsageError("The bundles hold networks of different architectures or sizes: their weights have no mean.")
    stacked = zip(*(member.network.model.get_weights() for member in members), strict=True)
    network = build(cast(ModelConfig, first.config), first.network.model.output_shape[-1])
    network.set_weights([np.average(weights, axis=0, weights=shares or None) for weights in stacked])
    return Member(KerasNetwork(network), first.config)


def _load(config: EnsembleConfig) -> tuple[list[Bundle[KerasNetwork]], list[dict[str, Any]]]:
    """The bundles, and what each says of its training."""
    storage, loaded, lineages = Storage.of(config.data), [], []
    with ExitStack() as copies:
        for name in config.model:
            place = absolute(bundle.resolve(name, storage), "model")
            folder = copies.enter_context(bundle.local_copy(storage, place))
            loaded.append(keras_bundle.load(folder))
            lineages.append(bundle.read_metadata(folder)["lineage"])
    first = loaded[0]
    for name, other in zip(config.model[1:], loaded[1:], strict=True):
        if (other.classes, other.image_size, other.color, other.crop) != (first.classes, first.image_size, first.color, first.crop):
            raise UsageError(f"The bundles {config.model[0]} and {name} differ in classes or crops: only like bundles can be averaged.")
    if sum(len(one.members) for one in loaded) > bundle.MAX_MEMBERS:
        raise UsageError(f"A bundle holds {bundle.MAX_MEMBERS} networks at most: leave some out.")
    return loaded, lineages
