"""What photographs do to faces: noise, compression, too few pixels, motion, light, and things in front of them.

Each function takes one face, (s, s) gray or (s, s, 3) RGB uint8, and returns it in the same form. Training draws them at random;
`CONDITIONS` are the fixed ones that models are judged on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import cv2
import numpy as np

from fer_ray.errors import UsageError
from fer_ray.typing import AnyArray, FloatArray, UInt8Array

Condition = Callable[[UInt8Array, np.random.Generator], UInt8Array]

MAX_NOISE = 64.0  # sigma in levels of 255: beyond it, nobody sees a face
_MASK_TOP = 0.54  # of the side of the crop: below the eyes, across the bridge of the nose
_MASK_LEVEL = 205  # of a surgical mask in gray


def noise(face: UInt8Array, sigma: float, generator: np.random.Generator) -> UInt8Array:
    """Add normal noise of so many levels of 255, as a sensor does in poor light."""
    return _as_pixels(face + generator.normal(0, _within("noise", sigma, 0, MAX_NOISE), face.shape).astype(np.float32))


def jpeg(face: UInt8Array, quality: int) -> UInt8Array:
    """Compress with a JPEG quality of 1 to 100 and decode again."""
    encoded = cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, int(_within("JPEG", quality, 1, 100))])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE if face.ndim == 2 else cv2.IMREAD_COLOR), np.uint8)


def downscale(face: UInt8Array, side: int) -> UInt8Array:
    """Reduce to so many pixels a side, and enlarge to the old size as the crop of a small face is."""
    small = int(_within("px", side, 2, face.shape[0]))
    reduced = cv2.resize(face, (small, small), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(reduced, face.shape[:2], interpolation=cv2.INTER_LINEAR), np.uint8)


def motion_blur(face: UInt8Array, length: float, angle: float) -> UInt8Array:
    """Smear along a line of so many pixels at an angle in degrees."""
    size = 2 * int(np.ceil(_within("motion", length, 1, face.shape[0]) / 2)) + 1
    step = length / 2 * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    kernel = np.zeros((size, size), np.float32)
    ends = [tuple(round(16 * (size // 2 + sign * part)) for part in step) for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0, 1, cv2.LINE_8, shift=4)
    return np.asarray(cv2.filter2D(face, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE), np.uint8)


def gamma(face: UInt8Array, exponent: float) -> UInt8Array:
    """Darken (above 1) or brighten (below 1) the middle tones."""
    levels = 255 * np.linspace(0, 1, 256) ** _within("gamma", exponent, 0.1, 10)
    return np.asarray(cv2.LUT(face, np.rint(levels).astype(np.uint8)), np.uint8)


def patch(face: UInt8Array, generator: np.random.Generator) -> UInt8Array:
    """Cover 5 to 25 % of the face with a rectangle of one level or of coarse grain: a hand, hair, another head."""
    size = face.shape[0]
    area, ratio = generator.uniform(0.05, 0.25) * size * size, np.exp(generator.uniform(-0.9, 0.9))
    height, width = (min(size, max(1, round(np.sqrt(area * r)))) for r in (ratio, 1 / ratio))
    top, left = generator.integers(0, size - height + 1), generator.integers(0, size - width + 1)
    covered = face.copy()
    place = covered[top : top + height, left : left + width]
    place[...] = _surface(place.shape, generator)
    return covered


def mask(face: UInt8Array, generator: np.random.Generator) -> UInt8Array:
    """Cover nose and mouth with a mask of any cut and cloth, as people wear it: over all of the width or within the cheeks."""
    top = generator.uniform(0.46, 0.64)
    if generator.random() < 0.3:
        outline = np.array([(0, top), (1, top), (1, 1), (0, 1)])
    else:
        left, right = generator.uniform(0.02, 0.2), 1 - generator.uniform(0.02, 0.2)
        ears = top + generator.uniform(0, 0.1)
        bottom = generator.uniform(0.86, 1.05)
        outline = np.array([(left, ears), (0.35, top), (0.5, top - generator.uniform(0, 0.06)), (0.65, top), (right, ears)])
        outline = np.vstack([outline, [(right - 0.04, bottom - 0.14), (0.62, bottom), (0.38, bottom), (left + 0.04, bottom - 0.14)]])
    return _covered(face, outline, _surface(face.shape, generator))


def surgical_mask(face: UInt8Array) -> UInt8Array:
    """Cover the lower half with one light mask, the same for all faces."""
    outline = np.array(
        [(0.06, _MASK_TOP + 0.05), (0.5, _MASK_TOP - 0.04), (0.94, _MASK_TOP + 0.05), (0.9, 0.9), (0.6, 1), (0.4, 1), (0.1, 0.9)]
    )
    return _covered(face, outline, np.full(face.shape, _MASK_LEVEL, np.uint8))


CONDITIONS: Mapping[str, Condition] = MappingProxyType(
    {
        "clean": lambda face, _: face,
        "noise 10": lambda face, generator: noise(face, 10, generator),
        "JPEG 20": lambda face, _: jpeg(face, 20),
        "24 px": lambda face, _: downscale(face, 24),
        "16 px": lambda face, _: downscale(face, 16),
        "mask": lambda face, _: surgical_mask(face),
    }
)


def degraded(faces: UInt8Array, condition: str) -> UInt8Array:
    """Faces (n, s, s) or (n, s, s, 3) uint8 under one of `CONDITIONS`, the same pixels at every call."""
    generator = np.random.default_rng(20)
    return np.stack([CONDITIONS[condition](face, generator) for face in faces])


def _covered(face: UInt8Array, outline: FloatArray, surface: UInt8Array) -> UInt8Array:
    """The face with a surface where the outline, in shares of the side, is filled; its edge is as soft as a photograph's."""
    inside = np.zeros(face.shape[:2], np.uint8)
    cv2.fillPoly(inside, [np.rint(outline * face.shape[0] * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    weight = inside.astype(np.float32) / 255
    weight = weight if face.ndim == 2 else weight[..., None]
    return _as_pixels(face * (1 - weight) + surface * weight)


def _surface(shape: tuple[int, ...], generator: np.random.Generator) -> UInt8Array:
    """Cloth, skin or paper: a level, half of the time with a slope of light and coarse grain."""
    level = generator.uniform(0, 255, shape[2:])
    surface = np.broadcast_to(level, shape).astype(np.float32)
    if generator.random() < 0.5:
        coarse = generator.normal(0, generator.uniform(2, 25), (4, 4)).astype(np.float32)
        grain = cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
        surface = surface + (grain if len(shape) == 2 else grain[..., None])
    return _as_pixels(surface)


def _within(what: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high:
        raise UsageError(f"The degradation {what} takes {low:g} to {high:g}, not {value:g}.")
    return value


def _as_pixels(values: AnyArray) -> UInt8Array:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
