"""Which image is in which split, and what it is to be called: by its folder, by its row, or by the votes of FER+."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fer_ray.config.dataset import SPLITS, TRAIN, VALIDATION, DatasetConfig
from fer_ray.data.ferplus import NO_LABEL, distributions, majority_labels, match_votes, read_votes, soft_labels
from fer_ray.data.layouts import WHOLE, Sample
from fer_ray.emotions import EMOTIONS
from fer_ray.errors import DatasetError
from fer_ray.io.storage import Storage
from fer_ray.text import first_few, plural
from fer_ray.typing import BoolArray, Float32Array, Int64Array


@dataclass(frozen=True)
class LabeledSamples:
    """Samples (n) in the order of their keys; `labels` (n,) are indices into the classes, `targets` (n, classes) add up to 1."""

    samples: tuple[Sample, ...]
    labels: Int64Array
    targets: Float32Array


@dataclass(frozen=True)
class _VotedSamples:
    """Samples whose labels are indices into EMOTIONS, with their votes (n, 10) where there are any."""

    samples: tuple[Sample, ...]
    labels: Int64Array
    votes: Int64Array | None

    def take(self, positions: Sequence[int] | Int64Array) -> _VotedSamples:
        votes = None if self.votes is None else self.votes[positions]
        return _VotedSamples(tuple(self.samples[position] for position in positions), self.labels[positions], votes)


def split_and_label(
    samples: tuple[Sample, ...], config: DatasetConfig, storage: Storage, asked: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], dict[str, LabeledSamples], list[str]]:
    """The classes, what each split holds of them, and findings about those asked for (default: all), in sentences.

    Validation is drawn from train where it is missing.

    Raises:
        DatasetError: the splits' classes differ, there is only one class, a split has none, or the votes belong to other images.
    """
    pool, findings = _match_labels(samples, config, storage)
    parts = _divide(pool, config, findings)
    labeled, classes = {}, _classes(parts, config)
    for split, part in parts.items():
        notes: list[str] = []
        labeled[split] = _restrict_to_classes(_relabel(part, split, config, notes), split, classes, config, notes)
        findings += notes if asked is None or split in asked else []
        if not labeled[split].samples and (asked is None or split in asked):
            raise DatasetError(f"The {split} split of {config.dataset} holds no image of {', '.join(classes)}: add some.")
    return classes, labeled, findings


def _match_labels(samples: tuple[Sample, ...], config: DatasetConfig, storage: Storage) -> tuple[_VotedSamples, list[str]]:
    if not config.ferplus:
        return _VotedSamples(samples, np.array([EMOTIONS.index(sample.emotion) for sample in samples], np.int64), None), []
    matched = match_votes(read_votes(storage, config.ferplus), samples)
    kept = [position for position, votes in enumerate(matched) if votes is not None]
    without = [sample.name for sample, votes in zip(samples, matched, strict=True) if votes is None]
    findings = [f"Left out for want of FER+ votes: {plural(len(without), 'image')} ({first_few(without)})."] if without else []
    votes = np.array([matched[position] for position in kept], np.int64)
    return _VotedSamples(tuple(samples[position] for position in kept), soft_labels(votes), votes), findings


def _divide(pool: _VotedSamples, config: DatasetConfig, findings: list[str]) -> dict[str, _VotedSamples]:
    """The samples of each split that the data set has; train gives a share of each class to validation where there is none."""
    names = np.array([TRAIN if sample.split == WHOLE else sample.split for sample in pool.samples], object)
    if TRAIN in names and VALIDATION not in names:
        names[_draw_validation(pool, names == TRAIN, config)] = VALIDATION
        share, seed = f"{config.validation_share:.0%} of each class", config.split_seed
        findings.append(f"The data set has no validation split: {share} of train became one (split_seed {seed}).")
    return {split: pool.take(np.flatnonzero(names == split)) for split in SPLITS if split in names}


def _draw_validation(pool: _VotedSamples, train: BoolArray, config: DatasetConfig) -> list[int]:
    """Positions of the validation share. A hash of the name draws it, so neither listing order nor library versions matter."""
    drawn: list[int] = []
    for label in np.unique(pool.labels[train]):
        members = np.flatnonzero(train & (pool.labels == label))
        if label == NO_LABEL or len(members) < 2:
            continue
        count = min(max(round(len(members) * config.validation_share), 1), len(members) - 1)
        ranked = sorted(members, key=lambda position: _rank(pool.samples[position], config.split_seed))
        drawn += [int(position) for position in ranked[:count]]
    return drawn


def _rank(sample: Sample, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{sample.key.partition('/')[2]}".encode()).digest()


def _classes(parts: dict[str, _VotedSamples], config: DatasetConfig) -> tuple[str, ...]:
    if config.classes or config.ferplus:
        return tuple(sorted(config.classes or EMOTIONS))
    found = {split: {EMOTIONS[label] for label in part.labels} for split, part in parts.items()}
    every, common = set().union(*found.values()), set.intersection(*found.values())
    if every != common:
        missing = "; ".join(f"{split} has no {', '.join(sorted(every - classes))}" for split, classes in found.items() if every - classes)
        raise DatasetError(f"The splits of {config.dataset} have different classes ({missing}): add them, or name some with --classes.")
    if len(every) < 2:
        raise DatasetError(f"The data set {config.dataset} has only the class {', '.join(every)}: there must be two at least.")
    return tuple(sorted(every))


def _relabel(part: _VotedSamples, split: str, config: DatasetConfig, findings: list[str]) -> _VotedSamples:
    """With votes: train takes what is likely enough, validation and test only clear majorities, as the paper judges by."""
    if part.votes is None:
        return part
    soft = split == TRAIN and config.ferplus_labels == "soft"
    labels = soft_labels(part.votes) if soft else majority_labels(part.votes)
    kept = np.flatnonzero(labels != NO_LABEL)
    if len(kept) < len(labels):
        rule = "all emotions together have" if soft else "one emotion has"
        left_out = f"{len(labels) - len(kept):,} of {plural(len(labels), 'image')} of {split}"
        findings.append(f"Left out, since FER+ counts only where {rule} more than half of the votes: {left_out}.")
    return _VotedSamples(part.samples, labels, part.votes).take(kept)


def _restrict_to_classes(
    part: _VotedSamples, split: str, classes: tuple[str, ...], config: DatasetConfig, findings: list[str]
) -> LabeledSamples:
    """Only the classes, their first `limit` images, and targets over them."""
    numbers = [EMOTIONS.index(name) for name in classes]
    members = [np.flatnonzero(part.labels == number) for number in numbers]
    left_out = len(part.labels) - sum(map(len, members))
    if left_out:
        findings.append(f"Left out as of other emotions than the classes: {plural(left_out, 'image')} of {split}.")
    kept = np.sort(np.concatenate([positions[: config.limit] for positions in members]))
    chosen = part.take(kept)
    labels = np.searchsorted(numbers, chosen.labels).astype(np.int64)
    targets = np.eye(len(classes), dtype=np.float32)[labels]
    if chosen.votes is not None and config.ferplus_labels == "soft":
        shares = distributions(chosen.votes)[:, numbers]
        targets = np.asarray(shares / shares.sum(axis=1, keepdims=True), np.float32)
    return LabeledSamples(chosen.samples, labels, targets)
