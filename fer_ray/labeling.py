"""The labeling job: from a configuration to published tables and a summary."""

from __future__ import annotations

import datetime
import itertools
import json
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from fer_ray import bundle, demo, report, storage
from fer_ray.command import EXIT_DONE, EXIT_TOO_MANY_FAILED
from fer_ray.config import LabelConfig
from fer_ray.errors import FerRayError, UsageError
from fer_ray.manifest import Run, name_run, write_manifest
from fer_ray.schema import SCHEMA_VERSION, Status
from fer_ray.storage import ImageEntry

FAILURES = (Status.UNREADABLE, Status.UNDECODABLE, Status.TOO_LARGE)
DRY_RUN_SAMPLE = 24
START_UP_SECONDS = 15.0


def label(config: LabelConfig) -> tuple[dict[str, Any], int]:
    """Label what the configuration names; gives the summary and the exit code.

    Raises:
        UsageError: the request cannot be met as it stands; nothing was written.
        FerRayError: the run stopped; the same command starts it again.
    """
    run = _plan(config)
    entries = itertools.islice(_entries(config, run), config.limit)
    if config.dry_run:
        return _dry_run(run, entries), EXIT_DONE
    if run.published:
        print(f"The run {run.run_id} is published already: nothing to do.", flush=True)
        row = report.read_run(run)
    else:
        row = _execute(run, entries)
    failed_share = row["images_failed"] / max(1, row["images_total"])
    return report.summary(run, row), EXIT_TOO_MANY_FAILED if failed_share > config.max_error_share else EXIT_DONE


def _plan(config: LabelConfig) -> Run:
    """Check everything that can be checked before a cluster starts, and name the run."""
    output = storage.check_writable(config.output or demo.OUTPUT, "output")
    input_uri = str(storage.local_folder(config.input, "input")) if config.input else demo.INPUT
    model = str(Path(config.model or bundle.default_path()).absolute())
    model_version = bundle.read_metadata(model)["model_version"]
    return name_run(Run(config.run_id, config.date(), input_uri, output, model, model_version, config))


def _entries(config: LabelConfig, run: Run) -> Iterator[ImageEntry]:
    """The images of the input; an input without any is refused."""
    entries = storage.walk_images(Path(run.input_uri), run.output) if config.input else iter(demo.images())
    first = next(entries, None)
    if first is None:
        raise UsageError(f"The input {config.input} holds no files: name a folder with photographs.")
    return itertools.chain([first], entries)


def _execute(run: Run, entries: Iterator[ImageEntry]) -> dict[str, Any]:
    import ray.exceptions

    from fer_ray.pipeline import connect, label_to_staging
    from fer_ray.publish import commit, publish_tables

    started_at = datetime.datetime.now(datetime.UTC)
    try:
        images = write_manifest(run, entries)
    except OSError as error:
        raise UsageError(f"The output {run.output} cannot be written ({error.strerror}): name another folder.") from error
    print(f"run {run.run_id}: {images:,} images from {report.printable(run.input_uri)}", flush=True)
    try:
        connect()
        labeling_started = time.monotonic()
        label_to_staging(run, images, report.Progress())
        seconds = time.monotonic() - labeling_started
        counts = publish_tables(run, images)
        row = _run_row(run, counts, started_at, images / seconds)
        commit(run, row)
    except (ray.exceptions.RayError, OSError) as error:
        raise FerRayError(
            f"The run {run.run_id} stopped ({_cause(error)}): nothing was published; start the same command again."
        ) from error
    report.print_summary(run, row, counts, seconds)
    if run.config.picture or not run.config.input:
        print(f"picture: {report.draw_picture(run, run.config.picture or demo.PICTURE_IMAGES)}", flush=True)
    return row


def _cause(error: BaseException) -> str:
    """The innermost reason in one line."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return report.printable(lines[-1])


def _run_row(run: Run, counts: Counter[str], started_at: datetime.datetime, images_per_second: float) -> dict[str, Any]:
    import ray

    resources = ray.cluster_resources()
    return {
        "run_id": run.run_id,
        "run_date": run.run_date,
        "started_at": started_at,
        "finished_at": datetime.datetime.now(datetime.UTC),
        "status": "done",
        "input_uri": run.input_uri,
        "config_json": json.dumps({"request": run.request, "config": run.config.to_dict()}, sort_keys=True),
        "fer_ray_version": metadata.version("fer-ray"),
        "ray_version": ray.__version__,
        "git_commit": _git_commit(),
        "model_version": run.model_version,
        "detector_version": run.config.labeling.detector_version,
        "images_total": counts["images_total"],
        "images_ok": counts[f"status:{Status.OK}"],
        "images_no_face": counts[f"status:{Status.NO_FACE}"],
        "images_failed": sum(counts[f"status:{status}"] for status in FAILURES),
        "images_skipped": 0,  # every run labels all of its input; labeling only what is due comes with step 2
        "faces_total": counts["faces_total"],
        "faces_left_out": counts["faces_left_out"],
        "images_per_second": images_per_second,
        "cpu_count": int(resources.get("CPU", 0)),
        "gpu_count": int(resources.get("GPU", 0)),
        "top_errors_json": json.dumps(report.top_errors(counts)),
        "schema_version": SCHEMA_VERSION,
    }


def _git_commit() -> str | None:
    """The commit of the checkout this code runs from; None outside one."""
    here = Path(__file__).parent
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _dry_run(run: Run, entries: Iterator[ImageEntry]) -> dict[str, Any]:
    """Count, and time a random sample in this process."""
    import os

    from fer_ray.labeler import Labeler

    images = size = 0
    sample: list[ImageEntry] = []
    generator = random.Random(0)
    for entry in entries:
        images, size = images + 1, size + (entry.size_bytes or 0)
        if len(sample) < DRY_RUN_SAMPLE:
            sample.append(entry)
        elif (place := generator.randrange(images)) < DRY_RUN_SAMPLE:  # reservoir sampling: every image is as likely
            sample[place] = entry
    labeler = Labeler(run.model, run.config.labeling, threads=1)
    uris = [entry.image_uri for entry in sample]
    labeler.label(uris[:1])
    started = time.monotonic()
    labeler.label(uris)
    workers = run.config.workers or os.cpu_count() or 1
    estimate = START_UP_SECONDS + images * (time.monotonic() - started) / len(sample) / workers
    print(f"would label {images:,} images, {size / 1e6:,.1f} MB, as run {run.run_id}", flush=True)
    print(f"about {datetime.timedelta(seconds=round(estimate))} with {workers} processes, from a sample of {len(sample)}", flush=True)
    return {
        "run_id": run.run_id,
        "status": "dry_run",
        "output": str(run.output),
        "images_total": images,
        "bytes_total": size,
        "estimated_seconds": round(estimate, 1),
        "model_version": run.model_version,
    }
