"""Emotion labels for image archives, at scale, on Ray."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fer_ray.errors import BundleError, DatasetError, FerRayError, ImageError, PublishError, StorageError, TrainingError, UsageError

if TYPE_CHECKING:
    from fer_ray.config.jobs.label import LabelingOptions
    from fer_ray.label.batches import LabelBatches
    from fer_ray.label.labeler import Labeler
    from fer_ray.label.result import Face, LabeledImage, LabeledImages

__version__ = "0.2.0"  # also of code that runs from an uploaded folder, where no package is installed
__all__ = [
    "BundleError",
    "DatasetError",
    "Face",
    "FerRayError",
    "ImageError",
    "LabelBatches",
    "LabeledImage",
    "LabeledImages",
    "Labeler",
    "LabelingOptions",
    "PublishError",
    "StorageError",
    "TrainingError",
    "UsageError",
]
_LOADED_WHEN_ASKED_FOR = {  # the command's --help must not wait for OpenCV
    "Face": "fer_ray.label.result",
    "LabelBatches": "fer_ray.label.batches",
    "LabeledImage": "fer_ray.label.result",
    "LabeledImages": "fer_ray.label.result",
    "Labeler": "fer_ray.label.labeler",
    "LabelingOptions": "fer_ray.config.jobs.label",
}


def __getattr__(name: str) -> Any:
    if name in _LOADED_WHEN_ASKED_FOR:
        return getattr(import_module(_LOADED_WHEN_ASKED_FOR[name]), name)
    raise AttributeError(f"module 'fer_ray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
