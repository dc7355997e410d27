"""FER-2013 and its relatives as arrays: split folders of face images, one folder per emotion."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fer_ray.errors import DatasetError
from fer_ray.recipe import GRAY, DatasetConfig
from fer_ray.schema import emotion_of

UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
SPLIT_FOLDERS = {"train": ("train", "training"), "validation": ("validation", "val"), "test": ("test", "testing")}


@dataclass(frozen=True)
class Split:
    """Labeled face images.

    `images` (n, side, side) gray or (n, side, side, 3) RGB uint8; `labels` (n,) int64, indices into the classes; `targets` (n, classes)
    float32, the probabilities to be learnt: one-hot, or the distribution of the votes; `names` say where each image came from.
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

    `sha256` is a hash over all that was read; `findings` are sentences about what was left out or looks wrong.
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


def load_dataset(config: DatasetConfig, image_size: int, color: str = GRAY, splits: tuple[str, ...] = ("train", "validation")) -> Dataset:
    """Read `<path>/train/<emotion>/*` and `<path>/validation/<emotion>/*` as gray images of `image_size` pixels a side.

    `limit` takes only the first images of each class and split, by name.

    Classes are the canonical emotion names in alphabetical order. Validation may be missing where `test/` exists.

    Raises:
        DatasetError: a split is missing or empty, a folder is no emotion, the splits' classes differ, or an image is broken.
    """
    path, limit = config.dataset, config.limit
    root = Path(path)
    if not root.is_dir():
        raise DatasetError(f"The data set {path} is not a folder: give --dataset the folder that holds train/ and validation/.")
    train_root = _split_root(root, "train")
    validation_root = _split_root(root, "validation", "test")
    train_folders, validation_folders = _emotion_folders(train_root), _emotion_folders(validation_root)
    if set(train_folders) != set(validation_folders):
        only = sorted(set(train_folders) ^ set(validation_folders))
        raise DatasetError(f"The classes {', '.join(only)} stand in one split of {path} only: give both splits the same classes.")
    classes = tuple(sorted(train_folders))
    digest = hashlib.sha256()
    train = _read_split(train_folders, classes, image_size, limit, digest)
    validation = _read_split(validation_folders, classes, image_size, limit, digest)
    return Dataset(classes, {"train": train, "validation": validation}, digest.hexdigest())


def _split_root(root: Path, *names: str) -> Path:
    folders = {entry.name.lower(): entry for entry in root.iterdir() if entry.is_dir()}
    for name in names:
        for spelling in SPLIT_FOLDERS[name]:
            if spelling in folders:
                return folders[spelling]
    raise DatasetError(f"The data set {root} has no folder {names[0]}/: put the images into {names[0]}/<emotion>/.")


def _emotion_folders(root: Path) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for entry in sorted(root.iterdir()):
        if not entry.is_dir():
            continue
        emotion = emotion_of(entry.name)
        if emotion is None:
            raise DatasetError(f"The folder {entry} is not named after a known emotion: rename it or move it out of the data set.")
        if emotion in folders:
            raise DatasetError(f"The folders {folders[emotion]} and {entry} name the same emotion: merge them.")
        folders[emotion] = entry
    if not folders:
        raise DatasetError(f"The split {root} holds no emotion folders: put the images into {root.name}/<emotion>/.")
    return folders


def _read_split(folders: dict[str, Path], classes: tuple[str, ...], image_size: int, limit: int | None, digest: "hashlib._Hash") -> Split:
    images: list[UInt8Array] = []
    labels: list[int] = []
    for label, emotion in enumerate(classes):
        files = sorted(file for file in folders[emotion].iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)[:limit]
        if not files:
            raise DatasetError(f"The folder {folders[emotion]} holds no images: fill it or remove the class from both splits.")
        for file in files:
            content = file.read_bytes()
            digest.update(f"{emotion}/{file.name}/{len(content)}/".encode())
            digest.update(content)
            images.append(_read_face(file, content, image_size))
            labels.append(label)
    return Split(np.stack(images), np.array(labels, np.int64), np.eye(len(classes), dtype=np.float32)[labels], tuple(map(str, labels)))


def _read_face(file: Path, content: bytes, image_size: int) -> UInt8Array:
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE) if content else None
    if image is None:
        raise DatasetError(f"The image {file} cannot be decoded: repair or remove it.")
    if image.shape != (image_size, image_size):
        image = cv2.resize(image, (image_size, image_size), interpolation=cv2.INTER_AREA)
    return np.asarray(image, np.uint8)
