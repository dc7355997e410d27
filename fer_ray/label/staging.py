"""Labeled images as an Arrow table with the schema of staging: one row per image, its faces nested."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from fer_ray.label.result import LabeledImage, image_columns, nested_faces
from fer_ray.schema import SCHEMA_VERSION, STAGING, image_id


def staging_table(manifest: pa.Table, images: Sequence[LabeledImage], provenance: Mapping[str, str]) -> pa.Table:
    """Join rows of the manifest with what became of their images, column by column: rows of dicts would cost more than detection.

    `provenance` holds model_version, detector_version and run_id.
    """
    sizes = [listed if image.size_bytes is None else image.size_bytes for listed, image in zip(_listed(manifest), images, strict=True)]
    columns: dict[str, Any] = {
        **image_columns(images),
        **{name: manifest[name] for name in ("row_number", "image_uri", "modified_at", "etag")},
        "size_bytes": sizes,
        "image_id": [image_id(uri) for uri in manifest["image_uri"].to_pylist()],
        **{name: [value] * len(images) for name, value in provenance.items()},
        "labeled_at": [datetime.datetime.now(datetime.UTC)] * len(images),
        "schema_version": [SCHEMA_VERSION] * len(images),
        "faces": nested_faces(images),
    }
    return pa.table([_array(columns[field.name], field.type) for field in STAGING], schema=STAGING)


def _listed(manifest: pa.Table) -> list[int | None]:
    return list(manifest["size_bytes"].to_pylist())


def _array(values: Any, kind: pa.DataType) -> Any:
    if isinstance(values, list):
        return pa.array(values, kind)
    return values if values.type == kind else values.cast(kind)
