"""The labeling job: from a configuration to published tables and a summary."""

from __future__ import annotations

import datetime
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fer_ray.config.jobs.label import LabelConfig
from fer_ray.data import demo_photos
from fer_ray.errors import EXIT_DONE, EXIT_TOO_MANY_FAILED, FerRayError, StorageError, UsageError
from fer_ray.io.outages import wait_out
from fer_ray.label.estimate import estimate
from fer_ray.label.iceberg import check_catalog, register
from fer_ray.label.incremental import Counts, find_due, read_signatures
from fer_ray.label.local import FEW_IMAGES, are_few, label_few
from fer_ray.label.outcome import describe, failure_of, judge, known_and_ignored, raise_alarm, report_address, run_row, summarize
from fer_ray.label.parts import PartWorker, make_part_labeler
from fer_ray.label.plan import Part, Plan, read_parts, read_plan, remove_work, unfinished, write_plan
from fer_ray.label.publish import clean_up, commit, newest_run, publish_tables
from fer_ray.label.report.event_log import RunLog
from fer_ray.label.report.page import Measured, measure, write_report
from fer_ray.label.report.picture import draw_picture
from fer_ray.label.run import Run, identify, read_run
from fer_ray.reporting.progress import LogProgress, Progress
from fer_ray.schema import RunStatus
from fer_ray.text import plural, sanitize

LOGGER = logging.getLogger(__name__)
NEXT = "next: open %s in a browser"
EVENT_SECONDS = 60.0  # between two events of progress in the log of the run, each of which writes the whole file


@dataclass(frozen=True)
class Work:
    """How the images of a run are found and labeled: from photographs unless said otherwise.

    Args:
        find_due: Gives the images that are due, and counts the others.
        make: Makes what labels the parts in a process, of the run and its plan.
        few: How many images go to processes without Ray.
    """

    find_due: Callable[[Run, Counts], Iterator[pa.Table]] = find_due
    make: Callable[..., PartWorker] = make_part_labeler
    few: int = FEW_IMAGES


def label(config: LabelConfig, progress: Progress | None = None) -> tuple[dict[str, Any], int]:
    """Label what the configuration names.

    Args:
        config: What to label, how, and where to.
        progress: What is told while it works; by default a line a minute in the log of this package.

    Returns:
        The summary and the exit code.

    Raises:
        UsageError: the request cannot be met as it stands; nothing was written.
        FerRayError: the run stopped; the same command resumes it.
    """
    try:
        summary, exit_code = _label(config, progress)
    except BaseException as error:
        if config.alarm_command:
            raise_alarm(config.alarm_command, failure_of(error, config.output))
        raise
    if config.alarm_command and exit_code:
        raise_alarm(config.alarm_command, {**summary, "exit_code": exit_code})
    return summary, exit_code


def _label(config: LabelConfig, progress: Progress | None) -> tuple[dict[str, Any], int]:
    run = wait_out(lambda: identify(config), 0.0 if config.dry_run else config.wait_for_store)
    if config.publish:
        check_catalog(run)
    if config.dry_run:
        return estimate(run), EXIT_DONE
    if run.is_published():
        LOGGER.info("The run %s is published already: nothing to do.", run.run_id)
        remove_work(run)
        row = read_run(run)
        if run.storage.stat(report_address(run)) or _report(run, row):
            LOGGER.info(NEXT, report_address(run))
    else:
        row = execute(run, progress or LogProgress())
    if config.publish:
        register(run)
    status, reason = judge(config, row)
    report = report_address(run) if run.storage.stat(report_address(run)) else None  # it may be one that could not be written
    summary = {**summarize(run, row), "status": status, "report": report}
    if status is RunStatus.DONE:
        return summary, EXIT_DONE
    LOGGER.warning("%s Look at %s", reason, report or run.output)
    return {**summary, "reason": reason}, EXIT_TOO_MANY_FAILED


def execute(run: Run, progress: Progress, work: Work = Work()) -> dict[str, Any]:
    """Plan the run or take up its plan, label what is due, and publish it.

    Returns:
        The run's row in `runs`.

    Raises:
        UsageError: the input cannot be used.
        FerRayError: the run stopped; the same command resumes it.
    """
    log = RunLog(run.storage, run.output, run.run_id)
    try:
        plan = wait_out(lambda: _plan(run, work), run.config.wait_for_store)
        log.record(
            "planned",
            run_id=run.run_id,
            images=plan.images,
            skipped=plan.skipped,
            ignored=plan.ignored,
            input=run.input_uri,
            model=run.model_version,
        )
        _say_model_changes(run)
        row, measured = _label_and_publish(run, plan, log, progress, work)
        log.record("published", **summarize(run, row))
    except _stops() as error:
        if isinstance(error, UsageError):
            raise
        if run.is_published():
            LOGGER.info("The run %s was published by another process meanwhile.", run.run_id)
            return read_run(run)
        log.record("stopped", reason=_cause(error))
        raise FerRayError(f"The run {run.run_id} stopped ({_cause(error)}): start the same command again to resume it.") from error
    finally:
        progress.close()
    _tidy(run)
    reported = _report(run, row, measured)
    if not plan.images:
        known = known_and_ignored(plan.skipped, plan.ignored, plan.gone, plan.forgotten)
        LOGGER.info("nothing new in %s: %s, in %s", sanitize(run.input_uri), known, run.output)
        return row
    if run.config.picture or not run.config.input:
        LOGGER.info("picture: %s", draw_picture(run, run.config.picture or demo_photos.PICTURE_IMAGES))
    if reported:
        LOGGER.info(NEXT, report_address(run))
    return row


def _say_model_changes(run: Run) -> None:
    newest = newest_run(run)
    if newest and newest["latest_model_version"] != run.model_version:
        shown, own = newest["latest_model_version"], f"{run.model_name} ({run.model_version})"
        if run.config.latest:
            change = "will show this model, and only what it has labeled: --no-latest leaves them as they are"
        else:
            change = "stay as they are: images_by_model and faces_by_model have both models"
        LOGGER.warning("the model changes to %s from %s; images_latest and faces_latest %s", own, shown, change)


def _plan(run: Run, work: Work) -> Plan:
    """The plan of a run that was begun, or a new one."""
    plan = read_plan(run)
    if plan is None:
        counts = Counts()
        return write_plan(run, work.find_due(run, counts), counts, datetime.datetime.now(datetime.UTC))
    if plan.signed:
        read_signatures(run)
    return plan


def _label_and_publish(run: Run, plan: Plan, log: RunLog, progress: Progress, work: Work) -> tuple[dict[str, Any], Measured | None]:
    if not plan.images:
        return commit(run, run_row(run, plan, Counter(), 0.0)), None
    source = sanitize(run.input_uri)
    known = known_and_ignored(plan.skipped, plan.ignored, plan.gone, plan.forgotten)
    LOGGER.info("run %s: %s to label, %s, from %s", run.run_id, plan.described(), known, source)
    planned = read_parts(run, plan)
    parts = unfinished(run, plan, planned)
    labeled, seconds = sum(part.images for part in parts), 0.0
    if labeled < (total := sum(part.images for part in planned)):
        LOGGER.info("resuming: %s labeled already", plural(total - labeled, "image"))
    report = _Counter(progress, log)
    if are_few(run, labeled, work.few):
        seconds = label_few(run, plan, parts, report, work.make)
        parts = unfinished(run, plan, parts)
        if parts:
            LOGGER.warning("the labeling process ended early: Ray labels the rest, and finds out which image it is")
    if parts:
        progress.start("starting Ray")
        seconds += _label_with_ray(run, plan, parts, report, work)
    progress.start("writing the tables")
    counts = publish_tables(run, plan)
    row = run_row(run, plan, counts, labeled / seconds if seconds else 0.0)
    measured = _measure(run, row)
    row |= vars(measured.change) if measured else {}
    row = commit(run, row | {"status": judge(run.config, row)[0]})
    progress.close()
    for line in describe(row, counts, labeled, seconds):
        LOGGER.info("%s", line)
    LOGGER.info("tables: %s/images, %s/faces, %s/runs", run.output, run.output, run.output)
    return row, measured


def _measure(run: Run, row: Mapping[str, Any]) -> Measured | None:
    """What the run found and what moved: trouble with it is a warning, since the labels are there and only wait for their commit."""
    try:
        return measure(run, row)
    except Exception as error:  # noqa: BLE001 - as for the report
        LOGGER.warning("what moved since earlier runs could not be measured: %s", _cause(error))
        return None


def _label_with_ray(run: Run, plan: Plan, parts: Sequence[Part], report: Callable[[Counter[str], int], None], work: Work) -> float:
    """As `label_to_staging`, for which Ray is loaded and started."""
    from fer_ray.cluster import connect
    from fer_ray.label.pipeline import label_to_staging

    connect()
    return label_to_staging(run, plan, parts, report, make=work.make)


class _Counter:
    """Shows the counts of the labeling processes, and puts them into the log of the run: the first, one a minute, and the last."""

    def __init__(self, progress: Progress, log: RunLog) -> None:
        self.progress, self.log = progress, log
        self.recorded: float | None = None
        self.first: tuple[float, int] | None = None

    def __call__(self, counts: Counter[str], images: int) -> None:
        done, now = min(counts["images"], images), time.monotonic()  # some count twice where a part was begun again
        self.progress.update(done, images, f"{plural(counts['faces'], 'face')}, {counts['failed']:,} failed")
        self.first = self.first or (now, done)
        if done and (done == images or self.recorded is None or now - self.recorded >= EVENT_SECONDS):
            self.recorded = now
            rate = (done - self.first[1]) / max(now - self.first[0], 1e-9)
            self.log.record("progress", images=images, done=done, faces=counts["faces"], failed=counts["failed"], images_per_second=rate)


def _tidy(run: Run) -> None:
    """Clean up by age; the run is committed, so trouble here is no trouble of the run."""
    try:
        for run_id in clean_up(run, run.config.keep_days):
            LOGGER.info("removed the unfinished work of run %s: untouched for %g days", run_id, run.config.keep_days)
    except (StorageError, OSError) as error:
        LOGGER.warning("old work could not be removed: %s", _cause(error))


def _report(run: Run, row: dict[str, Any], measured: Measured | None = None) -> bool:
    """Write the page about the run, which is committed: trouble with its report is a warning, whatever it is."""
    try:
        write_report(run, row, measured)
    except Exception as error:  # noqa: BLE001 - the run is done and must not fail any more; the next start of the same run tries again
        LOGGER.warning("the report could not be written: %s", _cause(error))
        return False
    return True


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
