"""Training images as the network sees them: random views, mixed pairs, smoothed targets, weights of rare classes."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from fer_ray.config.recipe import AugmentationConfig, OptimizationConfig, Recipe
from fer_ray.data.dataset import Split
from fer_ray.typing import Float32Array, UInt8Array
from fer_ray.vision import degradation

# Of the images that are made poor, the share that is so in each way; that of patches and masks is a setting.
GAMMA_SHARE = 0.2
MOTION_SHARE = 0.14
PIXELS_SHARE = 0.3
NOISE_SHARE = 0.35
JPEG_SHARE = 0.35
FEW_PIXELS = 40  # a side: with more, a face loses little
POOR_JPEG = 75  # quality: with more, a face loses little

Batch = tuple[Float32Array, Float32Array, Float32Array]  # images, targets, weights


def training_batches(split: Split, recipe: Recipe, epoch: int, rank: int = 0, count: int = 1) -> Iterator[Batch]:
    """One epoch in random order: images (n, s, s, channels) in 0..255, targets (n, classes) and weights (n,), all float32.

    Of every batch each of `count` workers gets its own share, n = batch_size / count. The order depends on seed and epoch alone,
    so that all workers agree and a resumed training sees what it would have seen. The images left over by the last whole
    batch are dropped; another epoch's order picks others.
    """
    settings = recipe.optimization
    order = np.random.default_rng((settings.seed, epoch)).permutation(len(split))
    generator = np.random.default_rng((settings.seed, epoch, rank))
    class_weights = weights_of_classes(split, settings)
    smoothing = settings.label_smoothing
    for start in range(0, len(order) - settings.batch_size + 1, settings.batch_size):
        rows = order[start + rank : start + settings.batch_size : count]
        targets = split.targets[rows]
        weights = (targets @ class_weights).astype(np.float32)
        targets = (targets * (1 - smoothing) + smoothing / targets.shape[1]).astype(np.float32)
        yield _mixed(augment(split.images[rows], recipe.augmentation, generator), targets, weights, settings.mixup, generator)


def weights_of_classes(split: Split, settings: OptimizationConfig) -> Float32Array:
    """(classes,): one each, or by the inverse of the class's share or its root, with mean 1 over the images."""
    shares = split.targets.mean(axis=0, dtype=np.float64)
    power = {"none": 0.0, "root": 0.5, "balanced": 1.0}[settings.class_weights]
    weights = np.maximum(shares, 1e-6) ** -power
    return np.asarray(weights / (weights @ shares), np.float32)


def _mixed(images: Float32Array, targets: Float32Array, weights: Float32Array, alpha: float, generator: np.random.Generator) -> Batch:
    """Mixup (Zhang et al. 2018, arXiv 1710.09412): every image with another one of the batch, in one random proportion."""
    if not alpha:
        return images, targets, weights
    share = np.float32(generator.beta(alpha, alpha))
    other = generator.permutation(len(images))

    def mix(values: Float32Array) -> Float32Array:
        return np.asarray(values * share + values[other] * (1 - share), np.float32)

    return mix(images), mix(targets), mix(weights)


def augment(images: UInt8Array, config: AugmentationConfig, generator: np.random.Generator) -> Float32Array:
    """Random views of images (n, s, s) gray or (n, s, s, 3) RGB uint8 -> (n, s, s, 1 or 3) float32 in 0..255."""
    size = images.shape[1]
    views = np.empty(images.shape, np.float32)
    for view, image in zip(views, images, strict=True):
        matrix = _random_affine(size, config, generator)
        view[...] = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        if config.blur and generator.random() < 0.25:
            view[...] = cv2.GaussianBlur(view, (0, 0), generator.uniform(0.3, 0.3 + config.blur))
        view -= 127.5
        view *= 1 + generator.uniform(-config.contrast, config.contrast)
        view += 127.5 + 255 * generator.uniform(-config.brightness, config.brightness)
        np.clip(view, 0, 255, out=view)
        if config.degrade and generator.random() < config.degrade:
            view[...] = degrade(view.astype(np.uint8), config, generator)
        if generator.random() < config.erasing:
            _erase(view, generator)
    return views[..., None] if views.ndim == 3 else views


def degrade(face: UInt8Array, config: AugmentationConfig, generator: np.random.Generator) -> UInt8Array:
    """A poor picture of the face, in the order in which a photograph gets so: light, what is in front, motion, pixels, noise, JPEG."""
    chance, side = generator.random, face.shape[0]
    if config.degrade_gamma > 1 and chance() < GAMMA_SHARE:
        face = degradation.gamma(face, config.degrade_gamma ** generator.uniform(-1, 1))
    if chance() < config.degrade_patch:
        face = degradation.patch(face, generator)
    if chance() < config.degrade_mask:
        face = degradation.mask(face, generator)
    if config.degrade_motion > 1 and chance() < MOTION_SHARE:
        face = degradation.motion_blur(face, generator.uniform(1, config.degrade_motion) * side / 48, generator.uniform(0, 180))
    if 0 < config.degrade_pixels < FEW_PIXELS and chance() < PIXELS_SHARE:
        face = degradation.downscale(face, min(side, int(generator.integers(config.degrade_pixels, FEW_PIXELS))))
    if config.degrade_noise > 0 and chance() < NOISE_SHARE:
        face = degradation.noise(face, generator.uniform(min(2, config.degrade_noise), config.degrade_noise), generator)
    if config.degrade_jpeg < POOR_JPEG and chance() < JPEG_SHARE:
        face = degradation.jpeg(face, int(generator.integers(config.degrade_jpeg, POOR_JPEG)))
    return face


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
    """Random erasing (Zhong et al. 2020, arXiv 1708.04896): a rectangle of 4 to 25 % of the area becomes one level."""
    size = pixels.shape[0]
    area, ratio = generator.uniform(0.04, 0.25) * size * size, np.exp(generator.uniform(-0.9, 0.9))
    height, width = (min(size, max(1, round(np.sqrt(area * r)))) for r in (ratio, 1 / ratio))
    top, left = generator.integers(0, size - height + 1), generator.integers(0, size - width + 1)
    pixels[top : top + height, left : left + width] = generator.uniform(0, 255)
