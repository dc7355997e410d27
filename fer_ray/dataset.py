"""FER-2013 and its relatives as arrays: split folders of face images, one folder per emotion."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fer_ray.config import AugmentationConfig
from fer_ray.errors import DatasetError
from fer_ray.schema import emotion_of

UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
SPLIT_FOLDERS = {"train": ("train", "training"), "validation": ("validation", "val"), "test": ("test", "testing")}


@dataclass(frozen=True)
class Split:
    """Face images with their labels: `images` (n, size, size) uint8, `labels` (n,) int64 as indices into the classes."""

    images: UInt8Array
    labels: Int64Array

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self, classes: tuple[str, ...]) -> dict[str, int]:
        """How many images each class has."""
        per_class = np.bincount(self.labels, minlength=len(classes))
        return {name: int(count) for name, count in zip(classes, per_class, strict=True)}


@dataclass(frozen=True)
class Dataset:
    """The training and the validation split over one list of classes, with a hash of what was read."""

    classes: tuple[str, ...]
    train: Split
    validation: Split
    sha256: str


def load_dataset(path: str, image_size: int, limit: int | None = None) -> Dataset:
    """Read `<path>/train/<emotion>/*` and `<path>/validation/<emotion>/*` as gray images of `image_size` pixels a side.

    `limit` takes only the first images of each class and split, by name.

    Classes are the canonical emotion names in alphabetical order. Validation may be missing where `test/` exists.

    Raises:
        DatasetError: a split is missing or empty, a folder is no emotion, the splits' classes differ, or an image is broken.
    """
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
    return Dataset(classes, train, validation, digest.hexdigest())


def augmented_batches(
    split: Split, batch_size: int, config: AugmentationConfig, generator: np.random.Generator
) -> Iterator[tuple[Float32Array, Int64Array]]:
    """One epoch in random order: batches of augmented images (batch_size, size, size, 1) float32 in 0..255, and labels.

    The images left over by the last whole batch are dropped; another epoch's order picks others.
    """
    order = generator.permutation(len(split))
    for start in range(0, len(order) - batch_size + 1, batch_size):
        rows = order[start : start + batch_size]
        yield augment(split.images[rows], config, generator), split.labels[rows]


def augment(images: UInt8Array, config: AugmentationConfig, generator: np.random.Generator) -> Float32Array:
    """Random views of gray images (n, size, size) uint8 -> (n, size, size, 1) float32 in 0..255."""
    size = images.shape[1]
    views = np.empty((*images.shape, 1), np.float32)
    for view, image in zip(views, images, strict=True):
        warped = cv2.warpAffine(
            image, _random_affine(size, config, generator), (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        pixels = warped.astype(np.float32)
        if config.blur and generator.random() < 0.25:
            pixels = np.asarray(cv2.GaussianBlur(pixels, (0, 0), generator.uniform(0.3, 0.3 + config.blur)), np.float32)
        contrast = 1 + generator.uniform(-config.contrast, config.contrast)
        brightness = 255 * generator.uniform(-config.brightness, config.brightness)
        pixels = (pixels - 127.5) * contrast + 127.5 + brightness
        np.clip(pixels, 0, 255, out=pixels)
        if generator.random() < config.erasing:
            _erase(pixels, generator)
        view[..., 0] = pixels
    return views


def _random_affine(size: int, config: AugmentationConfig, generator: np.random.Generator) -> Float32Array:
    """Rotation, zoom and shift about the centre, with a mirror image in half of the cases: a (2, 3) matrix for warpAffine."""
    centre = (size - 1) / 2
    angle = generator.uniform(-config.rotation, config.rotation)
    scale = 1 + generator.uniform(-config.zoom, config.zoom)
    matrix = np.asarray(cv2.getRotationMatrix2D((centre, centre), angle, scale), np.float64)
    matrix[:, 2] += generator.uniform(-config.shift, config.shift, 2) * size
    if config.flip and generator.random() < 0.5:
        matrix[0] *= -1
        matrix[0, 2] += size - 1
    return matrix.astype(np.float32)


def _erase(pixels: Float32Array, generator: np.random.Generator) -> None:
    """Random erasing (Zhong et al. 2020, arXiv 1708.04896): a rectangle of 4 to 25 % of the area becomes noise of one level."""
    size = pixels.shape[0]
    area, ratio = generator.uniform(0.04, 0.25) * size * size, np.exp(generator.uniform(-0.9, 0.9))
    height, width = (min(size, max(1, round(np.sqrt(area * r)))) for r in (ratio, 1 / ratio))
    top, left = generator.integers(0, size - height + 1), generator.integers(0, size - width + 1)
    pixels[top : top + height, left : left + width] = generator.uniform(0, 255)


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
    return Split(np.stack(images), np.array(labels, np.int64))


def _read_face(file: Path, content: bytes, image_size: int) -> UInt8Array:
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE) if content else None
    if image is None:
        raise DatasetError(f"The image {file} cannot be decoded: repair or remove it.")
    if image.shape != (image_size, image_size):
        image = cv2.resize(image, (image_size, image_size), interpolation=cv2.INTER_AREA)
    return np.asarray(image, np.uint8)
