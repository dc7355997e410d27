"""The calibration job: a bundle whose confidences know how much of a face is to be seen."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fer_ray.config.dataset import VALIDATION
from fer_ray.config.jobs.calibrate import CalibrateConfig
from fer_ray.data.dataset import load_dataset
from fer_ray.errors import DatasetError, UsageError
from fer_ray.io.storage import Storage, absolute
from fer_ray.models import bundle
from fer_ray.models.bundle import Bundle
from fer_ray.models.calibration import PictureCalibration, fit_by_picture, fit_temperature, is_at_bound
from fer_ray.models.metrics import compute_metrics
from fer_ray.models.onnx_network import OnnxNetwork
from fer_ray.reporting.progress import Progress, make_progress
from fer_ray.text import sanitize
from fer_ray.typing import Float64Array, FloatArray, Int64Array, UInt8Array
from fer_ray.vision import degradation, quality

MIN_FACES = 200  # validation faces: fewer say little about as many coefficients
CLEAN_SHARE = 0.6  # of the weight that faces as they are have, against all of their poor views
BATCH = 2048  # faces

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Answers:
    """What a model answers to views of faces, (n, classes), and what is seen of them, (n, outputs); the faces in their order."""

    logits: FloatArray
    seen: FloatArray

    def part(self, chosen: Int64Array) -> _Answers:
        return _Answers(self.logits[chosen], self.seen[chosen])


def calibrate_bundle(config: CalibrateConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Fit temperature, class offsets and their dependence on the picture, and write the bundle with them.

    Returns:
        The summary: the new model_version, and the figures on faces as they are and on poor ones, where each half of the faces is
        judged with what was fitted to the other half.

    Raises:
        UsageError: the bundle or the data set cannot be used, or the output exists.
    """
    output, progress = Path(config.output).absolute(), progress or make_progress()
    if output.exists():
        raise UsageError(f"The output {config.output} exists already: name a new folder, or remove it.")
    storage = Storage.of(config.data)
    with bundle.local_copy(storage, absolute(bundle.resolve(config.model), "model")) as folder:
        content, model = bundle.read_metadata(folder), bundle.load(folder)
        images, labels, lineage = _faces(config, model)
        try:
            clean, poor, judged = _answer(model, images, config, progress)
        finally:
            progress.close()
        calibration = _fit(clean, poor, labels, config.balance)
        temperature = fit_temperature(clean.logits, labels)
        conditions = _judge(clean, poor, judged, labels, temperature, config.balance)
        content["calibration"] = {
            "method": "temperature",
            "temperature": temperature,
            "at_bound": is_at_bound(temperature),
            "by_picture": calibration.to_dict(),
        }
        content["metrics"] = {"validation": _metrics(calibration.apply(clean.logits, clean.seen), labels), "conditions": conditions}
        content["lineage"] = {**content["lineage"], "calibrated_on": lineage}
        _write(folder, output, content, config)
    for name, row in conditions.items():
        figures = (row["accuracy"], row["mean_recall"], row["ece"], row["ece_without"])
        logger.info("%-9s accuracy %.3f, mean recall %.3f, ECE %.3f (%.3f without)", name, *figures)
    logger.info("Label with it: fer-ray label --model %s", sanitize(config.output))
    return {"model_version": content["model_version"], "conditions": conditions, "output": config.output}


def _faces(config: CalibrateConfig, model: Bundle[OnnxNetwork]) -> tuple[UInt8Array, Int64Array, dict[str, Any]]:
    """The validation faces, their labels in the order of the model's classes, and which these were.

    Raises:
        DatasetError: there are too few, or they lack an emotion that the model knows, which it would never name again.
    """
    wanted = replace(config.data, classes=config.data.classes or model.classes)
    data = load_dataset(wanted, model.image_size, model.color, splits=(VALIDATION,))
    counts = data.validation.counts(data.classes)
    if lacking := [name for name in model.classes if not counts.get(name)]:
        raise DatasetError(f"The data set {config.data.dataset} has no {', '.join(lacking)} in validation, which {config.model} knows.")
    if len(data.validation) < MIN_FACES:
        found = len(data.validation)
        raise DatasetError(f"The data set {config.data.dataset} has {found} validation faces: a calibration needs {MIN_FACES} at least.")
    labels = np.array([model.classes.index(name) for name in data.classes])[data.validation.labels]
    lineage = {
        "data_sha256": data.sha256,
        "validation_counts": counts,
        "views": config.views,
        "seed": config.seed,
        "balance": config.balance,
    }
    return data.validation.images, labels, lineage


def _answer(
    model: Bundle[OnnxNetwork], images: UInt8Array, config: CalibrateConfig, progress: Progress
) -> tuple[_Answers, list[_Answers], dict[str, _Answers]]:
    """The answers to faces as they are, to their random views, and to each of the fixed conditions that models are judged on."""
    generator = np.random.default_rng(config.seed)
    total = len(images) * (config.views + len(degradation.CONDITIONS))
    done = 0
    progress.start(f"{total:,} views of {len(images):,} faces")

    def answers(views: UInt8Array) -> _Answers:
        nonlocal done
        parts = []
        for start in range(0, len(views), BATCH):
            part = views[start : start + BATCH]
            parts.append((model.logits(part), quality.describe(part)))
            done += len(part)
            progress.update(done, total, unit="views")
        logits, seen = (np.concatenate(of_parts) for of_parts in zip(*parts, strict=True))
        return _Answers(logits, seen)

    judged = {name: answers(degradation.degraded(images, name)) for name in degradation.CONDITIONS}
    poor = [answers(np.stack([_poorer(face, generator) for face in images])) for _ in range(config.views)]
    return judged["clean"], poor, judged


def _poorer(face: UInt8Array, generator: np.random.Generator) -> UInt8Array:
    """One random view, as the pictures of archives are: one thing is wrong with it, or two."""
    side = face.shape[0]
    for kind in generator.choice(7, generator.integers(1, 3), replace=False):
        if kind == 0:
            face = degradation.mask(face, generator)
        elif kind == 1:
            face = degradation.patch(face, generator)
        elif kind == 2:
            face = degradation.gamma(face, float(np.exp(generator.uniform(-0.7, 0.7))))
        elif kind == 3:
            face = degradation.motion_blur(face, generator.uniform(2, side / 7), generator.uniform(0, 180))
        elif kind == 4:
            face = degradation.downscale(face, int(side * np.exp(generator.uniform(np.log(0.2), np.log(0.8)))))
        elif kind == 5:
            face = degradation.noise(face, float(np.exp(generator.uniform(np.log(2), np.log(25)))), generator)
        else:
            face = degradation.jpeg(face, int(generator.integers(8, 75)))
    return face


def _fit(clean: _Answers, poor: list[_Answers], labels: Int64Array, balance: float) -> PictureCalibration:
    together = [clean, *poor]
    shares = np.bincount(labels, minlength=clean.logits.shape[1]) / len(labels)
    weights = np.outer([CLEAN_SHARE, *[(1 - CLEAN_SHARE) / len(poor)] * len(poor)], shares[labels] ** -balance).ravel()
    logits, seen = (np.concatenate([getattr(one, name) for one in together]) for name in ("logits", "seen"))
    return fit_by_picture(logits, seen, np.tile(labels, len(together)), weights)


def _judge(
    clean: _Answers, poor: list[_Answers], judged: dict[str, _Answers], labels: Int64Array, temperature: float, balance: float
) -> dict[str, dict[str, float]]:
    """Accuracy, macro F1, NLL and ECE under each condition, and the ECE with the temperature alone."""
    halves = np.random.default_rng(0).permutation(len(labels)) % 2
    probabilities = {name: np.empty(one.logits.shape) for name, one in judged.items()}
    for half in (0, 1):
        here, there = np.flatnonzero(halves == half), np.flatnonzero(halves != half)
        fitted = _fit(clean.part(there), [one.part(there) for one in poor], labels[there], balance)
        for name, one in judged.items():
            probabilities[name][here] = fitted.apply(one.logits[here], one.seen[here])
    return {
        name: {**_metrics(probabilities[name], labels), "ece_without": compute_metrics(one.logits, labels, temperature)["ece"]}
        for name, one in judged.items()
    }


def _metrics(probabilities: Float64Array, labels: Int64Array) -> dict[str, float]:
    right = probabilities.argmax(axis=1) == labels
    mean_recall = float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))
    return {**compute_metrics(np.log(np.maximum(probabilities, 1e-12)), labels), "mean_recall": mean_recall}


def _write(folder: str, output: Path, content: dict[str, Any], config: CalibrateConfig) -> None:
    unfinished = output.with_name(output.name + ".unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(folder, unfinished)
        bundle.write_metadata(str(unfinished), content)
        unfinished.rename(output)
    except OSError as error:
        raise UsageError(f"The output {config.output} cannot be written ({error.strerror}).") from error
