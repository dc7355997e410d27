"""Faces as pictures: those that a condition in SQL picks, from kept crops, or cut once more from the photographs."""

from __future__ import annotations

import csv
import io
import itertools
import logging
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fer_ray.browse.query import opened, select_faces
from fer_ray.browse.runs import open_tables
from fer_ray.config.jobs.browse import CropsConfig
from fer_ray.errors import FerRayError, UsageError
from fer_ray.io.archives import archive_of
from fer_ray.io.inputs import read_image_named
from fer_ray.io.storage import Storage, absolute, join
from fer_ray.label.report.apart import run_apart
from fer_ray.text import plural
from fer_ray.typing import UInt8Array
from fer_ray.vision.crop import keep_crop
from fer_ray.vision.decode import decode
from fer_ray.vision.detector import Detection

LOGGER = logging.getLogger(__name__)
SIDE = 128  # pixels of a face on a sheet
CAPTION = 20  # pixels below it
MAX_COLUMNS = 12
MAX_MEGABYTES = 64.0  # of a photograph that is read again
MAX_MEGAPIXELS = 60.0  # of the same
ENOUGH_PIXELS = 1600
SECONDS = 30.0  # for all photographs that are read again, and so much more for each face
SECONDS_PER_FACE = 0.5
_CUT = ("image_uri", "image_id", "face_index", "bbox_x", "bbox_y", "bbox_width", "bbox_height", "labeled_at")
_LISTED = ("file", "image_uri", "face_index", "emotion", "confidence", "model_version", "image_id")


def write_crops(config: CropsConfig) -> dict[str, Any]:
    """Write the faces that the condition picks.

    Returns:
        The summary: how many faces were picked, and how many have a picture.

    Raises:
        UsageError: the condition cannot be used, there is no such face, or the output is there already.
    """
    storage, tables = open_tables(config)
    output = absolute(config.output, "output")
    if storage.stat(output) or any(entry.error is None for entry in itertools.islice(storage.list_files(output), 1)):
        raise UsageError(f"{output} is there already: name a new one.")
    with opened(storage, tables) as connection:
        faces = select_faces(connection, config.where, config.order_by, config.limit).to_pylist()
    if not faces:
        raise UsageError("No face of the tables meets the condition: nothing was written.")
    pictures = read_pictures(storage, tables, faces)
    shown = [face for face in faces if key_of(face) in pictures]
    if not shown:
        raise UsageError("None of these faces has a picture: their crops were not kept, and their photographs are gone or changed.")
    if config.is_sheet:
        suffix = PurePosixPath(output).suffix.lower()
        storage.write(output, cv2.imencode(suffix, _sheet([(face, pictures[key_of(face)]) for face in shown]))[1].tobytes())
    else:
        _write_files(storage, output, shown, pictures)
    if len(shown) < len(faces):
        LOGGER.warning("%s without a picture: crop not kept, photograph gone or changed", plural(len(faces) - len(shown), "face"))
    LOGGER.info("%s: %s", plural(len(shown), "face"), output)
    return {"output": output, "faces": len(faces), "written": len(shown)}


def key_of(face: Mapping[str, Any]) -> tuple[str, int]:
    """What tells a face from others of one model."""
    return face["image_id"], face["face_index"]


def read_pictures(storage: Storage, tables: str, faces: list[dict[str, Any]]) -> dict[tuple[str, int], bytes]:
    """JPEGs of rows of `faces`, by `key_of`: kept crops where there are, otherwise cut from the photograph as it is now.

    A face is left out whose photograph is gone, cannot be read, or changed since it was labeled.
    """
    found: dict[tuple[str, int], bytes] = {}
    by_run: dict[str, set[tuple[str, int]]] = {}
    for face in faces:
        if face["crops_run_id"]:
            by_run.setdefault(face["crops_run_id"], set()).add(key_of(face))
    for entry in storage.list_files(join(tables, "crops")) if by_run else ():
        wanted = by_run.get(PurePosixPath(entry.image_uri).stem.rpartition("-")[0])
        if wanted and entry.image_uri.endswith(".parquet"):
            found.update(_kept(storage, entry.image_uri, wanted))
    rest = [{name: face[name] for name in _CUT} for face in faces if key_of(face) not in found]
    if rest:
        found.update(run_apart(_cut_all, SECONDS + SECONDS_PER_FACE * len(rest), storage, rest))
    return found


def _kept(storage: Storage, uri: str, wanted: set[tuple[str, int]]) -> Iterator[tuple[tuple[str, int], bytes]]:
    """The crops of a file that are wanted; only row groups that hold one are read in full."""
    ids = pa.array(sorted({image_id for image_id, _ in wanted}), pa.string())
    with storage.open(uri, read_ahead=1 << 20) as file:
        stored = pq.ParquetFile(file)
        for group in range(stored.num_row_groups):
            keys = stored.read_row_group(group, columns=["image_id", "face_index"])
            places = np.flatnonzero(pc.is_in(keys["image_id"], ids).to_numpy())
            if len(places):
                jpegs = stored.read_row_group(group, columns=["jpeg"])["jpeg"]
                for place, row in zip(places.tolist(), keys.take(pa.array(places)).to_pylist(), strict=True):
                    if (key := (row["image_id"], row["face_index"])) in wanted:
                        yield key, jpegs[place].as_py()


def _cut_all(storage: Storage, faces: list[dict[str, Any]]) -> Iterator[tuple[tuple[str, int], bytes]]:
    for face in faces:
        if jpeg := _cut_again(storage, face):
            yield key_of(face), jpeg


def _cut_again(storage: Storage, face: Mapping[str, Any]) -> bytes | None:
    try:
        state = archive_of(storage, face["image_uri"]) or storage.stat(face["image_uri"])
        if state and state.modified_at and state.modified_at > face["labeled_at"]:
            return None
        decoded = decode(read_image_named(storage, face["image_uri"], MAX_MEGABYTES), MAX_MEGAPIXELS, ENOUGH_PIXELS)
        box = [face[f"bbox_{part}"] / decoded.scale for part in ("x", "y", "width", "height")]
        located = Detection((box[0], box[1], box[2], box[3]), np.zeros((5, 2), np.float32), 1.0)
        return keep_crop(decoded.pixels, located, 2 * SIDE).jpeg
    except (FerRayError, OSError):
        return None


def _write_files(storage: Storage, output: str, faces: list[dict[str, Any]], pictures: Mapping[tuple[str, int], bytes]) -> None:
    """One JPEG a face, named so that a viewer shows them in their order, and a list that leads back to the photographs."""
    text = io.StringIO()
    listed = csv.DictWriter(text, _LISTED, extrasaction="ignore")
    listed.writeheader()
    digits = len(str(len(faces)))
    for number, face in enumerate(faces, 1):
        name = f"{number:0{digits}d}-{face['emotion']}-{face['confidence']:.2f}-{face['image_id'][:12]}-{face['face_index']}.jpg"
        storage.write(join(output, name), pictures[key_of(face)])
        listed.writerow({**face, "file": name})
    storage.write(join(output, "faces.csv"), text.getvalue().encode(errors="surrogateescape"))


def _sheet(faces: list[tuple[dict[str, Any], bytes]]) -> UInt8Array:
    """All faces on one picture, each with its emotion and confidence below, in rows of up to MAX_COLUMNS."""
    columns = min(MAX_COLUMNS, len(faces))
    rows = -(-len(faces) // columns)
    sheet = np.full((rows * (SIDE + CAPTION), columns * SIDE, 3), 255, np.uint8)
    for number, (face, jpeg) in enumerate(faces):
        top, left = number // columns * (SIDE + CAPTION), number % columns * SIDE
        pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        if pixels is None:
            continue
        factor = (SIDE - 4) / max(pixels.shape[:2])
        size = (max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor)))
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
        x, y = left + (SIDE - size[0]) // 2, top + (SIDE - size[1]) // 2
        sheet[y : y + size[1], x : x + size[0]] = small
        caption = f"{face['emotion']} {face['confidence']:.2f}"
        cv2.putText(sheet, caption, (left + 4, top + SIDE + 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
    return sheet
