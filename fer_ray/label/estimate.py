"""A dry run: what would be labeled, and how long it would take."""

from __future__ import annotations

import datetime
import logging
import os
import random
import time
from typing import Any

import pyarrow.compute as pc

from fer_ray.errors import ImageError
from fer_ray.io.outages import PatientReader
from fer_ray.io.prefetch import Fetcher
from fer_ray.label.incremental import Counts, find_due
from fer_ray.label.local import are_few
from fer_ray.label.outcome import known_and_ignored
from fer_ray.label.run import Run
from fer_ray.models import bundle
from fer_ray.schema import LISTING, ImageEntry
from fer_ray.text import plural
from fer_ray.video.stretches import Cutter
from fer_ray.vision.sandbox import SandboxLimits, sift

LOGGER = logging.getLogger(__name__)
SAMPLE_IMAGES = 24
SECONDS = 10.0  # for an image of the sample: a longer wait would not make the estimate better
SECONDS_TOGETHER = 40.0  # for all of them that are slow
START_UP_SECONDS = 1.0  # for the model, on two cores
SECONDS_OF_FILM = 0.04  # to decode a second of a film of 1280 x 720 pixels
SECONDS_OF_FRAME = 0.012  # to find the faces in one
RAY_SECONDS = 7.0  # for Ray, where it is needed


def estimate(run: Run) -> dict[str, Any]:
    """Count the images that are due, and time a random sample of them; nothing is written.

    The sample goes through the sandbox first, since this process has to live.
    """
    counts, images, size = Counts(), 0, 0
    sample: list[ImageEntry] = []
    generator = random.Random(0)
    cutter = Cutter(run.film_settings)
    for table in cutter.cut(find_due(run, counts)):
        size += pc.sum(table["size_bytes"].filter(pc.fill_null(pc.equal(table["start_ms"], 0), True))).as_py() or 0
        table = table.filter(table["start_ms"].is_null()).select(LISTING.names)
        for row in range(len(table)):
            images += 1
            place = images - 1 if images <= SAMPLE_IMAGES else generator.randrange(images)  # reservoir sampling: each is as likely
            if place < SAMPLE_IMAGES:
                sample[place : place + 1] = [ImageEntry(**table.slice(row, 1).to_pylist()[0])]
    workers = run.config.workers or os.cpu_count() or 1
    start_up = START_UP_SECONDS + (0.0 if are_few(run, images + cutter.frames) else RAY_SECONDS)
    of_films = cutter.seconds * SECONDS_OF_FILM + cutter.frames * SECONDS_OF_FRAME
    seconds = start_up + (images * _seconds_per_image(run, sample) + of_films) / workers if sample or cutter.films else 0.0
    megabytes = f"{size / 1e6:,.1f} MB"
    films = (
        f"{plural(cutter.films, 'film')} of {datetime.timedelta(seconds=round(cutter.seconds))} (about {plural(cutter.frames, 'frame')})"
    )
    due = " and ".join([*([plural(images, "image")] if images or not cutter.films else []), *([films] if cutter.films else [])])
    known = known_and_ignored(counts.known, counts.ignored, forgotten=counts.forgotten)
    LOGGER.info("would label %s, %s, as run %s; %s", due, megabytes, run.run_id, known)
    LOGGER.info("about %s with %d processes, from a sample of %d", datetime.timedelta(seconds=round(seconds)), workers, len(sample))
    LOGGER.info("next: the same command without --dry-run")
    return {
        "run_id": run.run_id,
        "status": "dry_run",
        "output": run.output,
        "images_total": images + cutter.frames,
        "images_skipped": counts.known,
        "images_ignored": counts.ignored,
        "images_forgotten": counts.forgotten,
        "bytes_total": size,
        "estimated_seconds": round(seconds),
        "model_version": run.model_version,
    }


def _seconds_per_image(run: Run, sample: list[ImageEntry]) -> float:
    from fer_ray.label.labeler import Labeler

    with bundle.local_copy(run.storage, run.model) as folder:
        labeler = Labeler(folder, run.config.labeling, threads=1)
    fetcher = Fetcher(PatientReader(run.storage, run.config.labeling.max_file_megabytes, run.config.wait_for_store, run.inputs))
    tried = sift(fetcher.fetch(sample), run.config.labeling, SandboxLimits(SECONDS, SECONDS_TOGETHER))
    sound = [entry for entry, image in zip(sample, tried, strict=True) if not isinstance(image, ImageError)]
    if not sound:
        return 0.0
    labeler.label_sources(fetcher.fetch(sound[:1]))
    started = time.monotonic()
    labeler.label_sources(fetcher.fetch(sound))
    return (time.monotonic() - started) / len(sound)
