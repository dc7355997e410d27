"""The files and folders of a data set, from one listing; the names of splits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from fer_ray.config.dataset import ALL, TEST, TRAIN, VALIDATION
from fer_ray.errors import DatasetError
from fer_ray.io.archives import files_in, is_archive
from fer_ray.io.folders import path_of_uri
from fer_ray.io.storage import Storage, is_remote
from fer_ray.schema import IMAGE_SUFFIXES, ImageEntry

_SPELLINGS = {
    TRAIN: ("train", "training", "train_set", "fer2013train"),
    VALIDATION: ("validation", "val", "valid", "dev", "publictest", "val_set", "fer2013valid"),
    TEST: ("test", "testing", "privatetest", "test_set", "fer2013test"),
}
_SPLIT_OF = {spelling: split for split, spellings in _SPELLINGS.items() for spelling in spellings}
_JUNK = {"__macosx", "thumbs.db", "desktop.ini"}
_TABLES = (".csv", ".parquet")


@dataclass(frozen=True)
class File:
    """A file; `path` is where it lies below the data set."""

    path: str
    entry: ImageEntry

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def is_image(self) -> bool:
        return "." + self.path.rpartition(".")[2].lower() in IMAGE_SUFFIXES


@dataclass
class Folder:
    """A folder, or an archive; `path` is where it lies below the data set."""

    path: str = ""
    folders: dict[str, Folder] = field(default_factory=dict)
    files: list[File] = field(default_factory=list)

    def all_files(self) -> Iterator[File]:
        """Those of the folders in it too."""
        yield from self.files
        for folder in self.folders.values():
            yield from folder.all_files()

    def images(self) -> Iterator[File]:
        """What is an image by its name, at any depth."""
        return (file for file in self.all_files() if file.is_image)

    def with_images(self) -> list[Folder]:
        """The folders directly in it that hold images at any depth."""
        return [folder for folder in self.folders.values() if any(folder.images())]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def add(self, path: str, entry: ImageEntry) -> None:
        """Put a file where it belongs; what systems hide is left out."""
        parts = [part for part in path.split("/") if part]
        if not parts or path.endswith("/") or any(part.startswith(".") or part.lower() in _JUNK for part in parts):
            return
        folder = self
        for depth, part in enumerate(parts[:-1], 1):
            folder = folder.folders.setdefault(part, Folder("/".join(parts[:depth])))
        folder.files.append(File("/".join(parts), entry))


def read_tree(storage: Storage, uri: str, dataset: str) -> Folder:
    """The folders below the data set's address; archives are folders where nothing else holds faces.

    Raises:
        DatasetError: it is no folder that can be listed, or an archive in it does not read.
    """
    if is_archive(uri):
        return _unpacked(storage, [File("", storage.stat(uri) or ImageEntry(uri, None, None))])
    root, prefix = Folder(), uri.rstrip("/") + "/"
    if not is_remote(uri) and storage.stat(uri):
        raise DatasetError(f"The data set {dataset} is a file: give its folder, an archive, or a fer2013.csv.")
    for entry in storage.list_files(uri):
        path = path_of_uri(entry.image_uri)
        if entry.size_bytes is None and path in (uri, prefix):
            raise DatasetError(f"The data set {dataset} is not a folder that can be listed: give --dataset the folder that holds train/.")
        root.add(os.fsencode(path.removeprefix(prefix)).decode("utf-8", "backslashreplace"), entry)
    archives = [file for file in root.all_files() if is_archive(file.path)]
    if archives and not any(file.is_image or file.path.lower().endswith(_TABLES) for file in root.all_files()):
        return _unpacked(storage, archives)
    return root


def _unpacked(storage: Storage, archives: list[File]) -> Folder:
    """What lies in the archives, each a folder of its own name; of a single one, without that."""
    root = Folder()
    for archive in archives:
        for entry in files_in(storage, archive.entry, None):
            if entry.error is not None and entry.image_uri == archive.entry.image_uri:
                raise DatasetError(f"The archive {archive.entry.image_uri} of the data set cannot be used: {entry.error}")
            inside = entry.image_uri[len(archive.entry.image_uri) + 1 :]
            root.add(f"{archive.path}/{inside}" if len(archives) > 1 or archive.path else inside, entry)
    return root


def split_of(name: str) -> str | None:
    """The split that a folder, a Usage or a table's name stands for; None for what is no such name."""
    return _SPLIT_OF.get(re.sub(r"[ -]+", "_", name.strip().lower()))


def split_of_path(path: str) -> str:
    """The split that a file belongs to by its folders, or by the first word of its own or its archive's name; `all` for none.

    Such names are `train-00000-of-00004.parquet`, `val-0003.tar` and `test_0001.jpg`.
    """
    parts = path.split("/")
    found = [split_of(part) for part in parts[:-1]]
    found += [split_of(re.split(r"[^a-z]", part.lower())[0]) for part in parts if is_archive(part) or part is parts[-1]]
    return next((split for split in found if split), ALL)
