"""A trained model on disk: `bundle.json`, and the weights of one network or of several whose answers are averaged.

Bundles come from strangers. The networks are built by this code from the named architectures; of the `.keras` files only the
weights are read, after their sizes were checked. No code or configuration inside them is run.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import fer_ray
from fer_ray.config.crop import CropGeometry
from fer_ray.config.recipe import ModelConfig
from fer_ray.emotions import EMOTIONS
from fer_ray.errors import BundleError, TooLargeError, UsageError
from fer_ray.io.storage import S3, Storage, join
from fer_ray.models.architectures import build
from fer_ray.models.calibration import is_at_bound
from fer_ray.models.metrics import softmax
from fer_ray.typing import Float32Array, Float64Array, UInt8Array

if TYPE_CHECKING:
    import keras

FORMAT_VERSION = 2
METADATA_FILE = "bundle.json"
HISTORY_FILE = "history.parquet"
BUNDLED = ("fer2013", "ferplus")
DEFAULT = "ferplus"
MAX_METADATA_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 1 << 30
MAX_MEMBERS = 16
PREDICTION_BATCH = 256  # crops at once, which bounds the memory of the activations


@dataclass(frozen=True)
class Member:
    """One network of a bundle: (n, s, s, 1) gray or (n, s, s, 3) RGB float32 0..255 -> logits (n, classes)."""

    network: keras.Model
    config: ModelConfig


@dataclass(frozen=True)
class Bundle:
    """A loaded model: crops in, logits of `classes` out; several networks and mirror images are averaged inside."""

    members: tuple[Member, ...]
    classes: tuple[str, ...]
    flip: bool
    crop: CropGeometry
    temperature: float
    model_version: str

    @property
    def image_size(self) -> int:
        """Side of the square crops in pixels."""
        return self.members[0].config.image_size

    @property
    def color(self) -> str:
        """What the crops are: `gray` (n, s, s) or `rgb` (n, s, s, 3)."""
        return self.members[0].config.color

    def logits(self, images: UInt8Array) -> Float32Array:
        """Logits (n, classes) of crops (n, s, s) gray or (n, s, s, 3) RGB uint8, before they are divided by the temperature.

        Where several answers are averaged, these are the logarithms of the mean probabilities.
        """
        answers = [predict_logits(member.network, images) for member in self.members]
        if self.flip:
            mirrored = np.ascontiguousarray(images[:, :, ::-1])
            answers += [predict_logits(member.network, mirrored) for member in self.members]
        if len(answers) == 1:
            return answers[0]
        mean = np.mean([softmax(answer) for answer in answers], axis=0)
        return np.asarray(np.log(np.maximum(mean, 1e-12)), np.float32)

    def probabilities(self, images: UInt8Array) -> Float64Array:
        """Calibrated probabilities (n, classes) of such crops."""
        return softmax(self.logits(images), self.temperature)


def predict_logits(network: keras.Model, images: UInt8Array) -> Float32Array:
    """Logits (n, classes) of one network for crops (n, s, s) gray or (n, s, s, 3) RGB uint8, in batches that bound the memory.

    Many crops are filled up to a multiple of 4 or 8: TensorFlow prepares itself for every new number, which costs as much
    as dozens of crops.
    """
    if not len(images):
        return np.empty((0, network.output_shape[-1]), np.float32)
    parts = []
    for start in range(0, len(images), PREDICTION_BATCH):
        batch = images[start : start + PREDICTION_BATCH].astype(np.float32)
        batch = batch[..., None] if batch.ndim == 3 else batch
        padding = -len(batch) % (8 if len(batch) > 32 else 4) if len(batch) > 8 else 0
        filled = np.concatenate([batch, np.zeros_like(batch[:padding])]) if padding else batch
        parts.append(network.predict_on_batch(filled)[: len(batch)])
    return np.concatenate(parts).astype(np.float32)


def resolve(model: str) -> str:
    """The place of a bundle: that of a bundled model for its name, or for none given; else the place itself."""
    return str(resources.files("fer_ray.models") / "bundled" / (model or DEFAULT)) if model in ("", *BUNDLED) else model


@contextmanager
def local_copy(storage: Storage, model: str) -> Iterator[str]:
    """The bundle's folder on this machine: itself, or a temporary copy of one in S3.

    Raises:
        BundleError: there is no bundle there, or one larger than this version reads.
    """
    if not model.startswith(S3):
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="fer-ray-") as folder:
        _copy(storage, model, folder, METADATA_FILE, MAX_METADATA_BYTES)
        for index in range(_member_count(Path(folder) / METADATA_FILE)):
            _copy(storage, model, folder, weights_file(index), MAX_WEIGHTS_BYTES)
        yield folder


def _copy(storage: Storage, model: str, folder: str, name: str, limit: int) -> None:
    try:
        (Path(folder) / name).write_bytes(storage.read(join(model, name), limit))
    except FileNotFoundError as error:
        raise BundleError(f"The model bundle {model} is missing or has no {name}: give --model a bundle.") from error
    except TooLargeError as error:
        raise BundleError(f"The model bundle {model} is larger than this version reads.") from error


def _member_count(file: Path) -> int:
    """How many weights files belong to the metadata, as far as it can be read; `read_metadata` says what is wrong with the rest."""
    try:
        return min(len(json.loads(file.read_text(encoding="utf-8"))["members"]), MAX_MEMBERS)
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0


def weights_file(index: int) -> str:
    """The name of the weights of a bundle's network, which its metadata cannot change."""
    return "model.keras" if index == 0 else f"model-{index + 1}.keras"


@dataclass(frozen=True)
class Description:
    """What a bundle says about its networks besides their architectures.

    Attributes:
        classes: the emotions in the order of the logits.
        temperature: what logits are divided by before softmax.
        validation: figures on the validation split, by name.
        lineage: what the networks were trained on, and how.
        flip: whether the answers for a face and its mirror image are averaged.
        crop: what is cut out of a photograph around a face.
    """

    classes: tuple[str, ...]
    temperature: float
    validation: dict[str, float]
    lineage: dict[str, Any]
    flip: bool = False
    crop: CropGeometry = field(default_factory=CropGeometry)


def save(folder: str, members: Sequence[Member], description: Description) -> str:
    """Write a bundle into an existing folder.

    Returns:
        Its model_version, which is derived from all of its contents.
    """
    described = []
    for index, member in enumerate(members):
        file = Path(folder) / weights_file(index)
        member.network.save(file)
        described.append({"model": asdict(member.config), "weights_sha256": _sha256(file)})
    first = members[0].config
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "members": described,
        "flip": description.flip,
        "classes": list(description.classes),
        "preprocessing": {
            "image_size": first.image_size,
            "color": first.color,
            "range": [0, 255],
            "inside_the_network": "everything else",
            "crop": asdict(description.crop),
        },
        "calibration": {"method": "temperature", "temperature": description.temperature, "at_bound": is_at_bound(description.temperature)},
        "metrics": {"validation": description.validation},
        "lineage": description.lineage,
        "versions": {"fer-ray": fer_ray.__version__} | {name: metadata.version(name) for name in ("keras", "tensorflow", "numpy")},
    }
    write_metadata(folder, content)
    return str(content["model_version"])


def write_metadata(folder: str, content: dict[str, Any]) -> None:
    """Put `bundle.json` in its place whole, with the model_version that belongs to it."""
    content["model_version"] = _model_version(content)
    whole = Path(folder) / f"{METADATA_FILE}.new"
    whole.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    whole.replace(Path(folder) / METADATA_FILE)


def read_metadata(folder: str) -> dict[str, Any]:
    """`bundle.json`, checked, without loading the weights (their hashes are checked).

    Raises:
        BundleError: what is wrong with the bundle, in a sentence.
    """
    file = Path(folder) / METADATA_FILE
    if not file.is_file():
        raise BundleError(f"The model bundle {folder} is missing or has no {METADATA_FILE}: give --model a bundle.")
    if file.stat().st_size > MAX_METADATA_BYTES:
        raise BundleError(f"The model bundle {folder} is larger than this version reads.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        _check_format(folder, content["format_version"])
        _check_content(content)
        version = _model_version(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"The model bundle {folder} is broken: {METADATA_FILE} does not read ({error}).") from error
    hashes = [_weights_hash(folder, index) for index in range(len(content["members"]))]
    if [member["weights_sha256"] for member in content["members"]] != hashes or content["model_version"] != version:
        raise BundleError(f"The model bundle {folder} is broken or was altered: its contents do not match its hashes; copy it anew.")
    return dict(content)


def load(folder: str, flip: bool = False) -> Bundle:
    """Build the networks and read their weights; with `flip`, mirror images are averaged in even where the bundle does not ask for it.

    Raises:
        BundleError: the bundle is missing, broken, altered, or newer than this code.
    """
    content = read_metadata(folder)
    members = tuple(_load_member(folder, index, content) for index in range(len(content["members"])))
    return Bundle(
        members,
        tuple(content["classes"]),
        content["flip"] or flip,
        CropGeometry.from_dict(content["preprocessing"]["crop"]),
        float(content["calibration"]["temperature"]),
        version_of(content, flip),
    )


def version_of(content: dict[str, Any], flip: bool) -> str:
    """The model_version of checked metadata; it says so where mirror images are averaged in on demand."""
    return f"{content['model_version']}-flip" if flip and not content["flip"] else str(content["model_version"])


def _load_member(folder: str, index: int, content: dict[str, Any]) -> Member:
    config = ModelConfig.from_dict(content["members"][index]["model"])
    network = build(config, len(content["classes"]))
    try:
        read_weights(network, Path(folder) / weights_file(index))
    except (ValueError, KeyError, OSError, UserWarning, zipfile.BadZipFile) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BundleError(f"The weights of the model bundle {folder} do not fit its architecture ({first_line}).") from error
    return Member(network, config)


def read_weights(network: keras.Model, file: Path) -> None:
    """Read the weights of a `.keras` file into a network, after their sizes were checked; nothing else in the file is used."""
    _check_weights(file, network.count_params())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # Keras only warns where a layer finds no weights and stays random
        network.load_weights(file)


def _check_format(folder: str, version: Any) -> None:
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        remedy = "upgrade fer_ray" if newer else "train the model anew"
        raise BundleError(f"The model bundle {folder} has format {version!r}, this code reads {FORMAT_VERSION}: {remedy}.")


def _check_content(content: dict[str, Any]) -> None:
    members = [ModelConfig.from_dict(member["model"]) for member in content["members"]]
    if not 1 <= len(members) <= MAX_MEMBERS or len({(member.image_size, member.color) for member in members}) > 1:
        raise ValueError(f"a bundle has 1 to {MAX_MEMBERS} networks, all for the same size and colour of crops")
    CropGeometry.from_dict(content["preprocessing"]["crop"])
    classes, temperature = content["classes"], content["calibration"]["temperature"]
    if not isinstance(classes, list) or len(set(classes)) < max(2, len(classes)) or not set(classes) <= set(EMOTIONS):
        raise ValueError(f"classes must be different emotions among {', '.join(EMOTIONS)}")
    if not isinstance(temperature, float) or not 0.01 <= temperature <= 100:
        raise ValueError("the temperature must lie between 0.01 and 100")
    if not isinstance(content["flip"], bool):
        raise ValueError("flip must be true or false")


def _check_weights(file: Path, parameters: int) -> None:
    """Refuse what would fill the memory: members that unpack to far more, or datasets larger, than the network's parameters."""
    import h5py

    limit = 8 * parameters + (16 << 20)
    with zipfile.ZipFile(file) as archive:
        member = archive.getinfo("model.weights.h5")
        if sum(info.file_size for info in archive.infolist()) > limit:
            raise ValueError("the archive unpacks to more than the network's parameters need")
        stored = io.BytesIO(archive.read(member))
    total = 0

    def visit(name: str, item: Any) -> None:
        nonlocal total
        if isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual or item.dtype.kind not in "fiu":
                raise ValueError(f"the weight {name} is no plain array of numbers")
            total += item.nbytes

    with h5py.File(stored, "r") as weights:
        weights.visititems(visit)
    if total > limit:
        raise ValueError("the weights are larger than the network's parameters need")


def _weights_hash(folder: str, index: int) -> str:
    file = Path(folder) / weights_file(index)
    if not file.is_file():
        raise BundleError(f"The model bundle {folder} is missing its {file.name}: copy it anew.")
    if file.stat().st_size > MAX_WEIGHTS_BYTES:
        raise BundleError(f"The model bundle {folder} is larger than this version reads.")
    return _sha256(file)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _model_version(content: dict[str, Any]) -> str:
    """The architecture's name, or how many there are, and 12 hex digits over the metadata, which holds the hashes of the weights."""
    described = {key: value for key, value in content.items() if key != "model_version"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    members = content["members"]
    name = members[0]["model"]["architecture"] if len(members) == 1 else f"ensemble{len(members)}"
    return f"{name}-{digest[:12]}"
