"""Images that belong together, of one person or one sequence: a split that tears them apart measures memory, not skill."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fer_ray.config.dataset import DatasetConfig
from fer_ray.data.sample import Sample
from fer_ray.errors import DatasetError, UsageError
from fer_ray.text import first_few, plural, sanitize

MIN_SEQUENCES = 10
MAX_MEDIAN_LENGTH = 100  # images: larger groups are kinds of images, not sequences
_FRAME = re.compile(r"(?P<sequence>.*?[^\W\d_].*?)[\W_]*\d+\W*")  # S010_004_00000017: a name that ends in a number


def group_samples(samples: tuple[Sample, ...], config: DatasetConfig) -> tuple[tuple[Sample, ...], list[str]]:
    """The samples with their groups, and a sentence about these.

    Groups are those that --split-by asks for, else the persons that the layout knows, else what the names of frames share.

    Raises:
        DatasetError: --split-by fits no image.
        UsageError: it is no regular expression.
    """
    if config.split_by and not (config.labels and any(sample.group for sample in samples)):
        samples = _by_pattern(samples, config)
    elif not any(sample.group for sample in samples):
        sequences = find_sequences(samples)
        samples = tuple(replace(sample, group=sequences.get(sample.name, "")) for sample in samples) if sequences else samples
        if sequences:
            groups = list(dict.fromkeys(sequences.values()))
            shown = f"{plural(len(sequences), 'image')} in {len(groups):,} groups, such as {sanitize(first_few(groups, 2))}"
            return samples, [
                f"Names look like frames of sequences, or several pictures of one person: {shown} (--split-by says otherwise)."
            ]
    return samples, []


def _by_pattern(samples: tuple[Sample, ...], config: DatasetConfig) -> tuple[Sample, ...]:
    try:
        pattern = re.compile(config.split_by)
    except re.error as error:
        raise UsageError(f"The setting split_by is no regular expression ({error.msg}): give one such as '(S\\d+)_'.") from error
    found = [pattern.search(sample.name) for sample in samples]
    if not any(found):
        column = " or a column of the label files" if config.labels else ""
        raise DatasetError(f"The setting split_by fits no image such as {samples[0].name}: give a pattern for such names{column}.")
    groups = [(match[1] if match.re.groups else match[0]) or "" if match else "" for match in found]
    return tuple(replace(sample, group=group) for sample, group in zip(samples, groups, strict=True))


def find_sequences(samples: Iterable[Sample]) -> dict[str, str]:
    """The sequence of each sample by its name, where most names look like those of frames; else nothing.

    Names that differ in their last number alone are one sequence, unless there are too few or too large ones: then the number
    counts the images of a class or of all.
    """
    found: dict[str, str] = {}
    folders, total = set(), 0
    for sample in samples:
        folder, _, name = sample.name.rpartition("/")
        folders.add(folder)
        total += 1
        if match := _FRAME.fullmatch(name.rpartition(".")[0] or name):
            found[sample.name] = match["sequence"]
    lengths = Counter(found.values())
    several = {sequence for sequence, length in lengths.items() if length > 1}
    in_sequences = sum(lengths[sequence] for sequence in several)
    if len(several) < max(MIN_SEQUENCES, 2 * len(folders)) or 2 * in_sequences < total:
        return {}
    if np.median([lengths[sequence] for sequence in several]) > MAX_MEDIAN_LENGTH:
        return {}
    return {name: sequence for name, sequence in found.items() if sequence in several}


def describe_crossing(parts: Mapping[str, Sequence[Sample]]) -> list[str]:
    """A sentence about the groups that stand in several splits, where some do."""
    splits: dict[str, set[str]] = defaultdict(set)
    for split, samples in parts.items():
        for sample in samples:
            if sample.group:
                splits[sample.group].add(split)
    crossing = sorted(group for group, where in splits.items() if len(where) > 1)
    if not crossing:
        return []
    named = f"{len(crossing):,} of {plural(len(splits), 'group')} of images that belong together ({sanitize(first_few(crossing))})"
    return [f"In several splits are {named}: figures are better than they will be on other faces."]
