"""Cut faces out of images the way the training images look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from fer_ray.config.crop import CropGeometry
from fer_ray.config.recipe import GRAY
from fer_ray.typing import Float32Array, Float64Array, UInt8Array

_MIN_SIDE = 2.0  # pixels of the image: nothing smaller can be enlarged
KEPT_REACH = 0.8  # sides of the box from its centre to the edge of a crop that is kept: models look 0.6 far, turned ones 0.8
KEPT_QUALITY = 90  # of JPEG
KEPT_QUALITY_OF_SMALL = 96  # of crops below SMALL_SIDE, which have few bytes and little that could be lost
SMALL_SIDE = 72  # pixels
_REACH = 0.75  # sides from a crop's centre to the corner of a rotated one: half the diagonal, and a little more


class Located(Protocol):
    """A face whose place in an image is known: `bbox` is x, y, width, height, `landmarks` (5, 2) begin with the left and the right eye."""

    @property
    def bbox(self) -> tuple[float, float, float, float]: ...
    @property
    def landmarks(self) -> Float32Array: ...


@dataclass(frozen=True)
class KeptCrop:
    """A face with its surroundings as a JPEG, upright as in the image, and the face's box in pixels of that crop: x, y, width, height."""

    jpeg: bytes
    box: tuple[float, float, float, float]


def keep_crop(pixels: UInt8Array, face: Located, side: int) -> KeptCrop:
    """Cut out as much of the image as models look at, in pixels of the image, or shrunk to at most `side` pixels.

    Models cut their own crops out of it with `crop_face`. It ends where the image ends, so that these see the edge repeated
    as they do in the image.
    """
    x, y, width, height = face.bbox
    reach = max(_MIN_SIDE, float(np.sqrt(max(width, 1) * max(height, 1)))) * KEPT_REACH
    centre = np.array([x + width / 2, y + height / 2])
    high = np.array(pixels.shape[1::-1])
    low_corner = np.clip(np.floor(centre - reach), 0, high - 1).astype(int)
    high_corner = np.clip(np.ceil(centre + reach), low_corner + 1, high).astype(int)
    region = pixels[low_corner[1] : high_corner[1], low_corner[0] : high_corner[0]]
    factor = min(1.0, side / max(region.shape[:2]))
    if factor < 1:
        target = (max(1, round(region.shape[1] * factor)), max(1, round(region.shape[0] * factor)))
        region = np.asarray(cv2.resize(region, target, interpolation=cv2.INTER_AREA), np.uint8)
    quality = KEPT_QUALITY if max(region.shape[:2]) > SMALL_SIDE else KEPT_QUALITY_OF_SMALL
    jpeg = cv2.imencode(".jpg", region, [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1])[1].tobytes()
    ratio_x, ratio_y = np.array(region.shape[1::-1]) / (high_corner - low_corner)
    left, top = (float(value) for value in low_corner)
    return KeptCrop(jpeg, ((x - left) * ratio_x, (y - top) * ratio_y, width * ratio_x, height * ratio_y))


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
