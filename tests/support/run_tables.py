"""Tables of labeling runs that never were: as many rows as wanted, of known shares."""

import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.config.jobs.label import LabelConfig
from fer_ray.emotions import EMOTIONS
from fer_ray.io.storage import Storage
from fer_ray.label.run import Run
from fer_ray.schema import FACES, IMAGES, RUNS, Status

ROWS_PER_FILE = 1_000_000
STARTED = datetime.datetime(2026, 11, 20, 22, tzinfo=datetime.UTC)


def write_run(
    output: Path, run_id: str, day: int, shares: Sequence[float], images: int, folders: Sequence[str], failed: int = 0, model: str = "m-1"
) -> tuple[Run, dict[str, Any]]:
    """A committed run with one face in every image that did not fail; the images go through `folders` in turn, in their order."""
    date = datetime.date(2026, 11, day)
    config = LabelConfig(("/archive",), str(output), run_id=run_id, run_date=date.isoformat(), thumbnails=False)
    run = Run(run_id, date, ("/archive",), str(output), "m", model, config, Storage())
    generator = np.random.default_rng(day)
    started = STARTED + datetime.timedelta(days=day - 20)
    for number, first in enumerate(range(0, images, ROWS_PER_FILE)):
        last = min(images, first + ROWS_PER_FILE)
        uris = [f"/archive/{folders[row * len(folders) // images]}/image {row:08d}.jpg" for row in range(first, last)]
        _write_images(output, run, number, uris, started, max(0, failed - first))
        _write_faces(output, run, number, uris[max(0, failed - first) :], started, shares, generator)
    row = run_row(run, started, images, failed)
    (output / "runs").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([row], schema=RUNS), run.commit_file)
    return run, row


def run_row(run: Run, started: datetime.datetime, images: int, failed: int) -> dict[str, Any]:
    """The row in `runs`."""
    texts = {"status": "done", "input_uri": run.input_uri, "fer_ray_version": "1", "ray_version": "2", "top_errors_json": "{}"}
    counts = {"images_total": images, "images_ok": images - failed, "images_failed": failed, "faces_total": images - failed}
    rest = dict.fromkeys(("images_no_face", "images_skipped", "faces_left_out", "gpu_count"), 0)
    return {
        **texts,
        **counts,
        **rest,
        "run_id": run.run_id,
        "run_date": run.run_date,
        "started_at": started,
        "finished_at": started + datetime.timedelta(hours=2),
        "config_json": json.dumps({"request": run.request, "config": run.config.to_dict()}),
        "git_commit": None,
        "model_version": run.model_version,
        "detector_version": run.config.labeling.detector_version,
        "images_per_second": 41.5,
        "cpu_count": 16,
        "schema_version": 1,
    }


def _write_images(output: Path, run: Run, number: int, uris: list[str], started: datetime.datetime, failed: int) -> None:
    broken = min(failed, len(uris))
    columns = {
        **_provenance(run, uris, started),
        "status": [Status.UNDECODABLE.value] * broken + [Status.OK.value] * (len(uris) - broken),
        "error": [f"The file is no image ({n} bytes read)." for n in range(broken)] + [None] * (len(uris) - broken),
        "face_count": [0] * broken + [1] * (len(uris) - broken),
        "left_out_count": [0] * len(uris),
    }
    _write(output / "images", run, number, columns, IMAGES)


def _write_faces(
    output: Path,
    run: Run,
    number: int,
    uris: list[str],
    started: datetime.datetime,
    shares: Sequence[float],
    generator: np.random.Generator,
) -> None:
    columns = {
        **_provenance(run, uris, started),
        **{field.name: np.full(len(uris), 10) for field in FACES if field.type == pa.int32() and field.name != "schema_version"},
        "detection_score": np.full(len(uris), 0.9),
        "emotion": np.array(EMOTIONS)[generator.choice(len(EMOTIONS), len(uris), p=shares)],
        "confidence": 1 - generator.beta(1.2, 3, len(uris)) * 0.85,
        **{f"prob_{emotion}": generator.random(len(uris)) for emotion in EMOTIONS},
    }
    _write(output / "faces", run, number, columns, FACES)


def _provenance(run: Run, uris: list[str], started: datetime.datetime) -> dict[str, Any]:
    begun = int(started.timestamp() * 1e6)
    return {
        "image_uri": uris,
        "image_id": [hashlib.sha256(uri.encode()).hexdigest()[:32] for uri in uris],
        **{name: [value] * len(uris) for name, value in (("model_version", run.model_version), ("detector_version", "d"))},
        "run_id": [run.run_id] * len(uris),
        "labeled_at": begun + np.linspace(0, 7.1e9, len(uris)).astype(np.int64),
        "schema_version": np.ones(len(uris), np.int64),
    }


def _write(folder: Path, run: Run, number: int, columns: dict[str, Any], schema: pa.Schema) -> None:
    rows = len(columns["image_uri"])
    arrays = [pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(rows, field.type) for field in schema]
    file = folder / f"run_date={run.run_date}" / f"{run.run_id}-{number}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), file, compression="zstd", row_group_size=100_000)
