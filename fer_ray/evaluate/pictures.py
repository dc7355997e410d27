"""The pictures about one model, by file name, and the one that compares several, all as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fer_ray.data.dataset import Split
from fer_ray.evaluate import gradcam, plots
from fer_ray.evaluate.plots import Answer
from fer_ray.models import metrics
from fer_ray.models.bundle import Bundle
from fer_ray.models.onnx_network import OnnxNetwork
from fer_ray.typing import Float32Array, Float64Array

if TYPE_CHECKING:
    import keras


def draw_pictures(
    content: Mapping[str, Any],
    model: Bundle[OnnxNetwork],
    network: keras.Model | None,
    faces: Split,
    logits: Float32Array,
    samples: int,
    seed: int,
) -> dict[str, bytes]:
    """Confusion matrix, calibration, faces with answers, heat maps; those that make no sense for a model are left out.

    Args:
        content: what `evaluation.json` says of the model.
        model: the model itself.
        network: its first network in Keras, for Grad-CAM and activations; None where there is none.
        faces: labels and targets in the order of the model's classes.
        logits: its answers to them before calibration, (n, classes).
        samples: how many random answers to show.
        seed: of random choices.
    """
    classes, probabilities = model.classes, metrics.softmax(logits, model.temperature)
    confusion = content["confusion"]
    after, before = (metrics.reliability(answers, faces.labels) for answers in (probabilities, metrics.softmax(logits)))
    random = np.random.default_rng(seed).choice(len(faces), min(samples, len(faces)), replace=False).tolist()
    errors = [error["index"] for error in content["most_confident_errors"]]
    pictures = {
        "confusion.png": plots.draw_confusion(np.array(confusion["counts"]), confusion["labels"], confusion["predicted"]),
        "reliability.png": plots.draw_reliability(after, before),
        "predictions.png": plots.draw_answers(_answers(random, faces, probabilities, classes)),
    }
    if errors:
        pictures["errors.png"] = plots.draw_answers(_answers(errors, faces, probabilities, classes))
    return pictures if network is None else pictures | _draw_attention(network, faces, probabilities, classes, seed)


def _answers(indices: Sequence[int], faces: Split, probabilities: Float64Array, classes: Sequence[str]) -> list[Answer]:
    predicted = probabilities.argmax(axis=1)
    return [
        Answer(faces.images[i], faces.names[i], classes[faces.labels[i]], classes[predicted[i]], float(probabilities[i].max()))
        for i in indices
    ]


def _draw_attention(network: keras.Model, faces: Split, probabilities: Float64Array, classes: Sequence[str], seed: int) -> dict[str, bytes]:
    """Grad-CAM and first activations of the first network, for one face of each class and then any others."""
    order = np.random.default_rng(seed).permutation(len(faces))
    firsts = [int(order[np.argmax(faces.labels[order] == label)]) for label in np.unique(faces.labels)]
    sample = [*firsts, *(int(i) for i in order if i not in firsts)][: plots.FACE_COLUMNS]
    answers, pictures = _answers(sample, faces, probabilities, classes), {}
    heat = gradcam.heat_maps(network, faces.images[sample], probabilities[sample].argmax(axis=1))
    if heat is not None:
        pictures["gradcam.png"] = plots.draw_heat_maps(answers, heat)
    activations = gradcam.first_activations(network, faces.images[sample[0]])
    if activations is not None:
        pictures["activations.png"] = plots.draw_activations(faces.images[sample[0]], activations)
    return pictures


def draw_comparison(content: Mapping[str, Any]) -> bytes:
    """Accuracy with its interval, and the F1 of each class, of all models of `evaluation.json` side by side."""
    accuracy = {one["name"]: (one["figures"]["accuracy"], *one["intervals"]["accuracy"]) for one in content["models"]}
    f1 = {one["name"]: {row["class"]: row["f1"] for row in one["per_class"]} for one in content["models"]}
    return plots.draw_comparison(accuracy, f1, content["classes"])
