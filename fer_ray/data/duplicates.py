"""Images that stand in a data set more than once, by what they decode to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fer_ray.config.dataset import TEST, TRAIN, VALIDATION
from fer_ray.text import plural


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
