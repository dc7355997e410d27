"""The evaluation job: what models get right and wrong on labeled faces, as a page, pictures and figures."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.config.evaluate import EvaluateConfig
from fer_ray.config.recipe import ModelConfig
from fer_ray.data.dataset import Dataset, Split, load_dataset
from fer_ray.errors import DatasetError, StorageError, UsageError
from fer_ray.evaluate import gradcam, page, plots
from fer_ray.evaluate.history import read_history
from fer_ray.evaluate.plots import Answer
from fer_ray.evaluate.score import check_classes, in_order_of, measure, most_confident_errors
from fer_ray.io.storage import Storage, absolute, join
from fer_ray.models import bundle, metrics
from fer_ray.models.bundle import Bundle
from fer_ray.text import sanitize
from fer_ray.typing import BoolArray, Float32Array, Float64Array

PAGE_FILE, FIGURES_FILE, ANSWERS_FILE = "index.html", "evaluation.json", "predictions.parquet"
SUMMARY_KEYS = ("accuracy", "macro_f1", "weighted_f1", "ece", "nll")
PROGRESS_STEP = 2048


@dataclass(frozen=True)
class Candidate:
    """A model that is judged: as it was asked for, a name for it that is unique here, where it lies, and its folder on this machine."""

    given: str
    name: str
    place: str
    folder: str
    classes: tuple[str, ...]
    crops: tuple[int, str]


@dataclass(frozen=True)
class Evaluation:
    """What came out for one model: its figures as `evaluation.json` holds them, and its pictures as PNG by file name.

    `faces` has labels and targets in the order of the model's classes, `probabilities` is (n, classes) float64.
    """

    name: str
    content: dict[str, Any]
    pictures: dict[str, bytes]
    faces: Split
    probabilities: Float64Array

    @property
    def correct(self) -> BoolArray:
        """Which faces (n,) are labeled right."""
        return np.asarray(self.probabilities.argmax(axis=1) == self.faces.labels)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Judge the models that the configuration names and leave page, pictures and figures at `config.output`; gives the summary.

    Raises:
        UsageError: a model, the data set or the output cannot be used; nothing was written.
        StorageError: the output cannot be written after all.
    """
    storage = Storage(config.data.s3_endpoint)
    with ExitStack() as copies:
        try:
            output = absolute(config.output, "output")
            candidates = _find(storage, config, copies)
            storage.check_writable(output)
        except StorageError as error:
            raise UsageError(str(error)) from error
        data = _load(config, candidates)
        evaluations = [_judge(storage, config, one, data[one.crops]) for one in candidates]
    first = data[candidates[0].crops]
    comparison = compare(evaluations)
    content = {
        "split": config.split,
        "samples": len(first.splits[config.split]),
        "classes": list(first.classes),
        "class_counts": first.splits[config.split].counts(first.classes),
        "data_sha256": first.sha256,
        "findings": list(first.findings),
        "config": config.to_dict(),
        "models": [one.content for one in evaluations],
        "comparison": comparison,
    }
    _write(storage, output, content, evaluations)
    return summarize(evaluations, config.output)


def summarize(evaluations: Sequence[Evaluation], output: str) -> dict[str, Any]:
    """The last line of the job: the first model's figures, and those of all where there are several."""
    rows = []
    for one in evaluations:
        values = {key: round(one.content["figures"][key], 6) for key in SUMMARY_KEYS}
        place = output if len(evaluations) == 1 else join(output, one.name)
        rows.append({**values, "samples": len(one.faces), "model_version": one.content["model_version"], "output": place})
    return rows[0] if len(rows) == 1 else {**rows[0], "output": output, "models": rows}


def _find(storage: Storage, config: EvaluateConfig, copies: ExitStack) -> list[Candidate]:
    candidates: list[Candidate] = []
    for given in config.model:
        place = absolute(bundle.resolve(given), "model")
        folder = copies.enter_context(bundle.local_copy(storage, place))
        content = bundle.read_metadata(folder)
        model = ModelConfig.from_dict(content["members"][0]["model"])
        name = _unique_name(place, [one.name for one in candidates])
        candidates.append(Candidate(given, name, place, folder, tuple(content["classes"]), (model.image_size, model.color)))
    return candidates


def _unique_name(place: str, taken: Sequence[str]) -> str:
    """A name for a model that is safe as a folder's: the last part of its place, numbered where several share it."""
    base = re.sub(r"[^A-Za-z0-9._-]+", "_", PurePosixPath(place).name).strip("._")[:60] or "model"
    return next(name for name in itertools.chain([base], (f"{base}-{n}" for n in itertools.count(2))) if name not in taken)


def _load(config: EvaluateConfig, candidates: Sequence[Candidate]) -> dict[tuple[int, str], Dataset]:
    """The data set once for every kind of crops that the models take.

    Raises:
        DatasetError: it cannot be read, or has classes that a model lacks.
    """
    loaded: dict[tuple[int, str], Dataset] = {}
    for one in candidates:
        if one.crops not in loaded:
            loaded[one.crops] = load_dataset(config.data, *one.crops, splits=(config.split,))
        check_classes(one.given, one.classes, loaded[one.crops].classes)
    first, *others = (data.splits[config.split] for data in loaded.values())
    if not len(first):
        raise DatasetError(f"The split {config.split} of {config.data.dataset} holds no faces: choose another --split.")
    if any(other.names != first.names or not np.array_equal(other.labels, first.labels) for other in others):
        raise DatasetError(f"The data set {config.data.dataset} changed while it was read: start again.")
    data = next(iter(loaded.values()))
    print(f"{len(first):,} faces of the {config.split} split: {', '.join(data.classes)}", flush=True)
    for finding in data.findings:
        print(f"  {sanitize(finding)}", flush=True)
    return loaded


def _judge(storage: Storage, config: EvaluateConfig, candidate: Candidate, data: Dataset) -> Evaluation:
    """Run one model over the split and work out everything about its answers."""
    loaded = bundle.load(candidate.folder, config.flip)
    faces = in_order_of(data.splits[config.split], data.classes, loaded.classes)
    logits = _answer(loaded, faces, candidate.name)
    probabilities = metrics.softmax(logits, loaded.temperature)
    history, note = read_history(storage, candidate.place)
    maps = _looks(loaded, faces, probabilities, config.seed)
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
        **measure(logits, faces, loaded.classes, loaded.temperature, config.seed),
        "most_confident_errors": most_confident_errors(probabilities, faces, loaded.classes),
        "training_curves": note or "curves.png",
    }
    drawn = _draw(content, logits, probabilities, faces, config) | maps
    if history is not None:
        drawn["curves.png"] = plots.draw_curves(history)
    print(f"{candidate.name}: accuracy {content['figures']['accuracy']:.4f}, macro F1 {content['figures']['macro_f1']:.4f}", flush=True)
    return Evaluation(candidate.name, content, drawn, faces, probabilities)


def _answer(model: Bundle, faces: Split, name: str) -> Float32Array:
    parts = []
    for start in range(0, len(faces), PROGRESS_STEP):
        parts.append(model.logits(faces.images[start : start + PROGRESS_STEP]))
        done = min(start + PROGRESS_STEP, len(faces))
        print(f"{name}: {done:,}/{len(faces):,} faces ({done / len(faces):.0%})", flush=True)
    return np.concatenate(parts)


def _answers(indices: Sequence[int], faces: Split, probabilities: Float64Array, classes: Sequence[str]) -> list[Answer]:
    predicted = probabilities.argmax(axis=1)
    return [
        Answer(faces.images[i], faces.names[i], classes[faces.labels[i]], classes[predicted[i]], float(probabilities[i].max()))
        for i in indices
    ]


def _draw(
    content: dict[str, Any],
    logits: Float32Array,
    probabilities: Float64Array,
    faces: Split,
    config: EvaluateConfig,
) -> dict[str, bytes]:
    confusion, classes = content["confusion"], content["classes"]
    generator = np.random.default_rng(config.seed)
    random = generator.choice(len(faces), min(config.samples, len(faces)), replace=False).tolist()
    errors = [error["index"] for error in content["most_confident_errors"]]
    before = metrics.reliability(metrics.softmax(logits), faces.labels)
    pictures = {
        "confusion.png": plots.draw_confusion(np.array(confusion["counts"]), confusion["labels"], confusion["predicted"]),
        "reliability.png": plots.draw_reliability(metrics.reliability(probabilities, faces.labels), before),
        "predictions.png": plots.draw_answers(_answers(random, faces, probabilities, classes)),
    }
    if errors:
        pictures["errors.png"] = plots.draw_answers(_answers(errors, faces, probabilities, classes))
    return pictures


def _looks(model: Bundle, faces: Split, probabilities: Float64Array, seed: int) -> dict[str, bytes]:
    """Grad-CAM and first activations of the first network, for one face of each class and then any others."""
    order = np.random.default_rng(seed).permutation(len(faces))
    firsts = [int(order[np.argmax(faces.labels[order] == label)]) for label in np.unique(faces.labels)]
    sample = [*firsts, *(int(i) for i in order if i not in firsts)][: plots.FACE_COLUMNS]
    answers = _answers(sample, faces, probabilities, model.classes)
    network, pictures = model.members[0].network, {}
    heat = gradcam.heat_maps(network, faces.images[sample], probabilities[sample].argmax(axis=1))
    if heat is not None:
        pictures["gradcam.png"] = plots.draw_heat_maps(answers, heat)
    activations = gradcam.first_activations(network, faces.images[sample[0]])
    if activations is not None:
        pictures["activations.png"] = plots.draw_activations(faces.images[sample[0]], activations)
    return pictures


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
    drawn = {one.name: one.pictures for one in evaluations}
    comparison = _draw_comparison(content) if len(evaluations) > 1 else None
    if comparison:
        storage.write(join(output, "comparison.png"), comparison)
    for one in evaluations:
        folder = output if len(evaluations) == 1 else join(output, one.name)
        for file, png in one.pictures.items():
            storage.write(join(folder, file), png)
        storage.write(join(folder, ANSWERS_FILE), answers_table(one))
    storage.write(join(output, FIGURES_FILE), (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    storage.write(join(output, PAGE_FILE), page.render(content, drawn, comparison).encode("utf-8", "replace"))
    print(f"page: {sanitize(join(output, PAGE_FILE))}", flush=True)


def _draw_comparison(content: dict[str, Any]) -> bytes:
    accuracy = {one["name"]: (one["figures"]["accuracy"], *one["intervals"]["accuracy"]) for one in content["models"]}
    f1 = {one["name"]: {row["class"]: row["f1"] for row in one["per_class"]} for one in content["models"]}
    return plots.draw_comparison(accuracy, f1, content["classes"])


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
