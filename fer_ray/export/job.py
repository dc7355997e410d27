"""The export job: a bundle converted for another runtime, read back from disk, compared on real crops, and only then put in its place."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.jobs.export import ONNX, SAVEDMODEL, TFLITE, WEB, ExportConfig
from fer_ray.config.jobs.label import LabelingOptions
from fer_ray.errors import DatasetError, FerRayError, StorageError, UsageError
from fer_ray.export.web import write_page
from fer_ray.io.storage import Storage, is_remote, join, new_folder
from fer_ray.models import bundle, keras_bundle
from fer_ray.models.bundle import Bundle
from fer_ray.models.conversion import INPUT, OUTPUT, Predict, convert, describe, open_converted
from fer_ray.models.keras_bundle import KerasNetwork
from fer_ray.models.silence import load_keras, silence
from fer_ray.text import sanitize
from fer_ray.typing import Float32Array, UInt8Array

PACKAGES = {ONNX: ("tensorflow", "onnx", "onnxruntime", "tf2onnx"), SAVEDMODEL: ("tensorflow",), TFLITE: ("tensorflow",)}
SAVEDMODEL_METADATA = "assets.extra/fer_ray.json"  # the folder that TensorFlow leaves to others
SAVEDMODEL_MAIN_FILE = "saved_model.pb"  # what makes a folder a SavedModel; written last where files are written one by one

MAX_CALIBRATION_CROPS = 512
MAX_CHECK_CROPS = 1024
MIN_CROPS = 16  # validation images of a data set, for calibration and check together
DEMO_CROPS = 128  # half for calibration, half for the check
SPEED_BATCH = 64  # crops
SPEED_SECONDS = 6.0  # after which no further round starts
MIN_ROUNDS = 3
MAX_ROUNDS = 12

MIN_AGREEMENT = {False: 0.99, True: 0.90}  # share of crops with the same emotion, without and with int8
MAX_DIFFERENCE = {False: 1e-3, True: 1.0}  # of a probability, without and with int8

logger = logging.getLogger(__name__)


def export(config: ExportConfig) -> dict[str, Any]:
    """Convert a bundle, check the result on real crops, measure it, and put it in its place; gives the summary.

    Raises:
        UsageError: the bundle, the data set or the output cannot be used, or a package is missing. Nothing was written.
        FerRayError: the conversion failed, or its result does not agree with the bundle. Nothing was written.
    """
    storage, output = Storage.of(config), new_folder(config.output)
    if config.format == WEB:
        return write_page(config, storage, Path(output))
    _check_packages(config.format)
    _check_output(storage, output, config.format)
    threads = _load_tensorflow()
    with bundle.local_copy(storage, bundle.resolve(config.model, storage)) as folder:
        # A network that is exported sees crops alone: its confidences have the temperature, and know nothing of the picture.
        original = dataclasses.replace(keras_bundle.load(folder, config.flip), by_picture=None)
    calibration, crops = _real_crops(config, original)
    with tempfile.TemporaryDirectory(prefix="fer-ray-") as work:
        made = Path(work) / "model"
        convert(original, config.format, made, _as_input(calibration) if config.int8 else None)
        run = open_converted(config.format, made, threads)
        compared = _compare(config, original, run, crops)
        summary = {
            "format": config.format,
            "int8": config.int8,
            "bytes": _size(made),
            **compared,
            **_measure_speed(original, run, crops),
            "model_version": original.model_version,
            "output": config.output,
        }
        _put_in_place(storage, made, output, config.format, describe(original, config.int8))
    logger.info("%s", _sentence(summary, len(crops), threads))
    logger.info("Load %s in the other runtime: `%s` (float32 0..255) in, `%s` out.", sanitize(config.output), INPUT, OUTPUT)
    return summary


def _check_packages(format_name: str) -> None:
    missing = [package for package in PACKAGES[format_name] if find_spec(package) is None]
    if missing:
        raise UsageError(f"The format {format_name} needs the package {missing[0]}: pip install 'fer-ray[train]'.")


def _check_output(storage: Storage, output: str, format_name: str) -> None:
    names = (output, _sidecar(output)) if format_name == TFLITE else (output,)
    if any(_is_taken(storage, name, format_name) for name in names):
        raise UsageError(f"The output {output} exists already: name a new one, or remove it.")
    storage.check_writable(output.rpartition("/")[0] or "/")


def _is_taken(storage: Storage, output: str, format_name: str) -> bool:
    if not is_remote(output):
        return os.path.lexists(output)
    return storage.stat(join(output, SAVEDMODEL_MAIN_FILE) if format_name == SAVEDMODEL else output) is not None


def _sidecar(output: str) -> str:
    return f"{output}.json"


def _load_tensorflow() -> int:
    """Load TensorFlow without its greetings, for one thread; gives the number it uses (0: all), which the other runtimes get as well."""
    load_keras()
    import tensorflow as tf

    with suppress(RuntimeError):  # a process that has calculated with TensorFlow before keeps its threads
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    return int(tf.config.threading.get_intra_op_parallelism_threads())


def _as_input(crops: UInt8Array) -> Float32Array:
    return (crops[..., None] if crops.ndim == 3 else crops).astype(np.float32)


def _real_crops(config: ExportConfig, original: Bundle[KerasNetwork]) -> tuple[UInt8Array, UInt8Array]:
    """Crops for calibration and others for the check: (n, s, s) gray or (n, s, s, 3) RGB."""
    if not config.dataset:
        crops = demo_crops(original, DEMO_CROPS)
        return crops[::2], crops[1::2]
    from fer_ray.data.dataset import load_dataset

    wanted = DatasetConfig(dataset=config.dataset, **config.store_options())
    images = load_dataset(wanted, original.image_size, original.color, splits=("validation",)).validation.images
    if len(images) < MIN_CROPS:
        raise DatasetError(f"The data set {config.dataset} has {len(images)} validation images: an export needs {MIN_CROPS} at least.")
    mixed = images[np.random.default_rng(0).permutation(len(images))]
    middle = min(MAX_CALIBRATION_CROPS, len(mixed) // 2)
    return mixed[:middle], mixed[middle : middle + MAX_CHECK_CROPS]


def demo_crops(original: Bundle[Any], count: int) -> UInt8Array:
    """The faces of the demo photographs as a bundle wants them, mildly varied in place, size, light and side.

    Raises:
        UsageError: the packages that carry the photographs are not installed.
    """
    from fer_ray.data import demo_photos
    from fer_ray.vision.crop import crop_face
    from fer_ray.vision.decode import decode
    from fer_ray.vision.detector import FaceDetector

    try:
        files = [Path(entry.image_uri) for entry in demo_photos.images()]
    except UsageError as error:
        raise UsageError("The check needs faces: pip install 'fer-ray[demo]' for the demo photographs, or give --dataset.") from error
    found = LabelingOptions()
    photographs = [decode(file.read_bytes(), found.max_megapixels, 2 * found.detector_side).pixels for file in files]
    detector = FaceDetector(found.detector_side, found.min_face_score, threads=1)
    faces = [(pixels, face) for pixels in photographs for face in detector.detect(pixels)[0]]
    generator = np.random.default_rng(0)
    crops = []
    for number in range(count):
        pixels, face = faces[number // 2 % len(faces)]  # in pairs, as every other crop is for calibration
        geometry = dataclasses.replace(
            original.crop,
            scale=min(5.0, original.crop.scale * generator.uniform(0.9, 1.1)),
            shift_x=float(np.clip(original.crop.shift_x + generator.uniform(-0.05, 0.05), -1, 1)),
            shift_y=float(np.clip(original.crop.shift_y + generator.uniform(-0.05, 0.05), -1, 1)),
        )
        crop = crop_face(pixels, face, original.image_size, geometry, original.color)[:, :: generator.choice([1, -1])]
        crops.append(np.clip(crop * generator.uniform(0.7, 1.3) + generator.uniform(-30, 30), 0, 255).astype(np.uint8))
    return np.stack(crops)


def _compare(config: ExportConfig, original: Bundle[KerasNetwork], run: Predict, crops: UInt8Array) -> dict[str, float]:
    """Share of crops with the same likeliest class, and the largest difference of a probability, over batches of several sizes."""
    expected = original.probabilities(crops)
    bounds = [0, 1, 4, *range(4 + SPEED_BATCH, len(crops), SPEED_BATCH), len(crops)]
    with silence():
        given = np.concatenate([run(_as_input(crops[low:high])) for low, high in itertools.pairwise(bounds)])
    agreement = float((given.argmax(axis=1) == expected.argmax(axis=1)).mean())
    difference = float(np.abs(given - expected).max())
    if not (agreement >= MIN_AGREEMENT[config.int8] and difference < MAX_DIFFERENCE[config.int8]):  # also where they are NaN
        raise FerRayError(
            f"The {config.format} export does not agree with the model: the same emotion on {agreement:.1%} of {len(crops)} faces, "
            f"probabilities that differ by up to {difference:.2g}; nothing was written."
        )
    return {"agreement": agreement, "max_difference": difference}


def _measure_speed(original: Bundle[KerasNetwork], run: Predict, crops: UInt8Array) -> dict[str, float]:
    """Images/s of the export and of Keras in alternating rounds of one batch each, by the median round."""
    batch = np.resize(crops, (SPEED_BATCH, *crops.shape[1:]))
    contestants: dict[str, Callable[[], Any]] = {
        "images_per_second": lambda: run(_as_input(batch)),
        "keras_images_per_second": lambda: original.probabilities(batch),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    started = time.monotonic()
    with silence():
        for call in contestants.values():
            call()
        for done in range(MAX_ROUNDS):
            if done >= MIN_ROUNDS and time.monotonic() - started > SPEED_SECONDS:
                break
            for name, call in contestants.items():
                began = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - began)
    return {name: round(SPEED_BATCH / statistics.median(times), 1) for name, times in seconds.items()}


def _files(made: Path) -> Sequence[Path]:
    return sorted(file for file in made.rglob("*") if file.is_file()) if made.is_dir() else [made]


def _size(made: Path) -> int:
    return sum(file.stat().st_size for file in _files(made))


def _put_in_place(storage: Storage, made: Path, output: str, format_name: str, description: dict[str, Any]) -> None:
    """Give the export its name, whole; its description is there first, inside or beside it."""
    text = (json.dumps(description, indent=2) + "\n").encode()
    if format_name == SAVEDMODEL:
        (made / SAVEDMODEL_METADATA).parent.mkdir()
        (made / SAVEDMODEL_METADATA).write_bytes(text)
        taken = not (_put_folder_into_store(storage, made, output) if is_remote(output) else _put_folder(made, Path(output)))
    elif format_name == TFLITE:
        taken = not storage.write(_sidecar(output), text, replace=False)
        if not taken and not storage.write(output, made.read_bytes(), replace=False):
            storage.remove(_sidecar(output))
            taken = True
    else:
        taken = not storage.write(output, made.read_bytes(), replace=False)
    if taken:
        raise UsageError(f"The output {output} appeared meanwhile: name a new one, or remove it.")


def _put_folder(made: Path, output: Path) -> bool:
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix="_writing-", dir=output.parent))
    try:
        shutil.copytree(made, temporary / "saved")
        if os.path.lexists(output):
            return False
        (temporary / "saved").rename(output)
    except OSError as error:
        raise StorageError(f"The output {output} cannot be written ({error.strerror}).") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _put_folder_into_store(storage: Storage, made: Path, output: str) -> bool:
    for file in sorted(_files(made), key=lambda file: file.name == SAVEDMODEL_MAIN_FILE):
        main = file.name == SAVEDMODEL_MAIN_FILE
        if not storage.write(join(output, *file.relative_to(made).parts), file.read_bytes(), replace=not main):
            return False
    return True


def _sentence(summary: dict[str, Any], crops: int, threads: int) -> str:
    own, keras = summary["images_per_second"], summary["keras_images_per_second"]
    return (
        f"{summary['format']}{' int8' if summary['int8'] else ''}: {summary['bytes'] / 1e6:.2f} MB; "
        f"the same emotion as Keras on {summary['agreement']:.1%} of {crops} faces, probabilities within {summary['max_difference']:.2g}; "
        f"{own:,.0f} images/s, Keras {keras:,.0f} ({own / keras:.2f} times as fast; "
        f"batches of {SPEED_BATCH}, {threads or 'all'} thread{'' if threads == 1 else 's'})"
    )
