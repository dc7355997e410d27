"""Labeled images as an Arrow table with the schema of staging: one row per image, its faces nested."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from fer_ray.emotions import EMOTIONS
from fer_ray.label.labeler import Face, LabeledImage
from fer_ray.schema import LANDMARKS, SCHEMA_VERSION, STAGING, image_id

_FACE_STRUCT = STAGING.field("faces").type.value_type


def staging_table(manifest: pa.Table, images: Sequence[LabeledImage], provenance: Mapping[str, str]) -> pa.Table:
    """Join rows of the manifest with what became of their images, column by column: rows of dicts would cost more than detection.

    `provenance` holds model_version, detector_version and run_id.
    """
    faces = [face for image in images for face in image.faces]
    counts = [len(image.faces) for image in images]
    sizes = [listed if image.size_bytes is None else image.size_bytes for listed, image in zip(_listed(manifest), images, strict=True)]
    columns: dict[str, Any] = {
        **{name: manifest[name] for name in ("row_number", "image_uri", "modified_at", "etag")},
        "image_id": [image_id(uri) for uri in manifest["image_uri"].to_pylist()],
        "status": [image.status.value for image in images],
        "error": [image.error for image in images],
        "face_count": counts,
        "left_out_count": [image.left_out_count for image in images],
        "width": [image.width for image in images],
        "height": [image.height for image in images],
        "size_bytes": sizes,
        "content_sha256": [image.content_sha256 for image in images],
        **{name: [value] * len(images) for name, value in provenance.items()},
        "labeled_at": [datetime.datetime.now(datetime.UTC)] * len(images),
        "schema_version": [SCHEMA_VERSION] * len(images),
        "faces": pa.ListArray.from_arrays(pa.array(np.cumsum([0, *counts]), pa.int32()), _face_structs(faces, counts)),
    }
    return pa.table([_array(columns[field.name], field.type) for field in STAGING], schema=STAGING)


def _listed(manifest: pa.Table) -> list[int | None]:
    return list(manifest["size_bytes"].to_pylist())


def _array(values: Any, kind: pa.DataType) -> Any:
    if isinstance(values, list):
        return pa.array(values, kind)
    return values if values.type == kind else values.cast(kind)


def _face_structs(faces: Sequence[Face], counts: Sequence[int]) -> pa.StructArray:
    boxes = np.array([face.bbox for face in faces], np.int32).reshape(-1, 4)
    landmarks = np.array([face.landmarks for face in faces], np.float32).reshape(-1, 2 * len(LANDMARKS))
    columns: dict[str, Any] = {
        "face_index": [index for count in counts for index in range(count)],
        **{f"bbox_{part}": boxes[:, i] for i, part in enumerate(("x", "y", "width", "height"))},
        "detection_score": [face.detection_score for face in faces],
        **{f"{name}_{axis}": landmarks[:, 2 * i + j] for i, name in enumerate(LANDMARKS) for j, axis in enumerate("xy")},
        "sharpness": [face.sharpness for face in faces],
        "emotion": [face.emotion for face in faces],
        "confidence": [face.confidence for face in faces],
        **{f"prob_{emotion}": [face.probabilities.get(emotion) for face in faces] for emotion in EMOTIONS},
    }
    fields = list(_FACE_STRUCT)
    return pa.StructArray.from_arrays([pa.array(columns[field.name], field.type) for field in fields], fields=fields)
