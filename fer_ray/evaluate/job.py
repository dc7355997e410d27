"""The evaluation job: what models get right and wrong on labeled faces, as a page and figures."""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.config.crop import DEFAULT_CROP, CropGeometry
from fer_ray.config.dataset import VALIDATION
from fer_ray.config.jobs.evaluate import EvaluateConfig
from fer_ray.config.jobs.import_model import IMPORTED
from fer_ray.data.dataset import Dataset, Split, load_dataset
from fer_ray.errors import DatasetError, MissingSplitError, StorageError, UsageError
from fer_ray.evaluate import breakdown, page
from fer_ray.evaluate.groups import read_groups
from fer_ray.evaluate.history import read_history
from fer_ray.evaluate.score import check_classes, in_order_of, measure, most_confident_errors
from fer_ray.io.storage import Storage, absolute, join
from fer_ray.models import bundle, keras_bundle, metrics
from fer_ray.models.bundle import Bundle
from fer_ray.models.calibration import is_at_bound
from fer_ray.models.onnx_network import OnnxNetwork
from fer_ray.reporting.progress import Progress, make_progress
from fer_ray.text import percent, sanitize
from fer_ray.typing import BoolArray, Float32Array, Float64Array, UInt8Array

if TYPE_CHECKING:
    import keras

PAGE_FILE = "index.html"
FIGURES_FILE = "evaluation.json"
SUMMARY_KEYS = ("accuracy", "macro_f1", "weighted_f1", "ece", "nll")
PROGRESS_STEP = 2048  # faces
Crops = tuple[int, str, CropGeometry]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A model to judge.

    Attributes:
        given: the model as it was asked for.
        name: a name for it that is unique here and safe as a folder's.
        place: where its bundle lies.
        folder: the bundle's folder on this machine.
        classes: the emotions that it knows.
        crops: side in pixels and colour of the crops that it takes, and how faces are cut out where they are found first.
    """

    given: str
    name: str
    place: str
    folder: str
    classes: tuple[str, ...]
    crops: Crops


@dataclass(frozen=True)
class Evaluation:
    """What came out for one model.

    Attributes:
        name: that of the candidate.
        content: its figures as `evaluation.json` holds them.
        shown: what else the page shows of it.
        faces: labels and targets in the order of the model's classes.
        probabilities: its calibrated answers, (n, classes).
    """

    name: str
    content: dict[str, Any]
    shown: page.Shown
    faces: Split
    probabilities: Float64Array

    @property
    def correct(self) -> BoolArray:
        """Which faces (n,) are labeled right."""
        return np.asarray(self.probabilities.argmax(axis=1) == self.faces.labels)


def evaluate(config: EvaluateConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Judge the models that the configuration names, and write page and figures to `config.output`.

    Args:
        config: models, data set and output.
        progress: what shows how far the work is; by default a bar on a terminal, else the log.

    Returns:
        The summary: the figures of the first model, and of all where there are several.

    Raises:
        UsageError: a model, the data set or the output cannot be used; nothing was written.
        StorageError: the output cannot be written after all.
    """
    storage, progress = Storage.of(config.data), progress or make_progress()
    with ExitStack() as copies:
        try:
            output = absolute(config.output, "output")
            candidates = _find_models(storage, config, copies)
            storage.check_writable(output)
        except StorageError as error:
            raise UsageError(str(error)) from error
        data = _load(config, candidates)
        groups = read_groups(storage, config, data[candidates[0].crops].splits[config.split].names)
        try:
            evaluations = [_judge(storage, config, one, data[one.crops], groups, progress) for one in candidates]
        finally:
            progress.close()
    first = data[candidates[0].crops]
    content = {
        "split": config.split,
        "samples": len(first.splits[config.split]),
        "classes": list(first.classes),
        "class_counts": first.splits[config.split].counts(first.classes),
        "data_sha256": first.sha256,
        "findings": list(first.findings),
        "config": config.to_dict(),
        "models": [one.content for one in evaluations],
        "comparison": compare(evaluations),
    }
    _write(storage, output, content, evaluations)
    logger.info("Open %s to see what is right and wrong, class by class and face by face.", sanitize(join(config.output, PAGE_FILE)))
    return summarize(evaluations, config.output)


def summarize(evaluations: Sequence[Evaluation], output: str) -> dict[str, Any]:
    """The last line of the job: the first model's figures, and those of all where there are several."""
    rows = []
    for one in evaluations:
        values = {key: one.content["figures"][key] for key in SUMMARY_KEYS}
        place = output if len(evaluations) == 1 else join(output, one.name)
        rows.append(
            {
                **values,
                "samples": len(one.faces),
                "model_version": one.content["model_version"],
                "output": place,
                **breakdown.summarize(one.content),
            }
        )
    return rows[0] if len(rows) == 1 else {**rows[0], "output": output, "models": rows}


def _find_models(storage: Storage, config: EvaluateConfig, copies: ExitStack) -> list[Candidate]:
    candidates: list[Candidate] = []
    for given in config.model:
        place = absolute(bundle.resolve(given, storage), "model")
        folder = copies.enter_context(bundle.local_copy(storage, place))
        content = bundle.read_metadata(folder)
        model = bundle.member_config(content["members"][0])
        name = _unique_name(place, [one.name for one in candidates])
        geometry = CropGeometry.from_dict(content["preprocessing"]["crop"]) if config.data.find_faces else DEFAULT_CROP
        crops = (model.image_size, model.color, geometry)
        candidates.append(Candidate(given, name, place, folder, tuple(content["classes"]), crops))
    return candidates


def _unique_name(place: str, taken: Sequence[str]) -> str:
    """A name for a model that is safe as a folder's: the last part of its place, numbered where several share it."""
    base = re.sub(r"[^A-Za-z0-9._-]+", "_", PurePosixPath(place).name).strip("._")[:60] or "model"
    return next(name for name in itertools.chain([base], (f"{base}-{n}" for n in itertools.count(2))) if name not in taken)


def _load(config: EvaluateConfig, candidates: Sequence[Candidate]) -> dict[Crops, Dataset]:
    """The data set once for every kind of crops that the models take.

    Raises:
        DatasetError: it cannot be read, or has classes that a model lacks.
    """
    loaded: dict[Crops, Dataset] = {}
    for one in candidates:
        if one.crops not in loaded:
            try:
                size, color, geometry = one.crops
                loaded[one.crops] = load_dataset(config.data, size, color, (config.split,), geometry)
            except MissingSplitError as error:
                split = VALIDATION if VALIDATION in error.splits else error.splits[0]
                raise DatasetError(f"The data set {config.data.dataset} has no {config.split} split: give --split {split}.") from error
        check_classes(one.given, one.classes, loaded[one.crops].classes)
    first, *others = (data.splits[config.split] for data in loaded.values())
    if any(other.names != first.names or not np.array_equal(other.labels, first.labels) for other in others):
        raise DatasetError(f"The data set {config.data.dataset} changed while it was read: start again.")
    data = next(iter(loaded.values()))
    logger.info("%s faces of the %s split: %s", f"{len(first):,}", config.split, ", ".join(data.classes))
    for finding in data.findings:
        logger.info("  %s", sanitize(finding))
    return loaded


def _judge(
    storage: Storage, config: EvaluateConfig, candidate: Candidate, data: Dataset, groups: dict[str, list[str]], progress: Progress
) -> Evaluation:
    """Run one model over the split and work out everything about its answers."""
    loaded = bundle.load(candidate.folder, config.flip)
    if is_at_bound(loaded.temperature):
        logger.warning("%s: the temperature lies at the bound of its range, so its confidences are not calibrated.", candidate.name)
    faces = in_order_of(data.splits[config.split], data.classes, loaded.classes)
    logits = _answer(loaded, faces.images, candidate.name, progress)
    probabilities = loaded.calibrate(logits, faces.images)

    def answer(images: UInt8Array, condition: str) -> Float64Array:
        return loaded.calibrate(_answer(loaded, images, f"{candidate.name} ({condition})", progress), images)

    history, note = read_history(storage, candidate.place)
    content = {
        "name": candidate.name,
        "model": candidate.given,
        "model_version": loaded.model_version,
        "classes": list(loaded.classes),
        "image_size": loaded.image_size,
        "color": loaded.color,
        "networks": [member.config.architecture for member in loaded.members],
        "flip": loaded.flip,
        "temperature": loaded.temperature,
        "calibrated_by_picture": loaded.by_picture is not None,
        **measure(logits, probabilities, faces, loaded.classes, config.seed),
        "degraded": breakdown.by_condition(answer, faces, loaded.classes, config.seed) if config.degrade else [],
        "groups": {
            column: breakdown.by_group(probabilities, faces.labels, loaded.classes, of_faces, config.seed)
            for column, of_faces in groups.items()
        },
        "most_confident_errors": most_confident_errors(probabilities, faces, loaded.classes),
        "training_curves": note or f"They are in {PAGE_FILE}.",
    }
    shown = page.show(config, content, _keras_network(candidate), faces, logits, probabilities, history)
    accuracy, macro_f1 = content["figures"]["accuracy"], content["figures"]["macro_f1"]
    logger.info("%s: accuracy %s, macro F1 %.3f", candidate.name, percent(accuracy, 1), macro_f1)
    for sentence in breakdown.sentences(content):
        logger.info("  %s", sentence)
    return Evaluation(candidate.name, content, shown, faces, probabilities)


def _keras_network(candidate: Candidate) -> keras.Model | None:
    """The first network of the bundle in Keras, which heat maps are made of; None, with a line in the log, where it cannot be had."""
    if find_spec("tensorflow") is None:
        logger.info("%s: no heat maps, as TensorFlow is not installed: pip install 'fer-ray[train]' for them.", candidate.name)
        return None
    if IMPORTED in bundle.architectures(bundle.read_metadata(candidate.folder)):
        logger.info("%s: no heat maps, as it was imported as ONNX.", candidate.name)
        return None
    return keras_bundle.load(candidate.folder).members[0].network.model


def _answer(model: Bundle[OnnxNetwork], images: UInt8Array, name: str, progress: Progress) -> Float32Array:
    """Logits (n, classes) of all faces."""
    progress.start(f"{name} labels {len(images):,} faces")
    parts = []
    for start in range(0, len(images), PROGRESS_STEP):
        parts.append(model.logits(images[start : start + PROGRESS_STEP]))
        progress.update(min(start + PROGRESS_STEP, len(images)), len(images), unit="faces")
    return np.concatenate(parts)


def compare(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """McNemar's test of every pair of models, on the same faces."""
    rows = []
    for first, second in itertools.combinations(evaluations, 2):
        test = metrics.mcnemar(first.correct, second.correct)
        rows.append(
            {
                "first": first.name,
                "second": second.name,
                "accuracy_difference": float(first.correct.mean() - second.correct.mean()),
                "only_first_correct": test.only_first,
                "only_second_correct": test.only_second,
                "p_value": test.p_value,
                "exact": test.exact,
            }
        )
    return rows


def _write(storage: Storage, output: str, content: dict[str, Any], evaluations: Sequence[Evaluation]) -> None:
    """Everything for each model, in a folder of its own where there are several, and the page last."""
    for one in evaluations:
        folder = output if len(evaluations) == 1 else join(output, one.name)
        storage.write(join(folder, page.ANSWERS_FILE), answers_table(one))
    storage.write(join(output, FIGURES_FILE), (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    storage.write(join(output, PAGE_FILE), page.evaluation_page(content, [one.shown for one in evaluations]).encode("utf-8", "replace"))


def answers_table(evaluation: Evaluation) -> bytes:
    """Every face's name, label, answer, confidence and probabilities as Parquet."""
    classes, probabilities = evaluation.content["classes"], evaluation.probabilities
    columns: dict[str, Any] = {
        "name": [name.encode("utf-8", "replace").decode() for name in evaluation.faces.names],
        "label": [classes[label] for label in evaluation.faces.labels],
        "predicted": [classes[index] for index in probabilities.argmax(axis=1)],
        "confidence": probabilities.max(axis=1).astype(np.float32),
    }
    columns |= {f"prob_{name}": probabilities[:, index].astype(np.float32) for index, name in enumerate(classes)}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue().to_pybytes())
