"""What a run did, for people: progress, a summary, and a picture."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq

from fer_ray.errors import ImageError, StorageError
from fer_ray.io.inputs import read_image_named
from fer_ray.io.storage import join
from fer_ray.label.plan import Run
from fer_ray.label.publish import table_file
from fer_ray.label.report.event_log import RunLog
from fer_ray.text import sanitize
from fer_ray.typing import UInt8Array
from fer_ray.vision.decode import decode

TILE, MINUTE = 480, 60.0
SUMMARY_KEYS = ("images_total", "images_ok", "images_no_face", "images_failed", "images_skipped", "faces_total")


class Progress:
    """Prints a line with the images done so far, the rate and the time left: every time on a terminal, else once a minute.

    Once a minute the same goes into the log of the run.
    """

    def __init__(self, log: RunLog) -> None:
        self.log, self.logged = log, 0.0
        self.started: float | None = None
        self.already = 0

    def __call__(self, counts: Counter[str], images: int) -> None:
        done, now = counts["images"], time.monotonic()
        if not done:
            return
        if self.started is None:
            self.started, self.already = now, done
        rate = (done - self.already) / max(now - self.started, 1e-9)
        left = f", {rate:.1f} images/s, about {(images - done) / rate:.0f} s left" if done > self.already else ""
        line = f"{done:,}/{images:,} images ({done / images:.0%}), {counts['faces']:,} faces, {counts['failed']:,} failed{left}"
        due = done == images or not self.logged or now - self.logged >= MINUTE
        if due or sys.stderr.isatty():
            print(line, file=sys.stderr, flush=True)
        if due:
            self.logged = now
            self.log.say("progress", images=images, done=done, faces=counts["faces"], failed=counts["failed"], images_per_second=rate)


def summary(run: Run, row: dict[str, Any]) -> dict[str, Any]:
    """The last line of the job."""
    return {
        "run_id": run.run_id,
        "status": row["status"],
        "output": run.output,
        **{key: row[key] for key in SUMMARY_KEYS},
        "images_per_second": round(row["images_per_second"], 2),
        "model_version": row["model_version"],
    }


def top_errors(counts: Counter[str]) -> dict[str, int]:
    """The commonest error sentences with their counts."""
    return {key.removeprefix("error:"): n for key, n in counts.most_common() if key.startswith("error:")}


def print_summary(run: Run, row: dict[str, Any], counts: Counter[str], seconds: float) -> None:
    """A few lines about the run on standard output."""
    print(f"{row['images_total']:,} images ({seconds:.1f} s of labeling now, {row['images_per_second']:.1f} images/s with start-up)")
    print(f"  {row['images_ok']:,} with faces, {row['images_no_face']:,} without, {row['images_failed']:,} failed")
    print(f"  {row['faces_total']:,} faces ({row['faces_left_out']:,} more left out: too small or too doubtful)")
    emotions = [(key.removeprefix("emotion:"), n) for key, n in counts.most_common() if key.startswith("emotion:")]
    if emotions:
        print("  " + ", ".join(f"{name} {n / row['faces_total']:.1%}" for name, n in emotions))
    for sentence, n in top_errors(counts).items():
        print(f"  {n:,} x {sanitize(sentence)}")
    print(f"tables: {run.output}/images, {run.output}/faces, {run.output}/runs", flush=True)


def draw_picture(run: Run, most: int) -> str:
    """Draw boxes and labels into a sheet of the first images that have faces; gives its address."""
    tiles = []
    for uri, rows in _first_faces(run, most).items():
        try:
            content = read_image_named(run.storage, uri, run.config.labeling.max_file_megabytes)
            decoded = decode(content, run.config.labeling.max_megapixels, TILE)
        except (ImageError, StorageError):
            continue  # it was there when it was labeled
        tiles.append(_tile(decoded.pixels, decoded.scale, rows))
    target = join(run.output, "reports", run.run_id, "faces.jpg")
    run.storage.write(target, cv2.imencode(".jpg", _sheet(tiles))[1].tobytes())
    return target


def _first_faces(run: Run, most: int) -> dict[str, list[dict[str, Any]]]:
    """The faces of the first images that have any, by image_uri."""
    faces: dict[str, list[dict[str, Any]]] = {}
    columns = ["image_uri", "bbox_x", "bbox_y", "bbox_width", "bbox_height", "emotion", "confidence"]
    file = table_file(run, "faces", 0)
    if run.storage.find(file) is None:
        return faces
    with run.storage.open(file, read_ahead=1 << 16) as opened:
        for batch in pq.ParquetFile(opened).iter_batches(1024, columns=columns):
            for row in batch.to_pylist():
                if row["image_uri"] not in faces and len(faces) == most:
                    return faces
                faces.setdefault(row["image_uri"], []).append(row)
    return faces


def _tile(pixels: UInt8Array, scale: float, faces: list[dict[str, Any]]) -> UInt8Array:
    """An image on a square of TILE pixels with its faces marked."""
    factor = TILE / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor)))
    tile = np.full((TILE, TILE, 3), 255, np.uint8)
    shown = tile[: size[1], : size[0]]
    shown[:] = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    for face in faces:
        left, top, width, height = (round(face[f"bbox_{part}"] / scale * factor) for part in ("x", "y", "width", "height"))
        cv2.rectangle(shown, (left, top), (left + width, top + height), (60, 220, 60), 2)
        text = f"{face['emotion']} {face['confidence']:.0%}"
        (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 1)
        x, y = max(0, min(left, size[0] - text_width - 4)), max(top, text_height + 8)
        cv2.rectangle(shown, (x, y - text_height - 8), (x + text_width + 4, y), (60, 220, 60), cv2.FILLED)
        cv2.putText(shown, text, (x + 2, y - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
    return tile


def _sheet(tiles: list[UInt8Array]) -> UInt8Array:
    if not tiles:
        return np.full((TILE, TILE, 3), 255, np.uint8)
    columns = min(3, len(tiles))
    blank = np.full_like(tiles[0], 255)
    filled = tiles + [blank] * (-len(tiles) % columns)
    return np.vstack([np.hstack(filled[i : i + columns]) for i in range(0, len(filled), columns)])
