"""Emotion labels for image archives, at scale, on Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fer_ray.label.labeler import Face, LabeledImage, Labeler

__version__ = "0.2.0"  # also of code that runs from an uploaded folder, where no package is installed
__all__ = ["Face", "LabeledImage", "Labeler"]


def __getattr__(name: str) -> Any:
    """Load the labeler when it is first asked for: the jobs' --help must not wait for OpenCV."""
    if name in __all__:
        from fer_ray.label import labeler

        return getattr(labeler, name)
    raise AttributeError(f"module 'fer_ray' has no attribute {name!r}")
