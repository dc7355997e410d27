"""The upgrade job: a bundle of version 0.1, or a trial's, gets the ONNX networks that label."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fer_ray.config.jobs.models import UpgradeConfig
from fer_ray.io.storage import Storage, absolute, join
from fer_ray.models import bundle
from fer_ray.models.conversion import add_onnx
from fer_ray.text import sanitize

logger = logging.getLogger(__name__)


def upgrade(config: UpgradeConfig) -> dict[str, Any]:
    """Add ONNX networks to a bundle, checked against its Keras networks, and name them in its `bundle.json` last.

    The model_version stays, so what the bundle has labeled stays labeled.

    Args:
        config: which bundle.

    Returns:
        The summary: the version of the model, the number of networks, and where the bundle is.

    Raises:
        BundleError: the bundle cannot be used.
        FerRayError: a network cannot be converted, or the bundle cannot be written; it is as it was.
    """
    storage = Storage.of(config)
    place = absolute(bundle.resolve(config.model, storage), "model")
    with bundle.local_copy(storage, place) as folder, tempfile.TemporaryDirectory(prefix="fer-ray-") as temporary:
        work = Path(temporary) / "bundle"
        content = bundle.read_metadata(folder)
        if "onnx_sha256" in content:
            logger.info("%s has its ONNX networks already.", sanitize(config.model))
        else:
            shutil.copytree(folder, work)
            add_onnx(str(work))
            for name in (*(bundle.onnx_file(index) for index in range(len(content["members"]))), bundle.METADATA_FILE):
                storage.write(join(place, name), (work / name).read_bytes())
            logger.info("Label with it: fer-ray label --model %s", sanitize(config.model))
    return {"model_version": content["model_version"], "networks": len(content["members"]), "output": config.model}
