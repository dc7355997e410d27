"""The labeling job: from a configuration to published tables and a summary."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import random
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

import fer_ray
from fer_ray.config.label import LabelConfig
from fer_ray.data import demo_photos
from fer_ray.errors import EXIT_DONE, EXIT_TOO_MANY_FAILED, FerRayError, StorageError, UsageError
from fer_ray.io.inputs import check_inputs, list_images
from fer_ray.io.prefetch import Fetcher
from fer_ray.io.storage import Storage, absolute, join
from fer_ray.label import progress
from fer_ray.label.incremental import Counts, due_images, published_images
from fer_ray.label.plan import Plan, Run, name_run, read_parts, read_plan, read_run, remove_work, unfinished, write_plan
from fer_ray.label.publish import clean_up, commit
from fer_ray.label.report.event_log import RunLog
from fer_ray.label.report.page import PAGE_FILE, write_report
from fer_ray.models import bundle
from fer_ray.schema import SCHEMA_VERSION, ImageEntry, Status
from fer_ray.text import sanitize

DRY_RUN_SAMPLE = 24
START_UP_SECONDS, ALARM_SECONDS = 15.0, 60.0


def label(config: LabelConfig) -> tuple[dict[str, Any], int]:
    """Label what the configuration names; gives the summary and the exit code.

    Raises:
        UsageError: the request cannot be met as it stands; nothing was written.
        FerRayError: the run stopped; the same command goes on with it.
    """
    run = _identify(config)
    if config.dry_run:
        return _dry_run(run), EXIT_DONE
    if run.is_published():
        print(f"The run {run.run_id} is published already: nothing to do.", flush=True)
        remove_work(run)
        row = read_run(run)
        if run.storage.find(join(run.output, "reports", run.run_id, PAGE_FILE)) is None:
            _report(run, row)
    else:
        row = _execute(run)
    summary, failed_share = progress.summary(run, row), row["images_failed"] / max(1, row["images_total"])
    if failed_share <= config.max_error_share:
        return summary, EXIT_DONE
    if config.alarm_command:
        _raise_alarm(config.alarm_command, summary)
    return summary, EXIT_TOO_MANY_FAILED


def _raise_alarm(command: str, summary: dict[str, Any]) -> None:
    """Run the operator's command; what it may hold is not printed."""
    try:
        done = subprocess.run(shlex.split(command), input=json.dumps(summary).encode(), timeout=ALARM_SECONDS, check=False)
        trouble = f"ended with {done.returncode}" if done.returncode else ""
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        trouble = f"could not be run ({type(error).__name__})"
    if trouble:
        print(f"warning: the alarm_command {trouble}.", file=sys.stderr, flush=True)


def _identify(config: LabelConfig) -> Run:
    """Check everything that can be checked before a cluster starts, and name the run.

    Raises:
        UsageError: an input, the output, the model or the store cannot be used.
    """
    storage = Storage(config.s3_endpoint)
    try:
        output = absolute(config.output or demo_photos.OUTPUT, "output")
        inputs = check_inputs(storage, config.input) if config.input else (demo_photos.INPUT,)
        model = absolute(bundle.resolve(config.model), "model")
        with bundle.local_copy(storage, model) as folder:
            model_version = bundle.version_of(bundle.read_metadata(folder), config.labeling.flip)
        if not config.dry_run:
            storage.check_writable(output)
        return name_run(Run(config.run_id, config.date(), inputs, output, model, model_version, config, storage))
    except StorageError as error:
        raise UsageError(str(error)) from error


def _listed(run: Run) -> Iterator[ImageEntry]:
    """The images of the input; an input without any is refused."""
    indexes = None if run.config.dry_run else join(run.output, "_archives")
    entries = list_images(run.storage, run.inputs, run.output, indexes) if run.config.input else iter(demo_photos.images())
    try:
        first = next(entries, None)
    except StorageError as error:
        raise UsageError(str(error)) from error
    if first is None:
        raise UsageError(f"The input {run.input_uri} holds no files: name a folder with photographs.")
    return itertools.chain([first], entries)


def _due(run: Run, counts: Counts) -> Iterator[pa.Table]:
    def published() -> Iterator[pa.RecordBatch]:
        return iter(()) if run.config.all else published_images(run.storage, run.output, run.model_version)

    return due_images(_listed(run), published, run.config.limit, counts)


def _execute(run: Run) -> dict[str, Any]:
    log = RunLog(run.storage, run.output, run.run_id)
    try:
        plan = read_plan(run)
        if plan is None:
            counts = Counts()
            plan = write_plan(run, _due(run, counts), counts, datetime.datetime.now(datetime.UTC))
        print(f"run {run.run_id}: {plan.images:,} images to label, {plan.skipped:,} known, {sanitize(run.input_uri)}", flush=True)
        log.say("planned", run_id=run.run_id, images=plan.images, skipped=plan.skipped, input=run.input_uri, model=run.model_version)
        row = _label_and_publish(run, plan, log)
        log.say("published", **progress.summary(run, row))
    except _stops() as error:
        if isinstance(error, UsageError):
            raise
        if run.is_published():
            print(f"The run {run.run_id} was published by another process meanwhile.", flush=True)
            return read_run(run)
        log.say("stopped", reason=_cause(error))
        raise FerRayError(f"The run {run.run_id} stopped ({_cause(error)}): start the same command again, and it goes on.") from error
    _tidy(run)
    _report(run, row)
    if row["images_total"] and (run.config.picture or not run.config.input):
        print(f"picture: {progress.draw_picture(run, run.config.picture or demo_photos.PICTURE_IMAGES)}", flush=True)
    return row


def _tidy(run: Run) -> None:
    """Clean up by age; the run is committed, so trouble here is no trouble of the run."""
    try:
        for run_id in clean_up(run, run.config.keep_days):
            print(f"removed the unfinished work of run {run_id}: untouched for {run.config.keep_days:g} days", flush=True)
    except (StorageError, OSError) as error:
        print(f"warning: old work could not be removed: {_cause(error)}", file=sys.stderr, flush=True)


def _report(run: Run, row: dict[str, Any]) -> None:
    """Write the page about the run, which is committed: trouble with its report is a warning, whatever it is."""
    try:
        print(f"report: {write_report(run, row)}", flush=True)
    except Exception as error:  # noqa: BLE001 - the run is done and must not fail any more; the next start of the same run tries again
        print(f"warning: the report could not be written: {_cause(error)}", file=sys.stderr, flush=True)


def _label_and_publish(run: Run, plan: Plan, log: RunLog) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    labeled, seconds = 0, 0.0
    if plan.images:
        from fer_ray.cluster import connect
        from fer_ray.label.pipeline import label_to_staging
        from fer_ray.label.publish import publish_tables

        parts = unfinished(run, plan, read_parts(run, plan))
        labeled = sum(part.rows for part in parts)
        if labeled < plan.images:
            print(f"going on: {plan.images - labeled:,} images are labeled already", flush=True)
        connect()
        started = time.monotonic()
        if parts:
            label_to_staging(run, plan, parts, progress.Progress(log))
        seconds = time.monotonic() - started
        counts = publish_tables(run, plan)
    row = _run_row(run, plan, counts, labeled / seconds if labeled else 0.0)
    commit(run, row)
    progress.print_summary(run, row, counts, seconds)
    return row


def _stops() -> tuple[type[BaseException], ...]:
    """What ends a run in the middle: trouble with the store, the disk or the cluster. Ray is asked only where it was loaded."""
    ray_exceptions = sys.modules.get("ray.exceptions")
    return (FerRayError, OSError, pa.ArrowException, *([ray_exceptions.RayError] if ray_exceptions else []))


def _cause(error: BaseException) -> str:
    """The innermost reason in one line."""
    while not isinstance(error, FerRayError) and (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return sanitize(lines[-1])


def _run_row(run: Run, plan: Plan, counts: Counter[str], images_per_second: float) -> dict[str, Any]:
    ray = sys.modules.get("ray")  # a run with nothing to do starts no cluster
    resources = ray.cluster_resources() if ray and plan.images else {}
    return {
        "run_id": run.run_id,
        "run_date": run.run_date,
        "started_at": datetime.datetime.fromisoformat(plan.started_at),
        "finished_at": datetime.datetime.now(datetime.UTC),
        "status": "done",
        "input_uri": run.input_uri,
        "config_json": json.dumps({"request": run.request, "config": run.config.to_dict()}, sort_keys=True),
        "fer_ray_version": fer_ray.__version__,
        "ray_version": metadata.version("ray"),
        "git_commit": _git_commit(),
        "model_version": run.model_version,
        "detector_version": run.config.labeling.detector_version,
        "images_total": counts["images_total"],
        "images_ok": counts[f"status:{Status.OK}"],
        "images_no_face": counts[f"status:{Status.NO_FACE}"],
        "images_failed": sum(counts[f"status:{status}"] for status in Status if status.is_failure),
        "images_skipped": plan.skipped,
        "faces_total": counts["faces_total"],
        "faces_left_out": counts["faces_left_out"],
        "images_per_second": images_per_second,
        "cpu_count": int(resources.get("CPU", 0)),
        "gpu_count": int(resources.get("GPU", 0)),
        "top_errors_json": json.dumps(progress.top_errors(counts)),
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


def _dry_run(run: Run) -> dict[str, Any]:
    """Count, and time a random sample in this process."""
    counts, images, size = Counts(), 0, 0
    sample: list[ImageEntry] = []
    generator = random.Random(0)
    for table in _due(run, counts):
        size += pc.sum(table["size_bytes"]).as_py() or 0
        for row in range(len(table)):
            images += 1
            place = images - 1 if images <= DRY_RUN_SAMPLE else generator.randrange(images)  # reservoir sampling: each is as likely
            if place < DRY_RUN_SAMPLE:
                sample[place : place + 1] = [ImageEntry(**table.slice(row, 1).to_pylist()[0])]
    workers = run.config.workers or os.cpu_count() or 1
    estimate = START_UP_SECONDS + images * _seconds_per_image(run, sample) / workers if sample else 0.0
    print(f"would label {images:,} images, {size / 1e6:,.1f} MB, as run {run.run_id}; {counts.known:,} are known", flush=True)
    print(f"about {datetime.timedelta(seconds=round(estimate))} with {workers} processes, from a sample of {len(sample)}", flush=True)
    return {
        "run_id": run.run_id,
        "status": "dry_run",
        "output": run.output,
        "images_total": images,
        "images_skipped": counts.known,
        "bytes_total": size,
        "estimated_seconds": round(estimate, 1),
        "model_version": run.model_version,
    }


def _seconds_per_image(run: Run, sample: list[ImageEntry]) -> float:
    from fer_ray.label.labeler import Labeler

    with bundle.local_copy(run.storage, run.model) as folder:
        labeler = Labeler(folder, run.config.labeling, threads=1)
    fetcher = Fetcher(run.storage, run.config.labeling.max_file_megabytes)
    labeler.label(fetcher.fetch(sample[:1]))
    started = time.monotonic()
    labeler.label(fetcher.fetch(sample))
    return (time.monotonic() - started) / len(sample)
