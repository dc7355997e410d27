"""Small pictures of faces and of what a network sees in them, for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from fer_ray.data.dataset import Split
from fer_ray.evaluate import gradcam
from fer_ray.typing import Float32Array, Float64Array, UInt8Array

if TYPE_CHECKING:
    import keras

MAX_SIDE = 128  # pixels of a picture; the page shows it at 96 or less
WEBP_QUALITY = 80
MAX_HEAT_MAPS = 9
MAX_FILTERS = 65  # of the first convolution
HEAT = 0.45  # share of the heat map where it lies over a face


@dataclass(frozen=True)
class Answer:
    """One face as it is shown: pixels (s, s) gray or (s, s, 3) RGB uint8, what it is, and what the model said."""

    pixels: UInt8Array
    name: str
    label: str
    predicted: str
    confidence: float

    @property
    def correct(self) -> bool:
        """Whether the model said what the label says."""
        return self.label == self.predicted

    @property
    def picture(self) -> bytes:
        """The face as it is."""
        return _webp(self.pixels[..., ::-1] if self.pixels.ndim == 3 else self.pixels)


@dataclass(frozen=True)
class Attention:
    """What one network looks at: answers with their Grad-CAM pictures, and the feature maps of one face; empty where it has none."""

    heated: Sequence[tuple[Answer, bytes]]
    face: Answer
    activations: Sequence[bytes]


def answers(indices: Sequence[int], faces: Split, probabilities: Float64Array, classes: Sequence[str]) -> list[Answer]:
    """What the model said of some faces; labels are in the order of its classes."""
    predicted = probabilities.argmax(axis=1)
    return [
        Answer(faces.images[i], faces.names[i], classes[faces.labels[i]], classes[predicted[i]], float(probabilities[i].max()))
        for i in indices
    ]


def attention(network: keras.Model, faces: Split, probabilities: Float64Array, classes: Sequence[str], seed: int) -> Attention:
    """Grad-CAM and first activations of a network, for one face of each class and then any others."""
    order = np.random.default_rng(seed).permutation(len(faces))
    firsts = [int(order[np.argmax(faces.labels[order] == label)]) for label in np.unique(faces.labels)]
    sample = [*firsts, *(int(i) for i in order if i not in firsts)][:MAX_HEAT_MAPS]
    shown = answers(sample, faces, probabilities, classes)
    heat = gradcam.heat_maps(network, faces.images[sample], probabilities[sample].argmax(axis=1))
    maps = gradcam.first_activations(network, shown[0].pixels)
    return Attention(
        [] if heat is None else [(answer, _heated(answer.pixels, one)) for answer, one in zip(shown, heat, strict=True)],
        shown[0],
        [] if maps is None else [_false_colors(one) for one in maps[:MAX_FILTERS]],
    )


def _heated(pixels: UInt8Array, heat: Float32Array) -> bytes:
    """A face below its heat map (s, s) 0..1, red where it is 1."""
    face = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR if pixels.ndim == 3 else cv2.COLOR_GRAY2BGR)
    colors = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_JET)
    return _webp(np.asarray(cv2.addWeighted(face, 1 - HEAT, colors, HEAT, 0), np.uint8))


def _false_colors(values: Float32Array) -> bytes:
    """A feature map in its own range of values, yellow where it is highest."""
    low, high = values.min(), values.max()
    levels = ((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    return _webp(np.asarray(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), np.uint8))


def _webp(pixels: UInt8Array) -> bytes:
    """A small picture of gray or BGR pixels."""
    factor = MAX_SIDE / max(pixels.shape[:2])
    if factor < 1:
        pixels = np.asarray(cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.uint8)
    return bytes(cv2.imencode(".webp", np.ascontiguousarray(pixels), [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])[1])
