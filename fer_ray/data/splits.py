"""Which image is in which split, and what it is to be called: by its folder, by its row, or by the votes of FER+."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fer_ray.config.dataset import ALL, SPLITS, TRAIN, VALIDATION, DatasetConfig
from fer_ray.data.ferplus import NO_LABEL, distributions, majority_labels, match_votes, read_votes, soft_labels
from fer_ray.data.groups import describe_crossing
from fer_ray.data.sample import Layout, Sample
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
    layout: Layout, config: DatasetConfig, storage: Storage, asked: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], dict[str, LabeledSamples], list[str]]:
    """The classes, what each split holds of them, and findings about those asked for (default: all), in sentences.

    Validation is drawn from train where it is missing. Where the split `all` is asked for, it is the only one.

    Raises:
        DatasetError: the splits' classes differ, there is only one class, a split has none, or the votes belong to other images.
    """
    pool, findings = _match_labels(layout, config, storage)
    parts = {ALL: pool} if asked == (ALL,) else _divide(pool, config, findings)
    findings += describe_crossing({split: part.samples for split, part in parts.items()})
    labeled, classes = {}, _classes(parts, config, bool(config.ferplus or layout.votes))
    for split, part in parts.items():
        notes: list[str] = []
        labeled[split] = _restrict_to_classes(_relabel(part, split, config, notes), split, classes, config, notes)
        findings += notes if asked is None or split in asked else []
        if not labeled[split].samples and (asked is None or split in asked):
            raise DatasetError(f"The {split} split of {config.dataset} holds no image of {', '.join(classes)}: add some.")
    return classes, labeled, findings


def _match_labels(layout: Layout, config: DatasetConfig, storage: Storage) -> tuple[_VotedSamples, list[str]]:
    samples, files = layout.samples, config.ferplus or layout.votes
    if not files:
        return _VotedSamples(samples, np.array([EMOTIONS.index(sample.emotion) for sample in samples], np.int64), None), []
    matched = match_votes(read_votes(storage, files), samples)
    kept = [position for position, votes in enumerate(matched) if votes is not None]
    without = [sample.name for sample, votes in zip(samples, matched, strict=True) if votes is None]
    findings = [f"Left out for want of FER+ votes: {plural(len(without), 'image')} ({first_few(without)})."] if without else []
    votes = np.array([matched[position] for position in kept], np.int64)
    return _VotedSamples(tuple(samples[position] for position in kept), soft_labels(votes), votes), findings


def _divide(pool: _VotedSamples, config: DatasetConfig, findings: list[str]) -> dict[str, _VotedSamples]:
    """The samples of each split that the data set has; train gives a share of each class to validation where there is none."""
    names = np.array([TRAIN if sample.split == ALL else sample.split for sample in pool.samples], object)
    if TRAIN in names and VALIDATION not in names:
        drawn, lacking = _draw_validation(pool, names == TRAIN, config)
        if lacking and config.split_by:
            raise DatasetError(f"The groups of --split-by leave {config.dataset} without {lacking}: name smaller ones, or add images.")
        if lacking:
            findings.append(f"Images that belong together are in train and validation, as there would else be no {lacking}.")
            pool = replace(pool, samples=tuple(replace(sample, group="") for sample in pool.samples))
            drawn, _ = _draw_validation(pool, names == TRAIN, config)
        names[drawn] = VALIDATION
        groups = {pool.samples[position].group for position in drawn} - {""}
        whole = f", {plural(len(groups), 'group')} of images whole" if groups else ""
        share, seed = f"{config.validation_share:.0%} of each class", config.split_seed
        findings.append(f"The data set has no validation split: {share} of train became one (split_seed {seed}){whole}.")
    return {split: pool.take(np.flatnonzero(names == split)) for split in SPLITS if split in names}


def _draw_validation(pool: _VotedSamples, train: BoolArray, config: DatasetConfig) -> tuple[list[int], str]:
    """Positions of the validation share, whole groups of what belongs together; an image without a group is one by itself.

    A hash of the group's or the image's name draws it, so neither listing order nor library versions matter.
    The text says which images the groups leave nothing of, such as `validation image of fear`.
    """
    groups: dict[bytes, list[int]] = defaultdict(list)
    members: dict[int, int] = defaultdict(int)
    for position in np.flatnonzero(train):
        if pool.labels[position] != NO_LABEL:
            groups[_rank(pool.samples[position], config.split_seed)].append(int(position))
            members[int(pool.labels[position])] += 1
    wanted = {label: min(max(round(n * config.validation_share), 1), n - 1) for label, n in members.items()}
    ranked = [groups[rank] for rank in sorted(groups)]
    drawn = _take_groups(ranked, pool.labels, wanted)
    in_validation = np.bincount(pool.labels[drawn], minlength=len(EMOTIONS))
    for label, number in wanted.items():
        if number and not 0 < in_validation[label] < members[label]:
            split = TRAIN if in_validation[label] else VALIDATION
            return drawn, f"{split} image of {EMOTIONS[label]}"
    return drawn, ""


def _take_groups(ranked: list[list[int]], labels: Int64Array, wanted: dict[int, int]) -> list[int]:
    """The first groups that are wanted more than not, then the first of a class that has none yet."""
    drawn: list[int] = []
    missing, rest = dict(wanted), []
    for group in ranked:
        counts = Counter(labels[group].tolist())
        if 2 * sum(min(max(missing[label], 0), count) for label, count in counts.items()) > len(group):
            drawn += group
            missing = {label: number - counts[label] for label, number in missing.items()}
        else:
            rest.append((group, counts))
    for group, counts in rest:
        if any(missing[label] == wanted[label] > 0 for label in counts):
            drawn += group
            missing = {label: number - counts[label] for label, number in missing.items()}
    return drawn


def _rank(sample: Sample, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{sample.group or sample.key.partition('/')[2]}".encode()).digest()


def _classes(parts: dict[str, _VotedSamples], config: DatasetConfig, voted: bool) -> tuple[str, ...]:
    if config.classes or voted:
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
