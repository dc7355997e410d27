"""A page that labels in the browser: static files, the detector and the model among them; no picture leaves the device."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from fer_ray.config.jobs.export import ExportConfig
from fer_ray.config.jobs.label import LabelingOptions
from fer_ray.emotions import EMOTION_COLORS
from fer_ray.errors import FerRayError, UsageError
from fer_ray.io.storage import Storage
from fer_ray.models import bundle
from fer_ray.reporting.responsible_use import RESPONSIBLE_USE
from fer_ray.text import sanitize
from fer_ray.vision import detector, quality

RUNTIME = "onnxruntime-web"
RUNTIME_VERSION = "1.22.0"
RUNTIME_SHA256 = "e293551f9d36d003e293d0f2937fee7b3dfdcef76d71d1449b55e2d4157c7aea"  # of the package as npm gives it
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
NPM_SECONDS = 300
CLIENT_FILES = ("index.html", "style.css", "app.js", "vision.js", "worker.js", "LICENSE-onnxruntime.txt")

logger = logging.getLogger(__name__)


def write_page(config: ExportConfig, storage: Storage, output: Path) -> dict[str, Any]:
    """Write the page with a bundle's networks to a new folder, which any web server can serve; gives the summary.

    Raises:
        UsageError: the output exists, or npm is missing or cannot fetch ONNX Runtime for browsers.
        BundleError: the bundle cannot be used.
    """
    if os.path.lexists(output):
        raise UsageError(f"The output {config.output} exists already: name a new folder, or remove it.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="_writing-", dir=output.parent) as scratch:
            page = Path(scratch) / "page"
            page.mkdir()
            version = _add_model(config, storage, page)
            _add_runtime(page, Path(scratch))
            _add_client(page)
            page.rename(output)
    except OSError as error:
        raise UsageError(f"The output {config.output} cannot be written ({error.strerror}).") from error
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    logger.info(
        "Serve it: python -m http.server --directory %s --bind 127.0.0.1 8000; then open http://127.0.0.1:8000/", sanitize(config.output)
    )
    return {"format": config.format, "bytes": size, "model_version": version, "output": config.output}


def _add_model(config: ExportConfig, storage: Storage, page: Path) -> str:
    """The networks, and `model.json` with all that the page must know of them and of the labeler's settings."""
    options = LabelingOptions()
    (page / "detector.onnx").write_bytes(detector.network())
    (page / "quality.onnx").write_bytes(quality.network())
    with bundle.local_copy(storage, bundle.resolve(config.model)) as folder:
        model = bundle.load(folder, config.flip)
        networks = [f"network-{index}.onnx" for index in range(len(model.members))]
        for index, name in enumerate(networks):
            shutil.copyfile(Path(folder) / bundle.onnx_file(index), page / name)
    described = {
        "model_version": model.model_version,
        "networks": networks,
        "classes": model.classes,
        "colors": [EMOTION_COLORS[name] for name in model.classes],
        "image_size": model.image_size,
        "color": model.color,
        "flip": model.flip,
        "temperature": model.temperature,
        "by_picture": model.by_picture.to_dict() if model.by_picture else None,
        "max_seen": quality.MAX_OUTPUT,
        "crop": {name: getattr(model.crop, name) for name in ("scale", "shift_x", "shift_y", "rotation")},
        "detector": {
            "side": options.detector_side,
            "min_score": options.min_face_score,
            "min_size": options.min_face_size,
            "faint_score": detector.FAINT_SCORE,
            "lowest_score": detector.MIN_SCORE,
            "nms_iou": detector.NMS_IOU,
        },
        "responsible_use": list(RESPONSIBLE_USE),
    }
    (page / "model.json").write_text(json.dumps(described), encoding="utf-8")
    return model.model_version


def _add_runtime(page: Path, scratch: Path) -> None:
    """ONNX Runtime for browsers, as npm has it, checked by its hash."""
    line = ["npm", "pack", f"{RUNTIME}@{RUNTIME_VERSION}", "--silent", "--pack-destination", str(scratch)]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=NPM_SECONDS, cwd=scratch, check=False)
    except FileNotFoundError:
        raise UsageError(f"The page needs {RUNTIME}, which npm fetches: install npm (Debian: apt-get install npm).") from None
    except subprocess.TimeoutExpired:
        raise FerRayError(f"npm did not fetch {RUNTIME} in {NPM_SECONDS} seconds: try again.") from None
    package = scratch / f"{RUNTIME}-{RUNTIME_VERSION}.tgz"
    if done.returncode or not package.is_file():
        reason = " ".join(done.stderr.split())[:200]
        raise FerRayError(f"npm cannot fetch {RUNTIME} {RUNTIME_VERSION} ({reason}): try again where the network allows it.")
    if hashlib.sha256(package.read_bytes()).hexdigest() != RUNTIME_SHA256:
        raise FerRayError(f"What npm fetched as {RUNTIME} {RUNTIME_VERSION} is another file than this version knows: nothing was written.")
    (page / "ort").mkdir()
    with tarfile.open(package) as files:
        for name in RUNTIME_FILES:
            content = files.extractfile(f"package/dist/{name}")
            if content is None:
                raise FerRayError(f"{RUNTIME} {RUNTIME_VERSION} holds no {name}: nothing was written.")
            (page / "ort" / name).write_bytes(content.read())


def _add_client(page: Path) -> None:
    """The page itself, and the worker that keeps all files for later, under a name that changes when any of them does."""
    client = resources.files("fer_ray.export") / "client"
    for name in CLIENT_FILES:
        (page / name).write_bytes((client / name).read_bytes())
    files = sorted(str(file.relative_to(page)) for file in page.rglob("*") if file.is_file() and file.name != "worker.js")
    digest = hashlib.sha256()
    for name in files:
        digest.update((page / name).read_bytes())
    kept = f"const VERSION = {json.dumps(digest.hexdigest()[:16])};\nconst FILES = {json.dumps(files)};\n"
    (page / "worker.js").write_text(kept + (page / "worker.js").read_text(encoding="utf-8"), encoding="utf-8")
