"""Small pictures of labeled faces, cut again from the images, as far as these are still there and within bounds of time and size."""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from fer_ray.io.archives import archive_of
from fer_ray.io.inputs import read_image_named
from fer_ray.label.report.apart import run_apart
from fer_ray.label.run import Run
from fer_ray.typing import UInt8Array
from fer_ray.vision.decode import decode

SIDE = 96  # pixels of a sample face
MARGIN = 0.2  # of the face's side, around it
JPEG_QUALITY = 80
ENOUGH_PIXELS = 1600
MAX_MEGABYTES = 32.0  # of an image that is read again for a sample
MAX_MEGAPIXELS = 40.0  # of the same
READERS = 4  # images that are read at a time
SECONDS = 30.0  # for all samples together


@dataclass(frozen=True)
class FaceSample:
    """A face as a JPEG of at most 96 x 96 pixels, and what the run said about it."""

    jpeg: bytes
    image_uri: str
    emotion: str
    confidence: float


def read_samples(run: Run, candidates: Mapping[str, Sequence[Mapping[str, Any]]], wanted: Mapping[str, int]) -> dict[str, list[FaceSample]]:
    """For each group of rows of `faces` as many samples as are wanted, taken in their order.

    An image that is gone, changed since it was labeled, too large, or a copy of one that is shown, gives its place to the
    next. What has come after SECONDS is given.
    """
    found: dict[str, list[FaceSample]] = {group: [] for group in candidates}
    for group, sample in run_apart(_find_samples, SECONDS, run, candidates, wanted):
        found[group].append(sample)
    return found


def _find_samples(
    run: Run, candidates: Mapping[str, Sequence[Mapping[str, Any]]], wanted: Mapping[str, int]
) -> Iterator[tuple[str, FaceSample]]:
    with ThreadPoolExecutor(READERS) as readers:
        found: queue.SimpleQueue[tuple[str, FaceSample] | None] = queue.SimpleQueue()
        for group, rows in candidates.items():
            readers.submit(_read_group, run, group, rows, wanted[group], found)
        for _ in candidates:
            yield from iter(found.get, None)


def _read_group(
    run: Run, group: str, rows: Sequence[Mapping[str, Any]], wanted: int, found: queue.SimpleQueue[tuple[str, FaceSample] | None]
) -> None:
    shown: set[bytes] = set()
    for row in rows:
        if len(shown) == wanted:
            break
        try:
            sample, digest = _read(run, row)
        except Exception:  # noqa: BLE001, S112 - the boundary of one image: whatever is the matter with it, the next is shown
            continue
        if sample and digest not in shown:
            shown.add(digest)
            found.put((group, sample))
    found.put(None)


def _read(run: Run, row: Mapping[str, Any]) -> tuple[FaceSample | None, bytes]:
    """The sample and a hash of the image; no sample where it changed since."""
    uri, limits = row["image_uri"], run.config.labeling
    state = archive_of(run.storage, uri) or run.storage.stat(uri)
    if state is None or (state.modified_at and state.modified_at > row["labeled_at"]):
        return None, b""
    content = read_image_named(run.storage, uri, min(limits.max_file_megabytes, MAX_MEGABYTES))
    decoded = decode(content, min(limits.max_megapixels, MAX_MEGAPIXELS), ENOUGH_PIXELS)
    crop = _crop(decoded.pixels, [row[f"bbox_{part}"] / decoded.scale for part in ("x", "y", "width", "height")])
    jpeg = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    return FaceSample(jpeg, uri, row["emotion"], row["confidence"]), hashlib.sha256(content).digest()


def _crop(pixels: UInt8Array, bbox: Sequence[float]) -> UInt8Array:
    """The square around a box with some margin, as far as it lies inside the image, at most SIDE pixels each way."""
    x, y, width, height = bbox
    half = max(width, height, 2.0) * (0.5 + MARGIN)
    left, right = (int(np.clip(x + width / 2 + side, 0, pixels.shape[1])) for side in (-half, half))
    top, bottom = (int(np.clip(y + height / 2 + side, 0, pixels.shape[0])) for side in (-half, half))
    crop = pixels[top : max(bottom, top + 1), left : max(right, left + 1)]
    factor = SIDE / max(crop.shape[:2])
    size = (max(1, round(crop.shape[1] * factor)), max(1, round(crop.shape[0] * factor)))
    return np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC), np.uint8)
