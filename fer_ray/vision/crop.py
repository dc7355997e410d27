"""Cut faces out of images the way the training images look."""

from __future__ import annotations

from typing import Protocol

import cv2
import numpy as np

from fer_ray.config.crop import CropGeometry
from fer_ray.config.recipe import GRAY
from fer_ray.typing import Float32Array, Float64Array, UInt8Array

_MIN_SIDE = 2.0  # pixels of the image: nothing smaller can be enlarged
_REACH = 0.75  # sides from a crop's centre to the corner of a rotated one: half the diagonal, and a little more


class Located(Protocol):
    """A face whose place in an image is known: `bbox` is x, y, width, height, `landmarks` (5, 2) begin with the left and the right eye."""

    @property
    def bbox(self) -> tuple[float, float, float, float]: ...
    @property
    def landmarks(self) -> Float32Array: ...


def crop_face(pixels: UInt8Array, face: Located, size: int, geometry: CropGeometry, color: str = GRAY) -> UInt8Array:
    """Cut a face out; beyond the edge of the image its edge is repeated.

    Args:
        pixels: the image (h, w, 3) uint8 BGR.
        face: where the face is, in pixels of that image.
        size: side of the crop in pixels.
        geometry: how much of the surroundings a model wants to see, and whether the eyes are level.
        color: `gray` or `rgb`.

    Returns:
        A square (size, size) gray or (size, size, 3) RGB uint8.
    """
    x, y, width, height = face.bbox
    side = max(_MIN_SIDE, float(np.sqrt(max(width, 1) * max(height, 1))) * geometry.scale)
    centre = np.array([x + width / 2 + geometry.shift_x * side, y + height / 2 + geometry.shift_y * side])
    (left_x, left_y), (right_x, right_y) = face.landmarks[0].tolist(), face.landmarks[1].tolist()
    angle = geometry.rotation * float(np.arctan2(left_y - right_y, left_x - right_x))
    region, origin, shrink = _shrunk_surroundings(pixels, centre, side, size, color)
    # Output pixel (i, j) shows the point centre + R(angle) ((i, j) - middle) * step; +-0.5 because pixel centres are at integers.
    step = side / size / shrink
    cosine, sine = np.cos(angle) * step, np.sin(angle) * step
    matrix = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0]])
    matrix[:, 2] = (centre - origin) / shrink - 0.5 - matrix[:, :2] @ np.full(2, (size - 1) / 2)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(region, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _shrunk_surroundings(
    pixels: UInt8Array, centre: Float64Array, side: float, size: int, color: str
) -> tuple[UInt8Array, Float64Array, int]:
    """The part of the image around a crop, in its colour, its origin, and the whole factor by which it was shrunk against aliasing."""
    shrink = max(1, int(side / size))
    reach = side * _REACH + 2 * shrink  # and the pixels that interpolation looks at
    high = np.array(pixels.shape[1::-1])
    low_corner = np.clip(np.floor(centre - reach), 0, high - 1).astype(int)
    high_corner = np.clip(np.ceil(centre + reach), low_corner + 1, high).astype(int)
    region = pixels[low_corner[1] : high_corner[1], low_corner[0] : high_corner[0]]
    code = cv2.COLOR_BGR2GRAY if color == GRAY else cv2.COLOR_BGR2RGB
    region = np.asarray(cv2.cvtColor(region, code), np.uint8)
    if shrink > 1:
        target = (max(1, round(region.shape[1] / shrink)), max(1, round(region.shape[0] / shrink)))
        region = np.asarray(cv2.resize(region, target, interpolation=cv2.INTER_AREA), np.uint8)
    return region, low_corner.astype(np.float64), shrink


def sharpness(crop: UInt8Array) -> float:
    """Variance of the Laplacian of a crop in gray: low where it is blurred (Pech-Pacheco et al. 2000)."""
    gray = crop if crop.ndim == 2 else cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(gray, cv2.CV_64F).var())
