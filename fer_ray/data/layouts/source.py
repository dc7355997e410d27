"""What every reader of a layout is given: the files, and what their labels mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.label_names import LEFT_OUT, PRESETS, parse_label_names, plain_label
from fer_ray.data.layouts.tree import File, Folder
from fer_ray.emotions import emotion_of
from fer_ray.errors import DatasetError
from fer_ray.io.storage import Storage
from fer_ray.text import first_few, plural, sanitize


@dataclass(frozen=True)
class Labels:
    """What the labels of a data set mean.

    Attributes:
        names: the emotion of each label; empty for labels that are left out.
        leaves_out_others: whether labels that are no emotion are left out too, since the classes are named.
    """

    names: Mapping[str, str]
    leaves_out_others: bool = False

    def or_preset(self, preset: str) -> Labels:
        """Those of a published data set, unless others were asked for."""
        return self if self.names else replace(self, names=PRESETS[preset])

    def emotion(self, label: str) -> str | None:
        """The emotion; empty for a label that is left out, None for one that nobody knows."""
        known = self.names.get(plain_label(label))
        if known is None:
            known = emotion_of(label)
        return LEFT_OUT if known is None and self.leaves_out_others else known

    def unknown(self, what: str, label: str) -> DatasetError:
        """The error about a label that nobody knows, in the place that `what` names."""
        shown = sanitize(plain_label(label))[:40]
        if plain_label(label).isdecimal() and not self.names:
            presets = ", ".join(name for name, labels in PRESETS.items() if plain_label(label) in labels)
            known = f"a data set that it is like ({presets}), or " if presets else ""
            return DatasetError(f"{what}: say what the numbers mean with --label-names, as {known}{shown}=EMOTION for each.")
        return DatasetError(
            f"{what}: say what it means with --label-names {shown}=EMOTION, leave it out with --label-names {shown}=, or name --classes."
        )


@dataclass(frozen=True)
class Source:
    """A data set before its layout is known."""

    config: DatasetConfig
    storage: Storage
    tree: Folder
    labels: Labels

    @classmethod
    def of(cls, config: DatasetConfig, storage: Storage, tree: Folder) -> Source:
        """With the meaning of labels that the configuration gives."""
        return cls(config, storage, tree, Labels(parse_label_names(config.label_names), bool(config.classes)))


def unlabeled(files: Iterable[File], labeled: Iterable[File]) -> list[str]:
    """A sentence about the images that nothing labels, where there are some."""
    known = {file.path for file in labeled}
    others = [sanitize(file.path) for file in files if file.path not in known]
    return [f"Left out, since nothing labels them: {plural(len(others), 'image')} ({first_few(others)})."] if others else []


def left_out(labels: Mapping[str, int]) -> list[str]:
    """A sentence about images whose labels are none of the classes, by label; where there are some."""
    if not labels:
        return []
    named = first_few(f"{sanitize(label)[:40]!r}" for label in labels)
    return [f"Left out, since their labels are no emotion or none of the classes: {plural(sum(labels.values()), 'image')} (label {named})."]
