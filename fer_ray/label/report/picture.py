"""A picture of what a run found: its first images that have faces, with their labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
from PIL import ImageOps

from fer_ray.errors import ImageError, StorageError
from fer_ray.io.inputs import read_image_named
from fer_ray.io.storage import join
from fer_ray.label.publish import table_file
from fer_ray.label.report.apart import run_apart
from fer_ray.label.run import Run
from fer_ray.typing import UInt8Array
from fer_ray.vision.decode import decode
from fer_ray.vision.draw import Box, draw_faces

TILE = 480  # pixels of an image's square
SECONDS = 60.0  # for all images together


def draw_picture(run: Run, max_images: int) -> str:
    """Draw boxes and labels into a sheet of the first images that have faces; gives its address."""
    tiles = list(run_apart(_draw_tiles, SECONDS, run, _first_faces(run, max_images)))
    target = join(run.output, "reports", run.run_id, "faces.jpg")
    run.storage.write(target, cv2.imencode(".jpg", _sheet(tiles))[1].tobytes())
    return target


def _draw_tiles(run: Run, faces: dict[str, list[dict[str, Any]]]) -> Iterator[UInt8Array]:
    for uri, rows in faces.items():
        try:
            content = read_image_named(run.storage, uri, run.config.labeling.max_file_megabytes)
            decoded = decode(content, run.config.labeling.max_megapixels, TILE)
        except (ImageError, StorageError):
            continue  # it was there when it was labeled
        yield _tile(decoded.pixels, decoded.scale, rows)


def _first_faces(run: Run, max_images: int) -> dict[str, list[dict[str, Any]]]:
    """The faces of the first images that have any, by image_uri."""
    faces: dict[str, list[dict[str, Any]]] = {}
    columns = ["image_uri", "bbox_x", "bbox_y", "bbox_width", "bbox_height", "emotion", "confidence"]
    file = table_file(run, "faces", 0)
    if run.storage.stat(file) is None:
        return faces
    with run.storage.open(file, read_ahead=1 << 16) as opened:
        for batch in pq.ParquetFile(opened).iter_batches(1024, columns=columns):
            for row in batch.to_pylist():
                if row["image_uri"] not in faces and len(faces) == max_images:
                    return faces
                faces.setdefault(row["image_uri"], []).append(row)
    return faces


def _tile(pixels: UInt8Array, scale: float, faces: list[dict[str, Any]]) -> UInt8Array:
    """An image on a square of TILE pixels with its faces marked."""
    factor = TILE / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor)))
    shown = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)[..., ::-1], np.uint8)
    boxes = [[round(face[f"bbox_{part}"] / scale * factor) for part in ("x", "y", "width", "height")] for face in faces]
    found = [Box((x, y, w, h), face["emotion"], face["confidence"]) for (x, y, w, h), face in zip(boxes, faces, strict=True)]
    tile = np.asarray(ImageOps.pad(draw_faces(shown, found), (TILE, TILE), color="white", centering=(0, 0)))
    return np.ascontiguousarray(tile[..., ::-1])


def _sheet(tiles: list[UInt8Array]) -> UInt8Array:
    if not tiles:
        return np.full((TILE, TILE, 3), 255, np.uint8)
    columns = min(3, len(tiles))
    blank = np.full_like(tiles[0], 255)
    filled = tiles + [blank] * (-len(tiles) % columns)
    return np.vstack([np.hstack(filled[i : i + columns]) for i in range(0, len(filled), columns)])
