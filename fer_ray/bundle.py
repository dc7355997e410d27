"""A trained model on disk: `model.keras` and `bundle.json`.

Bundles come from strangers. The network is built by this code from the named architecture; of `model.keras` only the
weights are read, after their sizes were checked. No code or configuration inside it is run.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_ray.config import CropGeometry, ResidualConfig
from fer_ray.errors import BundleError, TooLargeError, UsageError
from fer_ray.models import build_residual
from fer_ray.schema import EMOTIONS
from fer_ray.storage import S3, Storage, join

if TYPE_CHECKING:
    import keras

FORMAT_VERSION = 1
METADATA_FILE, WEIGHTS_FILE = "bundle.json", "model.keras"
MAX_METADATA_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 1 << 30


@dataclass(frozen=True)
class Bundle:
    """A loaded model: `network` maps (n, s, s, 1) float32 gray 0..255 to logits (n, len(classes)) of those classes."""

    network: keras.Model
    classes: tuple[str, ...]
    image_size: int
    crop: CropGeometry
    temperature: float
    model_version: str


def default_path() -> str:
    """The bundle that comes with the package."""
    return str(resources.files("fer_ray") / "default_model")


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
        for name, limit in ((METADATA_FILE, MAX_METADATA_BYTES), (WEIGHTS_FILE, MAX_WEIGHTS_BYTES)):
            try:
                (Path(folder) / name).write_bytes(storage.read(join(model, name), limit))
            except FileNotFoundError as error:
                raise BundleError(f"The model bundle {model} is missing or has no {name}: give --model a bundle.") from error
            except TooLargeError as error:
                raise BundleError(f"The model bundle {model} is larger than this version reads.") from error
        yield folder


def save(
    folder: str,
    network: keras.Model,
    *,
    classes: tuple[str, ...],
    architecture_config: ResidualConfig,
    temperature: float,
    validation: dict[str, float],
    lineage: dict[str, Any],
) -> str:
    """Write the bundle into an existing folder; gives its model_version, which is derived from all of its contents."""
    weights = Path(folder) / WEIGHTS_FILE
    network.save(weights)
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "architecture": "residual",
        "architecture_config": asdict(architecture_config),
        "classes": list(classes),
        "preprocessing": {
            "image_size": architecture_config.image_size,
            "color": "gray",
            "range": [0, 255],
            "inside_the_network": "each image is standardised by its own mean and deviation",
            "crop": asdict(CropGeometry()),
        },
        "calibration": {"method": "temperature", "temperature": temperature},
        "metrics": {"validation": validation},
        "lineage": lineage,
        "versions": {name: metadata.version(name) for name in ("fer-ray", "keras", "tensorflow", "numpy")},
        "weights_sha256": _sha256(weights),
    }
    content["model_version"] = _model_version(content)
    (Path(folder) / METADATA_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return str(content["model_version"])


def read_metadata(folder: str) -> dict[str, Any]:
    """`bundle.json`, checked, without loading the weights (their hash is checked).

    Raises:
        BundleError: what is wrong with the bundle, in a sentence.
    """
    file, weights = Path(folder) / METADATA_FILE, Path(folder) / WEIGHTS_FILE
    if not file.is_file() or not weights.is_file():
        raise BundleError(f"The model bundle {folder} is missing or has no {METADATA_FILE} and {WEIGHTS_FILE}: give --model a bundle.")
    if file.stat().st_size > MAX_METADATA_BYTES or weights.stat().st_size > MAX_WEIGHTS_BYTES:
        raise BundleError(f"The model bundle {folder} is larger than this version reads.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise BundleError(f"The model bundle {folder} has format {version}, this code reads up to {FORMAT_VERSION}: upgrade fer_ray.")
        _check_content(content)
        expected = (_sha256(weights), _model_version(content))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"The model bundle {folder} is broken: {METADATA_FILE} does not read ({error}).") from error
    if (content["weights_sha256"], content["model_version"]) != expected:
        raise BundleError(f"The model bundle {folder} is broken or was altered: its contents do not match its hashes; copy it anew.")
    return dict(content)


def load(folder: str) -> Bundle:
    """Build the network and read its weights.

    Raises:
        BundleError: the bundle is missing, broken, altered, or newer than this code.
    """
    content = read_metadata(folder)
    config = ResidualConfig.from_dict(content["architecture_config"])
    network = build_residual(config, len(content["classes"]))
    try:
        _check_weights(Path(folder) / WEIGHTS_FILE, network.count_params())
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Keras only warns where a layer finds no weights and stays random
            network.load_weights(Path(folder) / WEIGHTS_FILE)
    except (ValueError, KeyError, OSError, UserWarning, zipfile.BadZipFile) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BundleError(f"The weights of the model bundle {folder} do not fit its architecture ({first_line}).") from error
    crop = CropGeometry.from_dict(content["preprocessing"]["crop"])
    temperature = float(content["calibration"]["temperature"])
    return Bundle(network, tuple(content["classes"]), config.image_size, crop, temperature, content["model_version"])


def _check_content(content: dict[str, Any]) -> None:
    if content["architecture"] != "residual":
        raise BundleError(f"The architecture {content['architecture']!r} is unknown: upgrade fer_ray, or retrain.")
    ResidualConfig.from_dict(content["architecture_config"])
    CropGeometry.from_dict(content["preprocessing"]["crop"])
    classes, temperature = content["classes"], content["calibration"]["temperature"]
    if not isinstance(classes, list) or len(set(classes)) < max(2, len(classes)) or not set(classes) <= set(EMOTIONS):
        raise ValueError(f"classes must be different emotions among {', '.join(EMOTIONS)}")
    if not isinstance(temperature, float) or not 0.01 <= temperature <= 100:
        raise ValueError("the temperature must lie between 0.01 and 100")


def _check_weights(file: Path, parameters: int) -> None:
    """Refuse what would fill the memory: members that unpack to far more, or datasets larger, than the network's parameters."""
    import io

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


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _model_version(content: dict[str, Any]) -> str:
    """The architecture's name and 12 hex digits over the metadata, which holds the hash of the weights."""
    described = {key: value for key, value in content.items() if key != "model_version"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return f"{content['architecture']}-{digest[:12]}"
