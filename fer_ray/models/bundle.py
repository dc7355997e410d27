"""A trained model on disk: `bundle.json`, and the networks of one model or of several whose answers are averaged.

Each network is there twice: as ONNX (`model.onnx`), which labels and is judged, and as Keras weights (`model.keras`), from which
trainings start. Bundles come from strangers: `onnx_network` and `keras_bundle` say what is checked before either is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from fer_ray.config.crop import CropGeometry
from fer_ray.config.jobs.import_model import IMPORTED, ImportedModel
from fer_ray.config.recipe import ModelConfig
from fer_ray.emotions import EMOTIONS
from fer_ray.errors import BundleError, TooLargeError, UsageError
from fer_ray.io.storage import Storage, is_remote, join
from fer_ray.models.calibration import ArchiveCalibration, PictureCalibration
from fer_ray.models.metrics import softmax
from fer_ray.models.onnx_network import Device, OnnxNetwork
from fer_ray.models.sizes import check_size
from fer_ray.typing import Float32Array, Float64Array, UInt8Array
from fer_ray.vision import quality

FORMAT_VERSION = 3
FORMAT_WITHOUT_ONNX = 2  # of version 0.1; the model_version still covers this number, so that archives are not labeled anew
METADATA_FILE = "bundle.json"
ALIASES_FILE = "aliases.json"  # in a folder of bundles
ALIAS_MARK = "@"
HISTORY_FILE = "history.parquet"
BUNDLED = ("fer2013", "ferplus")
DEFAULT = "ferplus"
MAX_METADATA_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 640 << 20  # of all networks together, once as ONNX and once as Keras has them
MAX_MEMBERS = 16

logger = logging.getLogger(__name__)


class Network(Protocol):
    """One network of a bundle."""

    def logits(self, images: UInt8Array) -> Float32Array:
        """Logits (n, classes) of crops (n, s, s) gray or (n, s, s, 3) RGB uint8."""


N = TypeVar("N", bound=Network)


@dataclass(frozen=True)
class Member(Generic[N]):
    """A network of a bundle, and what it was made from."""

    network: N
    config: ModelConfig | ImportedModel


@dataclass(frozen=True)
class Bundle(Generic[N]):
    """A loaded model: crops in, logits of `classes` out; several networks and mirror images are averaged inside."""

    members: tuple[Member[N], ...]
    classes: tuple[str, ...]
    flip: bool
    crop: CropGeometry
    temperature: float
    model_version: str
    by_picture: PictureCalibration | None = None
    archive: ArchiveCalibration | None = None

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
        answers = [member.network.logits(images) for member in self.members]
        if self.flip:
            mirrored = np.ascontiguousarray(images[:, :, ::-1])
            answers += [member.network.logits(mirrored) for member in self.members]
        if not all(np.isfinite(answer).all() for answer in answers):
            raise BundleError(f"The model {self.model_version} answers with values that are no numbers: label with another one.")
        if len(answers) == 1:
            return answers[0]
        mean = np.mean([softmax(answer) for answer in answers], axis=0)
        return np.asarray(np.log(np.maximum(mean, 1e-12)), np.float32)

    def probabilities(self, images: UInt8Array, seen: Float32Array | None = None) -> Float64Array:
        """Calibrated probabilities (n, classes) of such crops; `seen` is what `vision.quality.describe` says of them, if it is known."""
        return self.calibrate(self.logits(images), images, seen)

    def calibrate(self, logits: Float32Array, images: UInt8Array, seen: Float32Array | None = None) -> Float64Array:
        """The same from logits that are known already."""
        if self.by_picture is None:
            probabilities = softmax(logits, self.temperature)
        else:
            probabilities = self.by_picture.apply(logits, quality.describe(images) if seen is None else seen)
        return self.archive.apply(probabilities) if self.archive else probabilities


def resolve(model: str, storage: Storage | None = None) -> str:
    """The place of a bundle: that of a bundled model for its name, or for none given; of `DIR/@champion`, what the alias stands for.

    Raises:
        UsageError: there is no such alias.
    """
    if model in ("", *BUNDLED):
        return str(resources.files("fer_ray.models") / "bundled" / (model or DEFAULT))
    place, _, name = model.rpartition("/")
    if not name.startswith(ALIAS_MARK):
        return model
    aliases = read_aliases(storage or Storage(), place or ".")
    if name[1:] not in aliases:
        raise UsageError(f"There is no alias {name} in {place or '.'}: it has {', '.join(sorted(aliases)) or 'none'}.")
    return join(place or ".", aliases[name[1:]])


def read_aliases(storage: Storage, place: str) -> dict[str, str]:
    """What stands in the list of a folder's aliases: the name of each, and that of the bundle below the folder.

    Raises:
        UsageError: it is no such list.
    """
    file = join(place, ALIASES_FILE)
    try:
        content = json.loads(storage.read(file, MAX_METADATA_BYTES))
        for alias, name in content.items():
            check_alias(alias, name)
        return dict(content)
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError, RecursionError, TooLargeError, UsageError) as error:
        raise UsageError(f"The file {file} is no list of aliases: remove it, and give them anew with `fer-ray models`.") from error


def check_alias(alias: str, name: str) -> None:
    """Refuse an alias that is no plain name, or one for what lies outside of the folder.

    Raises:
        UsageError: it is one of these.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", alias):
        raise UsageError(f"An alias is made of letters, digits, dots, dashes and underscores, not {alias[:80]!r}.")
    if {"", ".", ".."} & set(name.split("/")) or "\\" in name:
        raise UsageError(f"The alias {alias} must stand for a model below the folder, not for {name[:80]!r}.")


@contextmanager
def local_copy(storage: Storage, model: str) -> Iterator[str]:
    """The bundle's folder on this machine: itself, or a temporary copy of one in a store.

    Raises:
        BundleError: there is no bundle there, or one larger than this version reads.
    """
    if not is_remote(model):
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="fer-ray-") as folder:
        _copy(storage, model, folder, METADATA_FILE, MAX_METADATA_BYTES)
        for name in _named_files(Path(folder) / METADATA_FILE):
            _copy(storage, model, folder, name, MAX_WEIGHTS_BYTES)
        yield folder


def _copy(storage: Storage, model: str, folder: str, name: str, limit: int) -> None:
    try:
        (Path(folder) / name).write_bytes(storage.read(join(model, name), limit))
    except FileNotFoundError as error:
        raise BundleError(f"The model bundle {model} is missing or has no {name}: give --model a bundle.") from error
    except TooLargeError as error:
        raise BundleError(f"The model bundle {model} is larger than this version reads.") from error


def _named_files(metadata: Path) -> list[str]:
    """The files of the networks, as far as the metadata can be read; `read_metadata` says what is wrong with the rest."""
    try:
        content = json.loads(metadata.read_text(encoding="utf-8"))
        return list(network_files({**content, "members": content["members"][:MAX_MEMBERS]}))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def weights_file(index: int) -> str:
    """The name of the Keras weights of a bundle's network, which its metadata cannot change."""
    return "model.keras" if index == 0 else f"model-{index + 1}.keras"


def onnx_file(index: int) -> str:
    """The name of the same network as ONNX."""
    return "model.onnx" if index == 0 else f"model-{index + 1}.onnx"


def architectures(content: dict[str, Any]) -> list[str]:
    """The name of each network's architecture."""
    return [member["model"]["architecture"] for member in content["members"]]


def network_files(content: dict[str, Any]) -> dict[str, str]:
    """The SHA-256 of each file that holds a network, by the file's name."""
    names = [onnx_file(i) if name == IMPORTED else weights_file(i) for i, name in enumerate(architectures(content))]
    files = dict(zip(names, (member["weights_sha256"] for member in content["members"]), strict=True))
    return files | {onnx_file(index): digest for index, digest in enumerate(content.get("onnx_sha256", ()))}


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
        content = json.loads(file.read_text(encoding="utf-8"), parse_float=_finite, parse_constant=_finite)
        _check_format(folder, content["format_version"])
        _check_content(content)
        version, files = _model_version(content), network_files(content)
        _check_sizes(folder, files)
        altered = content["model_version"] != version or any(sha256(Path(folder) / name) != digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        if isinstance(error, BundleError):
            raise
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise BundleError(f"The model bundle {folder} is broken: {METADATA_FILE} does not read ({reason}).") from error
    if altered:
        raise BundleError(f"The model bundle {folder} is broken or was altered: its contents do not match its hashes; copy it anew.")
    return dict(content)


def load(folder: str, flip: bool = False, threads: int = 0, device: Device = "cpu") -> Bundle[OnnxNetwork]:
    """The bundle in ONNX Runtime.

    Args:
        folder: where it lies on this machine.
        flip: average mirror images in even where the bundle does not ask for it.
        threads: how many threads a network uses; 0 for one for each CPU.
        device: `cpu`, or `gpu` for the first GPU that this process sees.

    Raises:
        BundleError: the bundle is missing, broken, altered, newer than this code, or of version 0.1 and not yet upgraded.
    """
    content = read_metadata(folder)
    check_labels(content, folder)
    configs, classes = [member_config(member) for member in content["members"]], len(content["classes"])
    members = [
        Member(OnnxNetwork(Path(folder) / onnx_file(index), config, classes, threads, device), config)
        for index, config in enumerate(configs)
    ]
    return assemble(members, content, flip)


def check_labels(content: dict[str, Any], model: str) -> None:
    """Refuse a bundle without ONNX networks; `model` is where it lies.

    Raises:
        BundleError: it is of version 0.1, or a trial's, and was not upgraded.
    """
    if "onnx_sha256" not in content:
        raise BundleError(f"The model bundle {model} has no ONNX network to label with: add it with `fer-ray upgrade --model {model}`.")


def assemble(members: Sequence[Member[N]], content: dict[str, Any], flip: bool) -> Bundle[N]:
    """The bundle of checked metadata, with these networks."""
    by_picture = _by_picture(content)
    if by_picture is None and content["calibration"].get("by_picture"):
        logger.warning("%s: confidences do not know the picture in this version: run `fer-ray calibrate` anew.", content["model_version"])
    return Bundle(
        tuple(members),
        tuple(content["classes"]),
        content["flip"] or flip,
        CropGeometry.from_dict(content["preprocessing"]["crop"]),
        float(content["calibration"]["temperature"]),
        version_of(content, flip),
        by_picture,
        _archive(content),
    )


def _archive(content: dict[str, Any]) -> ArchiveCalibration | None:
    """The calibration for one archive, where an audit of it made one."""
    described = content["calibration"].get("archive")
    return ArchiveCalibration.from_dict(described, len(content["classes"])) if described else None


def _by_picture(content: dict[str, Any]) -> PictureCalibration | None:
    """The calibration by picture, where there is one that was fitted with this version's `vision.quality`."""
    described = content["calibration"].get("by_picture")
    if described is None:
        return None
    calibration = PictureCalibration.from_dict(described, len(content["classes"]))
    return calibration if described["network"] == quality.network_version() else None


def member_config(member: dict[str, Any]) -> ModelConfig | ImportedModel:
    """What the metadata says of a network."""
    kind = ImportedModel if member["model"].get("architecture") == IMPORTED else ModelConfig
    return kind.from_dict(member["model"])


def version_of(content: dict[str, Any], flip: bool) -> str:
    """The model_version of checked metadata; it says so where mirror images are averaged in on demand."""
    return f"{content['model_version']}-flip" if flip and not content["flip"] else str(content["model_version"])


def _finite(number: str) -> float:
    """A fraction in JSON, which Python also reads as NaN, Infinity and 1e999."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"it holds {number[:20]}, which is no number")
    return value


def _check_format(folder: str, version: Any) -> None:
    if version not in (FORMAT_WITHOUT_ONNX, FORMAT_VERSION):
        newer = isinstance(version, int) and version > FORMAT_VERSION
        remedy = "upgrade fer_ray" if newer else "train the model anew"
        raise BundleError(f"The model bundle {folder} has format {version!r}, this code reads {FORMAT_VERSION}: {remedy}.")


def _check_content(content: dict[str, Any]) -> None:
    members = [member_config(member) for member in content["members"]]
    if not 1 <= len(members) <= MAX_MEMBERS or len({(member.image_size, member.color) for member in members}) > 1:
        raise ValueError(f"a bundle has 1 to {MAX_MEMBERS} networks, all for the same size and colour of crops")
    CropGeometry.from_dict(content["preprocessing"]["crop"])
    classes, temperature = content["classes"], content["calibration"]["temperature"]
    if not isinstance(classes, list) or len(set(classes)) < max(2, len(classes)) or not set(classes) <= set(EMOTIONS):
        raise ValueError(f"classes must be different emotions among {', '.join(EMOTIONS)}")
    if not isinstance(temperature, float) or not 0.01 <= temperature <= 100:
        raise ValueError("the temperature must lie between 0.01 and 100")
    _by_picture(content)
    _archive(content)
    if not isinstance(content["flip"], bool):
        raise ValueError("flip must be true or false")
    if len(content.get("onnx_sha256", members)) != len(members):
        raise ValueError("onnx_sha256 must have one hash for each network")
    if not isinstance(content["lineage"], dict) or not isinstance(content["metrics"]["validation"], dict):
        raise ValueError("lineage and metrics must say what the networks were trained on, and how good they were")
    check_size(*(member for member in members if isinstance(member, ModelConfig)), classes=len(classes))


def _check_sizes(folder: str, files: Iterable[str]) -> None:
    sizes = {".onnx": 0, ".keras": 0}
    for file in (Path(folder) / name for name in files):
        if not file.is_file():
            raise BundleError(f"The model bundle {folder} is missing its {file.name}: copy it anew.")
        sizes[file.suffix] += file.stat().st_size
    if max(sizes.values()) > MAX_WEIGHTS_BYTES:
        raise BundleError(f"The model bundle {folder} is larger than this version reads.")


def sha256(file: Path) -> str:
    """The SHA-256 of a file in hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _model_version(content: dict[str, Any]) -> str:
    """The architecture's name, or how many there are, and 12 hex digits over the metadata, which holds the hashes of the weights.

    The ONNX networks are made from the weights, and checked against them: they leave the version alone.
    """
    described = {key: value for key, value in content.items() if key not in ("model_version", "onnx_sha256")}
    described["format_version"] = FORMAT_WITHOUT_ONNX
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    names = architectures(content)
    name = names[0] if len(names) == 1 else f"ensemble{len(names)}"
    return f"{name}-{digest[:12]}"
