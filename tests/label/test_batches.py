"""A pipeline of somebody's own labels its images with one class, and a broken image is a row of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import fer_ray
from fer_ray.schema import FACE_STRUCT


def test_ray_data_labels_a_column_of_bytes_and_one_of_paths(ray_cluster: None, photographs: dict[str, Path], tmp_path: Path) -> None:
    import ray

    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photographs["grace_hopper"].read_bytes()[:100])
    paths = [str(broken), *map(str, photographs.values())]
    by_bytes = ray.data.read_binary_files(paths, include_paths=True)
    by_path = ray.data.from_items([{"path": path, "mine": n} for n, path in enumerate(paths)])
    expected = dict(zip(paths, fer_ray.Labeler().label(paths), strict=True))
    for dataset, column, form in ((by_bytes, "bytes", "pyarrow"), (by_path, "path", "default")):
        step: Any = fer_ray.LabelBatches
        options = {"fn_constructor_kwargs": {"column": column}, "batch_size": 2, "batch_format": form, "concurrency": 1}
        rows = dataset.map_batches(step, **options).take_all()
        assert {row["path"]: row["status"] for row in rows} == {path: image.status for path, image in expected.items()}
        for row in rows:
            assert [face["emotion"] for face in row["faces"]] == [face.emotion for face in expected[row["path"]].faces]
            assert row["face_count"] == len(row["faces"])
            assert (row["error"] is None) == (row["path"] != str(broken))
    assert {row["mine"] for row in rows} == set(range(len(paths))), "other columns stay"


def test_a_batch_comes_back_in_its_form_and_a_wrong_column_is_named(photographs: dict[str, Path]) -> None:
    step = fer_ray.LabelBatches("image", min_face_size=40)
    paths = [str(photographs["astronaut"]), None]
    table = step(pa.table({"image": paths, "status": ["old", "old"]}))
    assert table["status"].to_pylist() == ["ok", "unreadable"]
    assert table.schema.field("faces").type == pa.list_(FACE_STRUCT)
    frame = step(pd.DataFrame({"image": paths}))
    assert isinstance(frame, pd.DataFrame)
    assert frame["face_count"].tolist() == [1, 0]
    pixels = step({"image": np.zeros((2, 50, 60, 3), np.uint8)})
    assert pixels["status"].to_pylist() == ["no_face", "no_face"]
    for batch, complaint in (({"bytes": []}, "no column image, only bytes"), ({"image": [7]}, "column image cannot be an int")):
        with pytest.raises(fer_ray.UsageError, match=complaint):
            step(batch)
