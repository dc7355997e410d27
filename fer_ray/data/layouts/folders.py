"""Folders that say the label: split folders (also wrapped or doubled), one folder per emotion."""

from __future__ import annotations

import unicodedata

from fer_ray.config.dataset import ALL
from fer_ray.data.layouts.source import Labels, Source
from fer_ray.data.layouts.tree import Folder, split_of
from fer_ray.data.sample import Layout, Sample
from fer_ray.errors import DatasetError
from fer_ray.text import first_few, plural, sanitize

_Classes = dict[str, dict[str, Folder]]


def read_folders(source: Source) -> Layout | None:
    """The samples of emotion folders, in this folder or wrapped in others; None where there are none.

    Raises:
        DatasetError: they are there, but not as they must be.
    """
    found = _find(source.tree, source.labels)
    return _layout(*found) if found else None


def _find(folder: Folder, labels: Labels) -> tuple[_Classes, list[str]] | None:
    """The emotion folders of each split, in this folder or wrapped in others; None where there are none."""
    filled = folder.with_images()
    splits = [below for below in filled if split_of(below.name)]
    if any(labels.emotion(name) for name in folder.folders):
        if splits:
            raise DatasetError(f"The folder {folder.path or '.'} holds both split folders and emotion folders: move one of them out.")
        findings: list[str] = []
        return {ALL: _emotion_folders(folder, labels, findings)}, findings
    if splits:
        findings = _left_out([below for below in filled if below not in splits])
        return _split_folders(splits, labels, findings), findings
    found = [result for result in (_find(below, labels) for below in filled) if result]
    if len(found) > 1:
        raise DatasetError(
            f"The folders {first_few(below.path for below in filled)} are data sets of their own: give --dataset one of them."
        )
    return found[0] if found else None


def _split_folders(folders: list[Folder], labels: Labels, findings: list[str]) -> _Classes:
    by_split: dict[str, Folder] = {}
    for folder in folders:
        split = split_of(folder.name) or ""
        if split in by_split:
            raise DatasetError(f"The folders {by_split[split].path} and {folder.path} are both the {split} split: merge them.")
        by_split[split] = folder
    return {split: _emotion_folders(_unwrapped(folder, labels), labels, findings) for split, folder in by_split.items()}


def _unwrapped(folder: Folder, labels: Labels) -> Folder:
    """`Training/Training/<emotion>` and the like: down to where the emotions stand."""
    while not any(labels.emotion(name) for name in folder.folders):
        below = folder.with_images()
        if len(below) != 1 or not below[0].folders:
            break
        folder = below[0]
    return folder


def _emotion_folders(folder: Folder, labels: Labels, findings: list[str]) -> dict[str, Folder]:
    found: dict[str, Folder] = {}
    left_out = []
    for below in folder.folders.values():
        emotion = labels.emotion(below.name)
        if emotion is None and any(below.images()):
            raise labels.unknown(f"The folder {sanitize(below.path)} is not named after a known emotion", below.name)
        if emotion in found:
            both = f"{sanitize(found[emotion].path)} and {sanitize(below.path)}"
            raise DatasetError(f"The folders {both} name the same emotion: merge them.")
        if emotion:
            found[emotion] = below
            if not any(below.images()):
                raise DatasetError(f"The folder {sanitize(below.path)} holds no images: fill it, or remove the class from every split.")
        elif any(below.images()):
            left_out.append(below)
    if not found:
        remedy = f"put the images into {sanitize(folder.name)}/<emotion>/"
        raise DatasetError(f"The split {sanitize(folder.path)} holds no emotion folders: {remedy}.")
    findings += _left_out(left_out, "none of the classes")
    return found


def _left_out(folders: list[Folder], what: str = "no split") -> list[str]:
    return [
        f"The folder {sanitize(below.path)}/ with {plural(sum(1 for _ in below.images()), 'image')} is {what} and was left out."
        for below in folders
    ]


def _layout(classes: _Classes, findings: list[str]) -> Layout:
    samples, others = [], []
    for split, folders in classes.items():
        for emotion, folder in folders.items():
            for file in folder.all_files():
                if file.is_image:
                    below = unicodedata.normalize("NFC", file.path.removeprefix(folder.path + "/"))
                    samples.append(Sample(sanitize(file.path), f"{split}/{emotion}/{below}", split, emotion, file.entry))
                else:
                    others.append(sanitize(file.path))
    if others:
        findings.append(
            f"Left out as no images by their names: {plural(len(others), 'file')} in the emotion folders ({first_few(others)})."
        )
    return Layout(tuple(sorted(samples, key=lambda sample: sample.key)), tuple(findings))
