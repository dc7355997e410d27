"""Images whose own names say the label, or that votes label by name."""

from __future__ import annotations

import re
import unicodedata

from fer_ray.data.layouts.source import Source, unlabeled
from fer_ray.data.layouts.tree import File, Folder, split_of, split_of_path
from fer_ray.data.sample import Layout, Sample
from fer_ray.text import sanitize

# The names of files of a published data set: what in them is the label, and whose picture it is.
_NAMES = {
    "kdef": re.compile(r"[AB](?P<person>[FM]\d\d)(?P<label>AF|AN|DI|HA|NE|SA|SU)(?:S|HL|HR|FL|FR)\.\w+", re.IGNORECASE),
    "jaffe": re.compile(r"(?P<person>[A-Z]{2})\.(?P<label>AN|DI|FE|HA|NE|SA|SU)\d\.\d+\.\w+", re.IGNORECASE),
}
_VOTES = "label.csv"  # what Microsoft's script leaves in each folder of FER+


def read_file_names(source: Source) -> Layout | None:
    """The samples of a data set whose files are named after their labels; None where most are not."""
    images = list(source.tree.images())
    for preset, pattern in _NAMES.items():
        found = [(file, match) for file in images if (match := pattern.fullmatch(file.name))]
        if 2 * len(found) > len(images):
            labels = source.labels.or_preset(preset)
            samples = [_sample(file, labels.emotion(match["label"].upper()) or "", match["person"].upper()) for file, match in found]
            findings = unlabeled(images, (file for file, _ in found))
            return Layout(tuple(sorted(samples, key=lambda sample: sample.key)), tuple(findings))
    return None


def read_voted(source: Source) -> Layout | None:
    """The images of split folders without emotion folders that FER+ votes label; None where there are none.

    The votes lie in each folder as label.csv, or are those of --ferplus.
    """
    folders = list(_split_folders(source.tree))
    votes = tuple(file.entry.image_uri for folder in folders for file in folder.files if file.name.lower() == _VOTES)
    if not votes and not source.config.ferplus:
        return None
    samples = [_sample(file, "", "") for folder in folders for file in folder.files if file.is_image]
    if not samples:
        return None
    return Layout(tuple(sorted(samples, key=lambda sample: sample.key)), votes=() if source.config.ferplus else votes)


def _split_folders(folder: Folder) -> list[Folder]:
    found = [folder] if split_of(folder.name) else []
    return found + [inner for below in folder.folders.values() for inner in _split_folders(below)]


def _sample(file: File, emotion: str, person: str) -> Sample:
    split = split_of_path(file.path)
    return Sample(
        sanitize(file.path), f"{split}/{emotion}/{unicodedata.normalize('NFC', file.path)}", split, emotion, file.entry, group=person
    )
