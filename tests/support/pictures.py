"""Pictures that tests read and resize, and where the real data lies."""

from pathlib import Path

import cv2
import numpy as np

from fer_ray.typing import UInt8Array

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
SHARED_CASES = SHARED_DATA.parent / "cases"


def read_bgr(path: Path) -> UInt8Array:
    return np.asarray(cv2.imread(str(path)), np.uint8)


def resized(image: UInt8Array, factor: float) -> UInt8Array:
    interpolation = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=interpolation), np.uint8)
