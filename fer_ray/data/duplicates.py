"""Images that stand in a data set more than once: equal pixels, and mirrored, re-encoded or barely moved copies across splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fer_ray.config.dataset import TEST, TRAIN, VALIDATION
from fer_ray.text import plural
from fer_ray.typing import Float32Array, Int64Array, UInt8Array

# Of the thumbnails of two images. Of FER-2013's validation images that have one in train above it, those looked at were the same
# photograph; a copy in JPEG of quality 30 has 0.996 at least.
MIN_CORRELATION = 0.97
MIN_CONTRAST = 2.0  # levels, standard deviation of a thumbnail: what is nearly blank looks like all that is
MIN_REST = 0.1  # of an image's length 1: what is nearly the mean of all looks like any of them
BLOCK = (512, 32_768)  # images of both sides that are compared at once: 128 MB


@dataclass(frozen=True)
class Copy:
    """One place of an image: its split, its position there, and its label."""

    split: str
    position: int
    label: int


def find_duplicates(hashes: Mapping[str, Sequence[bytes]], labels: Mapping[str, Sequence[int]]) -> list[list[Copy]]:
    """The places of every image that has several, in the order of the splits; no hash, no duplicate."""
    places: dict[bytes, list[Copy]] = defaultdict(list)
    for split, pixels in hashes.items():
        for position, (pixel_hash, label) in enumerate(zip(pixels, labels[split], strict=True)):
            if pixel_hash:
                places[pixel_hash].append(Copy(split, position, int(label)))
    return [copies for copies in places.values() if len(copies) > 1]


def find_near_copies(
    thumbnails: Mapping[str, UInt8Array], hashes: Mapping[str, Sequence[bytes]], labels: Mapping[str, Sequence[int]]
) -> list[list[Copy]]:
    """The images of validation and test that look like others of an earlier split, mirrored or not, each with these.

    Args:
        thumbnails: small gray images (n, side, side), by split.
        hashes: those of the pixels; images whose pixels are equal are none of these copies.
        labels: indices of the classes.
    """
    parts = _mirror_parts(thumbnails)
    found: dict[tuple[str, int], list[Copy]] = defaultdict(list)
    for first, second in ((TRAIN, VALIDATION), (TRAIN, TEST), (VALIDATION, TEST)):
        if first in parts and second in parts:
            for one, other in _near_pairs(parts[first], parts[second]):
                if hashes[first][one] != hashes[second][other]:
                    found[second, other].append(Copy(first, one, int(labels[first][one])))
    return [[*copies, Copy(split, position, int(labels[split][position]))] for (split, position), copies in sorted(found.items())]


def _mirror_parts(thumbnails: Mapping[str, UInt8Array]) -> dict[str, tuple[Float32Array, Float32Array]]:
    """What of each image is equal to its mirror image, and what is opposite, each (n, side * side), together of length 1; by split.

    The correlation of two images is the sum of the products of both parts, that with the mirror image their difference. What the
    images of a data set have in common, such as a studio's background, tells none of them and is left out.
    """
    halves = {split: _halves(images) for split, images in thumbnails.items()}
    common = np.concatenate([equal for equal, _ in halves.values()]).mean(axis=0)
    parts = {}
    for split, (equal, opposite) in halves.items():
        equal -= np.where(equal.any(axis=1, keepdims=True), common, 0)
        length = np.sqrt((equal**2).sum(axis=1) + (opposite**2).sum(axis=1))[:, None]
        scale = np.where(length > MIN_REST, 1 / np.maximum(length, MIN_REST), 0).astype(np.float32)
        parts[split] = equal * scale, opposite * scale
    return parts


def _halves(images: UInt8Array) -> tuple[Float32Array, Float32Array]:
    pixels = images.astype(np.float32)
    pixels -= pixels.mean(axis=(1, 2), keepdims=True)
    length = np.sqrt((pixels**2).sum(axis=(1, 2), keepdims=True))
    pixels *= np.where(length > MIN_CONTRAST * images.shape[1], 1 / np.maximum(length, 1), 0).astype(np.float32)
    mirrored, half = pixels[:, :, ::-1], np.float32(0.5)
    return (half * (pixels + mirrored)).reshape(len(images), -1), (half * (pixels - mirrored)).reshape(len(images), -1)


def _near_pairs(first: tuple[Float32Array, Float32Array], second: tuple[Float32Array, Float32Array]) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for row in range(0, len(second[0]), BLOCK[0]):
        for column in range(0, len(first[0]), BLOCK[1]):
            rows, columns = slice(row, row + BLOCK[0]), slice(column, column + BLOCK[1])
            alike = second[0][rows] @ first[0][columns].T
            alike += np.abs(second[1][rows] @ first[1][columns].T)
            near: Int64Array = np.argwhere(alike > MIN_CORRELATION)
            pairs += [(column + int(one), row + int(other)) for other, one in near]
    return pairs


def leaked(groups: list[list[Copy]]) -> list[int]:
    """Positions of the training images that stand in validation or test too."""
    return sorted(copy.position for copies in groups if _splits(copies) - {TRAIN} for copy in copies if copy.split == TRAIN)


def describe(groups: list[list[Copy]], asked: Sequence[str]) -> list[str]:
    """A sentence for each split that holds copies of its own images, and one about validation and test."""
    sentences = []
    for split in asked:
        within = [[copy for copy in copies if copy.split == split] for copies in groups]
        within = [copies for copies in within if len(copies) > 1]
        if within:
            more = sum(len(copies) - 1 for copies in within)
            differing = sum(len({copy.label for copy in copies}) > 1 for copies in within)
            sentences.append(f"Copies within {split}: {plural(more, 'image')}; under several labels: {plural(differing, 'picture')}.")
    both = sum({VALIDATION, TEST} <= _splits(copies) for copies in groups)
    if both:
        sentences.append(f"In both validation and test: {plural(both, 'picture')}.")
    return sentences


def _splits(copies: list[Copy]) -> set[str]:
    return {copy.split for copy in copies}
