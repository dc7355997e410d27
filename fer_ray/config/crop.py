"""How a face is cut out for a model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from fer_ray.config.options import check
from fer_ray.errors import UsageError


@dataclass(frozen=True)
class CropGeometry:
    """How a face is cut out for a model, relative to the detector's box; it travels in the model's bundle.

    The crop's side is `scale` times the geometric mean of the box's sides, its centre is moved by shares of that side, and
    it is turned by `rotation` times the angle of the line through the eyes. The defaults were chosen on photographs
    for version 0.1; on those of the press alone no scale from 1 to 1.2 is better by more than chance (`benchmarks/quality.py --crops`).
    """

    scale: float = 1.05
    shift_x: float = 0.0
    shift_y: float = -0.04
    rotation: float = 1.0

    def __post_init__(self) -> None:
        values = dataclasses.astuple(self)
        plain = all(isinstance(value, (int, float)) for value in values)
        near = plain and 0.2 <= self.scale <= 5 and all(-1 <= value <= 1 for value in values[1:])  # so that NaN is refused
        check(near, "The crop must be 0.2 to 5 times the box, and moved and turned by at most 1.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CropGeometry:
        """The geometry as JSON gives it.

        Raises:
            UsageError: an unknown key, or a value of a wrong type or size.
        """
        try:
            return cls(**values)
        except TypeError as error:
            raise UsageError(f"The crop does not read ({error}).") from error


DEFAULT_CROP = CropGeometry()
