"""Which labeled faces a data set holds, in every layout people have FER-2013 and its relatives in; nothing is decoded here."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from fer_ray.config.dataset import TEST, TRAIN, VALIDATION, DatasetConfig
from fer_ray.data.fer2013_csv import Row, read_pixel_csv
from fer_ray.emotions import emotion_of
from fer_ray.errors import DatasetError, UsageError
from fer_ray.io.folders import path_of_uri
from fer_ray.io.storage import Storage, absolute, is_remote
from fer_ray.schema import IMAGE_SUFFIXES, ImageEntry
from fer_ray.text import first_few, plural, sanitize

KAGGLE = "kaggle:"
WHOLE = "all"
_SPELLINGS = {
    TRAIN: ("train", "training", "train_set", "fer2013train"),
    VALIDATION: ("validation", "val", "valid", "dev", "publictest", "val_set", "fer2013valid"),
    TEST: ("test", "testing", "privatetest", "test_set", "fer2013test"),
}
_SPLIT_OF = {spelling: split for split, spellings in _SPELLINGS.items() for spelling in spellings}
_CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")
_JUNK = {"__macosx", "thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Sample:
    """One labeled face before it is read: a file (`entry`), or a row of fer2013.csv (`row`).

    `name` is where a person finds it, below the data set. `key` is the same for the same image wherever and however the data
    set lies: it orders the images and draws the validation share.
    """

    name: str
    key: str
    split: str
    emotion: str
    entry: ImageEntry | None = None
    row: Row | None = None

    @property
    def stem(self) -> str:
        """The file's name without folders and suffix, which FER+ calls it by."""
        return self.key.rpartition("/")[2].rpartition(".")[0]


@dataclass(frozen=True)
class Layout:
    """The samples in the order of their keys; their split is `all` where the data set has none. Findings are sentences."""

    samples: tuple[Sample, ...]
    findings: tuple[str, ...] = ()


def with_absolute_paths(config: DatasetConfig) -> DatasetConfig:
    """The same data set for processes with another working directory, such as Ray's workers.

    Raises:
        UsageError: an address is neither a path nor one that can be read.
    """
    dataset = config.dataset if config.dataset.startswith(KAGGLE) else absolute(config.dataset, "data set")
    return replace(config, dataset=dataset, ferplus=tuple(absolute(file, "file of FER+ votes") for file in config.ferplus))


def find_layout(dataset: str, storage: Storage) -> Layout:
    """Split folders (also wrapped or doubled), one folder per emotion, or fer2013.csv; local, in S3, or fetched from Kaggle.

    Raises:
        DatasetError: there is no such place, or nothing in it that is one of these layouts.
    """
    root = _download(dataset) if dataset.startswith(KAGGLE) else dataset
    try:
        uri = absolute(root, "data set")
    except UsageError as error:
        raise DatasetError(str(error)) from error
    if uri.lower().endswith(".csv"):
        return _csv_layout(storage, uri, uri)
    tree = _read_tree(storage, uri, dataset)
    found = _find(tree)
    if found:
        return _folder_layout(*found)
    csv = _find_csv(tree)
    if csv:
        return _csv_layout(storage, csv.entry.image_uri, csv.path)
    if not any(tree.images()):
        raise DatasetError(f"The data set {dataset} holds no images and no fer2013.csv: give the folder that holds train/ and validation/.")
    raise DatasetError(
        f"The data set {dataset} holds images but no emotion folders: put them into train/<emotion>/ and validation/<emotion>/."
    )


@dataclass(frozen=True)
class _File:
    path: str
    entry: ImageEntry

    @property
    def is_image(self) -> bool:
        return "." + self.path.rpartition(".")[2].lower() in IMAGE_SUFFIXES


@dataclass
class _Folder:
    path: str = ""
    folders: dict[str, _Folder] = field(default_factory=dict)
    files: list[_File] = field(default_factory=list)

    def all_files(self) -> Iterator[_File]:
        yield from self.files
        for folder in self.folders.values():
            yield from folder.all_files()

    def images(self) -> Iterator[_File]:
        return (file for file in self.all_files() if file.is_image)

    def with_images(self) -> list[_Folder]:
        return [folder for folder in self.folders.values() if any(folder.images())]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def _read_tree(storage: Storage, uri: str, dataset: str) -> _Folder:
    """The folders below the data set's address, from one listing; what systems hide is left out."""
    root, prefix = _Folder(), uri.rstrip("/") + "/"
    if not is_remote(uri) and storage.stat(uri):
        raise DatasetError(f"The data set {dataset} is a file: give its folder, unpacked, or a fer2013.csv.")
    for entry in storage.list_files(uri):
        path = path_of_uri(entry.image_uri)
        if entry.size_bytes is None and path in (uri, prefix):
            raise DatasetError(f"The data set {dataset} is not a folder that can be listed: give --dataset the folder that holds train/.")
        relative = os.fsencode(path.removeprefix(prefix)).decode("utf-8", "backslashreplace")
        parts = [part for part in relative.split("/") if part]
        if parts and not relative.endswith("/") and not any(part.startswith(".") or part.lower() in _JUNK for part in parts):
            folder = root
            for depth, part in enumerate(parts[:-1], 1):
                folder = folder.folders.setdefault(part, _Folder("/".join(parts[:depth])))
            folder.files.append(_File(relative, entry))
    return root


_Classes = dict[str, dict[str, _Folder]]


def _find(folder: _Folder) -> tuple[_Classes, list[str]] | None:
    """The emotion folders of each split, in this folder or wrapped in others; None where there are none."""
    filled = folder.with_images()
    splits = [below for below in filled if _split_of(below.name)]
    if any(emotion_of(name) for name in folder.folders):
        if splits:
            raise DatasetError(f"The folder {folder.path or '.'} holds both split folders and emotion folders: move one of them out.")
        return {WHOLE: _emotion_folders(folder)}, []
    if splits:
        return _split_folders(splits), _left_out([below for below in filled if below not in splits])
    found = [result for result in map(_find, filled) if result]
    if len(found) > 1:
        raise DatasetError(
            f"The folders {first_few(below.path for below in filled)} are data sets of their own: give --dataset one of them."
        )
    return found[0] if found else None


def _split_folders(folders: list[_Folder]) -> _Classes:
    by_split: dict[str, _Folder] = {}
    for folder in folders:
        split = _split_of(folder.name) or ""
        if split in by_split:
            raise DatasetError(f"The folders {by_split[split].path} and {folder.path} are both the {split} split: merge them.")
        by_split[split] = folder
    return {split: _emotion_folders(_unwrapped(folder)) for split, folder in by_split.items()}


def _unwrapped(folder: _Folder) -> _Folder:
    """`Training/Training/<emotion>` and the like: down to where the emotions stand."""
    while not any(emotion_of(name) for name in folder.folders):
        below = folder.with_images()
        if len(below) != 1 or not below[0].folders:
            break
        folder = below[0]
    return folder


def _emotion_folders(folder: _Folder) -> dict[str, _Folder]:
    found: dict[str, _Folder] = {}
    for below in folder.folders.values():
        emotion = emotion_of(below.name)
        if emotion is None and any(below.images()):
            raise DatasetError(
                f"The folder {sanitize(below.path)} is not named after a known emotion: rename it or move it out of the data set."
            )
        if emotion in found:
            both = f"{sanitize(found[emotion].path)} and {sanitize(below.path)}"
            raise DatasetError(f"The folders {both} name the same emotion: merge them.")
        if emotion:
            found[emotion] = below
            if not any(below.images()):
                raise DatasetError(f"The folder {sanitize(below.path)} holds no images: fill it, or remove the class from every split.")
    if not found:
        remedy = f"put the images into {sanitize(folder.name)}/<emotion>/"
        raise DatasetError(f"The split {sanitize(folder.path)} holds no emotion folders: {remedy}.")
    return found


def _left_out(folders: list[_Folder]) -> list[str]:
    return [
        f"The folder {sanitize(below.path)}/ with {plural(sum(1 for _ in below.images()), 'image')} is no split and was left out."
        for below in folders
    ]


def _folder_layout(classes: _Classes, findings: list[str]) -> Layout:
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


def _find_csv(tree: _Folder) -> _File | None:
    """The CSV of pixels: by its usual names, or the only CSV there is."""
    files = [file for file in tree.all_files() if file.path.lower().endswith(".csv")]
    usual = [file for name in _CSV_NAMES for file in files if file.path.rpartition("/")[2].lower() == name]
    return usual[0] if usual else files[0] if len(files) == 1 else None


def _csv_layout(storage: Storage, uri: str, path: str) -> Layout:
    name, samples = sanitize(path.rpartition("/")[2]), []
    for row in read_pixel_csv(storage, uri):
        split = _split_of(row.usage) if row.usage is not None else WHOLE
        if split is None:
            raise DatasetError(f"Row {row.number} of {name} has the Usage {row.usage!r}: it must be Training, PublicTest or PrivateTest.")
        samples.append(Sample(f"{name}#{row.number:07d}", f"{split}/{row.emotion}/{row.number:07d}.csv", split, row.emotion, row=row))
    if not samples:
        raise DatasetError(f"The CSV {uri} has no rows: give a whole fer2013.csv.")
    return Layout(tuple(sorted(samples, key=lambda sample: sample.key)))


def _split_of(name: str) -> str | None:
    return _SPLIT_OF.get(re.sub(r"[ -]+", "_", name.strip().lower()))


def _download(dataset: str) -> str:
    """The folder that kagglehub keeps the data set in."""
    import kagglehub
    from kagglehub import exceptions

    failures = (
        OSError,
        ValueError,
        exceptions.BackendError,
        exceptions.CredentialError,
        exceptions.DataCorruptionError,
        exceptions.NotFoundError,
        exceptions.UnauthenticatedError,
    )
    handle = dataset.removeprefix(KAGGLE)
    try:
        return str(kagglehub.dataset_download(handle))
    except failures as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise DatasetError(
            f"The data set {dataset} cannot be fetched from Kaggle ({reason}): check its name, the network and the Kaggle login."
        ) from error
