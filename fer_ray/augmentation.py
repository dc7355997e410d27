"""Random views of training images: rotation, zoom, shift, mirror image, light, blur, and erased rectangles."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from fer_ray.dataset import Float32Array, Int64Array, Split, UInt8Array
from fer_ray.recipe import AugmentationConfig


def augmented_batches(
    split: Split, batch_size: int, config: AugmentationConfig, generator: np.random.Generator
) -> Iterator[tuple[Float32Array, Int64Array]]:
    """One epoch in random order: batches of augmented images (batch_size, size, size, 1) float32 in 0..255, and labels.

    The images left over by the last whole batch are dropped; another epoch's order picks others.
    """
    order = generator.permutation(len(split))
    for start in range(0, len(order) - batch_size + 1, batch_size):
        rows = order[start : start + batch_size]
        yield augment(split.images[rows], config, generator), split.labels[rows]


def augment(images: UInt8Array, config: AugmentationConfig, generator: np.random.Generator) -> Float32Array:
    """Random views of gray images (n, size, size) uint8 -> (n, size, size, 1) float32 in 0..255."""
    size = images.shape[1]
    views = np.empty((*images.shape, 1), np.float32)
    for view, image in zip(views, images, strict=True):
        warped = cv2.warpAffine(
            image, _random_affine(size, config, generator), (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        pixels = warped.astype(np.float32)
        if config.blur and generator.random() < 0.25:
            pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), generator.uniform(0.3, 0.3 + config.blur)), np.float32)
        contrast = 1 + generator.uniform(-config.contrast, config.contrast)
        brightness = 255 * generator.uniform(-config.brightness, config.brightness)
        pixels = (pixels - 127.5) * contrast + 127.5 + brightness
        np.clip(pixels, 0, 255, out=pixels)
        if generator.random() < config.erasing:
            _erase(pixels, generator)
        view[..., 0] = pixels
    return views


def _random_affine(size: int, config: AugmentationConfig, generator: np.random.Generator) -> Float32Array:
    """Rotation, zoom and shift about the centre, with a mirror image in half of the cases: a (2, 3) matrix for warpAffine."""
    centre = (size - 1) / 2
    angle = generator.uniform(-config.rotation, config.rotation)
    scale = 1 + generator.uniform(-config.zoom, config.zoom)
    matrix = np.asarray(cv2.getRotationMatrix2D((centre, centre), angle, scale), np.float64)
    matrix[:, 2] += generator.uniform(-config.shift, config.shift, 2) * size
    if config.flip and generator.random() < 0.5:
        matrix[0] *= -1
        matrix[0, 2] += size - 1
    return matrix.astype(np.float32)


def _erase(pixels: Float32Array, generator: np.random.Generator) -> None:
    """Random erasing (Zhong et al. 2020, arXiv 1708.04896): a rectangle of 4 to 25 % of the area becomes noise of one level."""
    size = pixels.shape[0]
    area, ratio = generator.uniform(0.04, 0.25) * size * size, np.exp(generator.uniform(-0.9, 0.9))
    height, width = (min(size, max(1, round(np.sqrt(area * r)))) for r in (ratio, 1 / ratio))
    top, left = generator.integers(0, size - height + 1), generator.integers(0, size - width + 1)
    pixels[top : top + height, left : left + width] = generator.uniform(0, 255)
