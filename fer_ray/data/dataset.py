"""FER-2013 and its relatives as arrays: labeled, divided into splits, read, and checked before anything is trained on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fer_ray.config.crop import DEFAULT_CROP, CropGeometry
from fer_ray.config.dataset import ALL, SPLITS, TRAIN, DatasetConfig
from fer_ray.config.recipe import GRAY
from fer_ray.data.duplicates import Copy, describe, find_duplicates, find_near_copies, leaked
from fer_ray.data.images import DecodedImages, FaceCrops, read_images
from fer_ray.data.layouts.find import find_layout
from fer_ray.data.splits import LabeledSamples, split_and_label
from fer_ray.errors import DatasetError, MissingSplitError
from fer_ray.io.storage import Storage
from fer_ray.text import first_few, plural
from fer_ray.typing import Float32Array, Int64Array, UInt8Array


@dataclass(frozen=True)
class Split:
    """Labeled face images.

    Attributes:
        images: (n, side, side) gray or (n, side, side, 3) RGB.
        labels: indices into the classes, (n,).
        targets: the probabilities to be learnt, (n, classes): one-hot, or the distribution of the votes.
        names: where each image came from.
    """

    images: UInt8Array
    labels: Int64Array
    targets: Float32Array
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self, classes: tuple[str, ...]) -> dict[str, int]:
        """How many images each class has."""
        per_class = np.bincount(self.labels, minlength=len(classes))
        return {name: int(count) for name, count in zip(classes, per_class, strict=True)}


@dataclass(frozen=True)
class Dataset:
    """The splits that were asked for (`train`, `validation`, `test`) over one list of classes.

    Attributes:
        classes: canonical emotion names, in the order of the labels.
        splits: the labeled images, by the name of the split.
        sha256: a hash over all that was read.
        findings: sentences about what was left out or looks wrong.
    """

    classes: tuple[str, ...]
    splits: dict[str, Split]
    sha256: str
    findings: tuple[str, ...] = ()

    @property
    def train(self) -> Split:
        return self.splits["train"]

    @property
    def validation(self) -> Split:
        return self.splits["validation"]


@dataclass(frozen=True)
class RawDataset:
    """What lies in a data set, before training images that are in validation or test too are left out.

    Attributes:
        classes: names of the classes, in the order of the labels.
        labeled: samples, labels and targets, by split.
        faces: images and hashes in the order of `labeled`, by split; splits that were only hashed have no images.
        duplicates: the places of every image that is there several times.
        near_copies: the places of every image of validation or test that is in an earlier split too, mirrored or slightly changed.
        findings: sentences about what was left out or looks wrong.
    """

    classes: tuple[str, ...]
    labeled: dict[str, LabeledSamples]
    faces: dict[str, DecodedImages]
    duplicates: list[list[Copy]]
    near_copies: list[list[Copy]]
    findings: tuple[str, ...]


def load_dataset(
    config: DatasetConfig,
    image_size: int,
    color: str = GRAY,
    splits: tuple[str, ...] = ("train", "validation"),
    geometry: CropGeometry = DEFAULT_CROP,
) -> Dataset:
    """Read a data set, check it, and leave out what must not be trained on.

    Classes are canonical emotion names in alphabetical order: those of the data set, all eight with FER+, or `config.classes`.
    A validation split that the data set lacks is drawn from train. Images that cannot be used are left out and told in
    `findings`; so are, unless `keep_duplicates`, training images that are in validation or test too, also mirrored or slightly
    changed. What is not square is stretched.

    Args:
        config: where the data set lies and how its labels are read.
        image_size: side of the images, in pixels.
        color: `gray` or `rgb`.
        splits: those that are needed; (`all`,) for every image as one split.
        geometry: how faces are cut out, where the configuration has them found.

    Returns:
        The splits, each in the order of its images' names.

    Raises:
        MissingSplitError: the data set lacks one of the splits.
        DatasetError: no known layout, a split or class that is missing or mostly broken, or votes of other images.
        StorageError: the place cannot be read with these credentials.
    """
    raw = read_raw(config, FaceCrops(image_size, color, config.find_faces, geometry), splits)
    left_out, copies = _copies_in_train(raw, config.keep_duplicates)
    findings = [*raw.findings, *copies]
    digest = hashlib.sha256("\n".join(raw.classes).encode())
    loaded = {}
    for split in sorted(splits, key=(*SPLITS, ALL).index):
        excluded = left_out if split == TRAIN else ()
        loaded[split] = _split(raw, split, excluded, digest)
        findings += _missing_classes(loaded[split], split, raw.classes)
    return Dataset(raw.classes, loaded, digest.hexdigest(), tuple(findings))


def _copies_in_train(raw: RawDataset, keep: bool) -> tuple[set[int], list[str]]:
    """The training images to leave out, since they or near copies of them are in validation or test, and sentences about them.

    Where near copies are most of train, the images of the data set are alike, and none is left out for that.
    """
    equal = leaked(raw.duplicates)
    near = sorted(set(leaked(raw.near_copies)) - set(equal))
    left_out: set[int] = set()
    findings = []
    for positions, where in ((equal, "they are"), (near, "mirrored, re-encoded or slightly changed they are")):
        if not positions:
            continue
        most = positions is near and 2 * len(near) > len(raw.labeled[TRAIN].samples)
        what = "Used in training (keep_duplicates), though" if keep else "Left out of train, since"
        if most and not keep:
            what = "Used in training, as they are most of it, though"
        names = first_few(raw.labeled[TRAIN].samples[position].name for position in positions)
        findings.append(f"{what} {where} in validation or test too: {plural(len(positions), 'image')} ({names}).")
        left_out |= set() if keep or most else set(positions)
    return left_out, findings


def read_raw(config: DatasetConfig, crops: FaceCrops, splits: tuple[str, ...] | None = None, keep_images: bool = True) -> RawDataset:
    """Find, label, divide and read.

    Args:
        config: where the data set lies and how its labels are read.
        crops: how images become faces.
        splits: those that are needed, by default all that there are; where train is among them, the others are hashed too.
        keep_images: whether to keep the images, or only the hashes.

    Raises:
        DatasetError, StorageError: as `load_dataset`.
    """
    storage = Storage.of(config)
    layout = find_layout(config, storage)
    classes, labeled, findings = split_and_label(layout, config, storage, splits)
    findings = [*layout.findings, *findings]
    asked = splits or tuple(labeled)
    for split in asked:
        if split not in labeled:
            remedy = "add rows of that Usage" if layout.samples[0].row else f"add a folder {split}/"
            message = f"The data set {config.dataset} has no {split} split, only {' and '.join(labeled)}: {remedy}."
            raise MissingSplitError(message, tuple(labeled))
    needed = [split for split in labeled if split in asked or TRAIN in asked]
    faces = {split: read_images(storage, labeled[split].samples, crops, keep_images and split in asked) for split in needed}
    for split in asked:
        findings += _broken(split, labeled[split], faces[split], classes)
    labels = {split: labeled[split].labels.tolist() for split in needed}
    hashes = {split: faces[split].pixels for split in needed}
    duplicates = find_duplicates(hashes, labels)
    near_copies = find_near_copies({split: faces[split].thumbnails for split in needed}, hashes, labels)
    findings += describe(duplicates, asked)
    return RawDataset(classes, {split: labeled[split] for split in needed}, faces, duplicates, near_copies, tuple(findings))


def _broken(split: str, labeled: LabeledSamples, faces: DecodedImages, classes: tuple[str, ...]) -> list[str]:
    """A sentence about the images that cannot be used.

    Raises:
        DatasetError: they are more than half of a class.
    """
    if not faces.problems:
        return []
    positions = sorted(faces.problems)
    broken = np.bincount(labeled.labels[positions], minlength=len(classes))
    for name, count, total in zip(classes, broken, np.bincount(labeled.labels, minlength=len(classes)), strict=True):
        if 2 * count > total:
            first = next(position for position in positions if classes[labeled.labels[position]] == name)
            reason = f"such as {labeled.samples[first].name}: {faces.problems[first]}"
            raise DatasetError(f"Of {plural(total, f'{split} image')} of {name} {count:,} cannot be used, {reason} Repair or remove them.")
    named = first_few(f"{labeled.samples[position].name} ({faces.problems[position].rstrip('.')})" for position in positions)
    return [f"Left out, since they cannot be used: {plural(len(positions), 'image')} of {split}: {named}."]


def _split(raw: RawDataset, split: str, excluded: Iterable[int], digest: hashlib._Hash) -> Split:
    labeled, faces = raw.labeled[split], raw.faces[split]
    images = faces.images
    if images is None:
        raise ValueError(f"the split {split} was only hashed")
    kept = sorted(set(range(len(images))) - set(faces.problems) - set(excluded))
    if len(kept) < len(images):
        for target, source in enumerate(kept):  # in place, since a second copy of the training images may not fit into memory
            images[target] = images[source]
        images = images[: len(kept)]
    for position in kept:
        digest.update(f"{labeled.samples[position].key}\n".encode())
        digest.update(labeled.targets[position].tobytes() + faces.contents[position])
    names = tuple(labeled.samples[position].name for position in kept)
    return Split(images, labeled.labels[kept], labeled.targets[kept], names)


def _missing_classes(loaded: Split, split: str, classes: tuple[str, ...]) -> list[str]:
    """A sentence about classes without an image of their own.

    Raises:
        DatasetError: training would see nothing of a class, not even in some votes, or the split is empty.
    """
    empty = [name for name, count in loaded.counts(classes).items() if not count]
    unseen = [name for name, share in zip(classes, loaded.targets.sum(axis=0), strict=True) if not share]
    if split == TRAIN and unseen:
        raise DatasetError(f"No training image is left of {', '.join(unseen)}: add some, or name the other classes with --classes.")
    if not len(loaded):
        raise DatasetError(f"No image is left of the {split} split: add some.")
    return [f"{split} has no image of {', '.join(empty)}."] if empty else []
