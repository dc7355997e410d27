"""What came out of a run: its row in `runs`, the summary, the sentences about it, and the operator's alarm."""

from __future__ import annotations

import datetime
import json
import logging
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import fer_ray
from fer_ray.config.jobs.label import LabelConfig
from fer_ray.errors import EXIT_FAILED, EXIT_INTERRUPTED, FerRayError
from fer_ray.io.storage import join
from fer_ray.label.plan import Plan
from fer_ray.label.run import Run
from fer_ray.reporting.progress import format_rate
from fer_ray.schema import SCHEMA_VERSION, RunStatus, Status
from fer_ray.text import percent, plural, sanitize

LOGGER = logging.getLogger(__name__)
ALARM_SECONDS = 60.0  # for the operator's command
PAGE_FILE = "report.html"
SUMMARY_KEYS = ("images_total", "images_ok", "images_no_face", "images_failed", "images_skipped", "images_gone", "faces_total")
CHANGE_KEYS = ("drift_psi", "drift_folder", "mix_psi", "faces_ratio")


def report_address(run: Run) -> str:
    """Where the page about the run is, or will be."""
    return join(run.output, "reports", run.run_id, PAGE_FILE)


def judge(config: LabelConfig, row: Mapping[str, Any]) -> tuple[RunStatus, str]:
    """The status of a run, and the sentence that says why it is not DONE, which is empty where it is."""
    failed = row["images_failed"]
    tried = row["images_ok"] + row["images_no_face"] + failed  # the rest is archived
    if failed / max(1, tried) > config.max_error_share:
        limit = f"{percent(failed / tried, 1)}, where max_error_share allows {percent(config.max_error_share, 1)}"
        reasons = json.loads(row["top_errors_json"])
        commonest = next((f"; the commonest reason: {sanitize(sentence)}" for sentence in reasons), ".")
        return RunStatus.TOO_MANY_FAILED, f"{failed:,} of {plural(tried, 'image')} failed ({limit}){commonest}"
    ratio, drift = row.get("faces_ratio"), row.get("drift_psi")
    if ratio is not None and 1 - ratio > config.max_face_drop:
        limit = f"where max_face_drop allows a fall by {percent(config.max_face_drop, 1)}"
        return RunStatus.FEWER_FACES, f"Faces per image fell to {percent(ratio, 1)} of those of earlier runs in the same folders, {limit}."
    if drift is not None and drift > config.max_drift:
        place = sanitize(row["drift_folder"] or "small folders taken together")
        return RunStatus.DRIFTED, f"The emotions in {place} moved by a PSI of {drift:.3f}, where max_drift allows {config.max_drift:g}."
    return RunStatus.DONE, ""


def summarize(run: Run, row: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a published run, for machines."""
    tried = row["images_ok"] + row["images_no_face"] + row["images_failed"]
    return {
        "run_id": run.run_id,
        "status": row["status"],
        "output": run.output,
        **{key: row[key] for key in SUMMARY_KEYS},
        "error_share": row["images_failed"] / max(1, tried),
        **{name: json.loads(row["config_json"]).get(name, 0) for name in ("images_ignored", "images_forgotten")},
        "images_per_second": round(row["images_per_second"], 2),
        **{name: row.get(name) for name in CHANGE_KEYS},
        "model_version": row["model_version"],
        "report": report_address(run),
    }


def known_and_ignored(known: int, ignored: int, gone: int | None = None, forgotten: int = 0) -> str:
    """`1,200 images known, 30 files ignored, 7 gone, 2 forgotten`."""
    others = (f", {plural(ignored, 'file')} ignored" if ignored else "") + (f", {gone:,} gone" if gone else "")
    others += f", {forgotten:,} forgotten" if forgotten else ""
    return f"{plural(known, 'image')} known{others}"


def describe(row: dict[str, Any], counts: Counter[str], labeled: int, seconds: float) -> list[str]:
    """The same in sentences.

    Args:
        row: The run's row in `runs`.
        counts: What `publish_tables` counted.
        labeled: How many images were labeled since this start of the run.
        seconds: How long that took, without start-up.
    """
    took = f"{labeled:,} labeled now, in {seconds:.1f} s, {format_rate(labeled / seconds, 'images')}" if seconds else "labeled before"
    waiting = row["images_total"] - row["images_ok"] - row["images_no_face"] - row["images_failed"]
    archived = f", {waiting:,} archived" if waiting else ""
    lines = [
        f"{plural(row['images_total'], 'image')} ({took})",
        f"  {row['images_ok']:,} with faces, {row['images_no_face']:,} without, {row['images_failed']:,} failed{archived}",
        f"  {plural(row['faces_total'], 'face')} ({row['faces_left_out']:,} more left out: too small or too doubtful)",
    ]
    emotions = [(key.removeprefix("emotion:"), n) for key, n in counts.most_common() if key.startswith("emotion:")]
    if emotions:
        lines.append("  " + ", ".join(f"{name} {n / row['faces_total']:.1%}" for name, n in emotions))
    return lines + [f"  {n:,} x {sanitize(sentence)}" for sentence, n in _top_errors(counts).items()]


def _top_errors(counts: Counter[str]) -> dict[str, int]:
    """The commonest error sentences with their counts."""
    return {key.removeprefix("error:"): n for key, n in counts.most_common() if key.startswith("error:")}


def run_row(run: Run, plan: Plan, counts: Counter[str], images_per_second: float) -> dict[str, Any]:
    """The run's row in `runs` before it is judged; its rate leaves start-up out."""
    failed = sum(counts[f"status:{status}"] for status in Status if status.is_failure)
    ray = sys.modules.get("ray")  # a run with little or nothing to do starts no cluster
    resources = ray.cluster_resources() if ray and ray.is_initialized() else {"CPU": (os.cpu_count() or 1) * bool(plan.images)}
    return {
        "run_id": run.run_id,
        "run_date": run.run_date,
        "started_at": datetime.datetime.fromisoformat(plan.started_at),
        "finished_at": datetime.datetime.now(datetime.UTC),
        "status": RunStatus.DONE,
        "input_uri": run.input_uri,
        "config_json": json.dumps(
            {
                "request": run.request,
                "config": run.config.to_dict(),
                "images_ignored": plan.ignored,
                "images_forgotten": plan.forgotten,
            },
            sort_keys=True,
        ),
        "fer_ray_version": fer_ray.__version__,
        "ray_version": metadata.version("ray"),
        "git_commit": _git_commit(),
        "model_version": run.model_version,
        "detector_version": run.detector_version,
        "images_total": counts["images_total"],
        "images_ok": counts[f"status:{Status.OK}"],
        "images_no_face": counts[f"status:{Status.NO_FACE}"],
        "images_failed": failed,
        "images_skipped": plan.skipped,
        "faces_total": counts["faces_total"],
        "faces_left_out": counts["faces_left_out"],
        "images_per_second": images_per_second,
        "cpu_count": int(resources.get("CPU", 0)),
        "gpu_count": int(resources.get("GPU", 0)),
        "top_errors_json": json.dumps(_top_errors(counts)),
        "schema_version": SCHEMA_VERSION,
        "model_name": run.model_name,
        "images_gone": plan.gone,
        "error_share": failed / max(1, failed + counts[f"status:{Status.OK}"] + counts[f"status:{Status.NO_FACE}"]),
    }


def _git_commit() -> str | None:
    """The commit of the checkout this code runs from; None outside one."""
    here = Path(__file__).parent
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def failure_of(error: BaseException, output: str) -> dict[str, Any]:
    """What the alarm command is told of a run that did not come to its end."""
    exit_code, reason = EXIT_FAILED, f"{type(error).__name__}: {error}"
    if isinstance(error, KeyboardInterrupt):
        exit_code, reason = EXIT_INTERRUPTED, "interrupted"
    elif isinstance(error, FerRayError):
        exit_code, reason = error.exit_code, str(error)
    return {"status": "failed", "output": output, "exit_code": exit_code, "reason": reason}


def raise_alarm(command: str, told: dict[str, Any], seconds: float = ALARM_SECONDS) -> None:
    """Run the command with what it is told on its standard input, for so long; what it may hold is not shown, its trouble is a warning."""
    try:
        given = json.dumps(told).encode()
        done = subprocess.run(shlex.split(command), input=given, timeout=seconds, check=False, start_new_session=True)  # signals are ours
        trouble = f"ended with {done.returncode}" if done.returncode else ""
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        trouble = f"could not be run ({type(error).__name__})"
    if trouble:
        LOGGER.warning("the alarm_command %s.", trouble)
