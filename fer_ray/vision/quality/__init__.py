"""What is seen of a face: how much of it a model can read, and whether its mouth or eyes are covered.

A small network tells it from the crop that a model sees (`tools/train_quality.py` trains it, on faces that were covered and made
poorer on purpose). The columns `quality` and `occluded` come from it, and models calibrate their confidence with it.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import Any

import cv2
import numpy as np

from fer_ray.typing import Float32Array, UInt8Array

SIDE = 48  # pixels of the crops that the network takes
# What it says of a face, in this order. The first two are logits; then the logarithm to base 2 of the pixels that a side really has,
# over SIDE; then the root mean square of noise, and of what compression changed, in units of 8 levels.
OUTPUTS = ("quality", "occluded", "resolution", "noise", "compression")
PROBABILITIES = ("quality", "occluded")
MAX_OUTPUT = 8.0  # what is said is bounded, as calibrations multiply it
_BATCH = 256
_NETWORK = "face_quality.onnx"


def describe(crops: UInt8Array) -> Float32Array:
    """What is seen of faces.

    Args:
        crops: (n, s, s) gray or (n, s, s, 3) RGB uint8.

    Returns:
        The `OUTPUTS` of each, (n, 5).
    """
    parts = [_run(crops[start : start + _BATCH]) for start in range(0, len(crops), _BATCH)]
    return np.concatenate(parts) if parts else np.empty((0, len(OUTPUTS)), np.float32)


def probability(seen: Float32Array, name: str) -> Float32Array:
    """One of `PROBABILITIES` (n,), 0 to 1, from what is seen (n, 5)."""
    return np.asarray(1 / (1 + np.exp(-seen[:, OUTPUTS.index(name)])), np.float32)


@cache
def network_version() -> str:
    """Names the network: a calibration that was fitted to what another one says is of no use."""
    return hashlib.sha256(network()).hexdigest()[:12]


def _run(crops: UInt8Array) -> Float32Array:
    faces = np.stack([_small_gray(crop) for crop in crops])[:, None].astype(np.float32)
    return np.asarray(np.clip(_session().run(None, {"faces": faces})[0], -MAX_OUTPUT, MAX_OUTPUT), np.float32)


def _small_gray(crop: UInt8Array) -> UInt8Array:
    gray = crop if crop.ndim == 2 else cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    if len(gray) != SIDE:
        gray = cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA if len(gray) > SIDE else cv2.INTER_LINEAR)
    return np.asarray(gray, np.uint8)


@cache
def _session() -> Any:
    """One thread, as starting others would take longer than the network does."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = 1, 1, 3
    return onnxruntime.InferenceSession(network(), options, providers=["CPUExecutionProvider"])


def network() -> bytes:
    """The network as ONNX."""
    return resources.files(__name__).joinpath(_NETWORK).read_bytes()
