"""What the folders of a search's trials hold: settings, checkpoints with the best bundle so far, and how each trial ended."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.tune

from fer_ray.errors import TrainingError
from fer_ray.models import bundle
from fer_ray.text import sanitize
from fer_ray.train.recorder import BEST_FOLDER
from fer_ray.train.trainer import KEPT
from fer_ray.tune.results import COMPLETED, FAILED, STOPPED, Trial, TrialEpoch
from fer_ray.tune.searchers import seed_of

SETTINGS_FILE = "settings.json"  # in the folder of a trial
TRIALS_FOLDER = "trials"  # in the output of a search: a folder for each trial
TUNE_FOLDER = "tune"  # in the output of a search: what Ray Tune needs to resume it
REASON_LENGTH = 300  # characters of why a trial failed


def collect(output: Path, trainable: Callable[..., None], epochs: int) -> list[Trial]:
    """The trials that Tune knows of, with their epochs from the last checkpoints, and how each ended.

    A trial without an error and with fewer epochs than it might have had was stopped by the scheduler. Folders of trials
    that an interruption made Tune forget, before their first epoch, are removed.
    """
    trials = []
    for name, (status, error) in sorted(_endings(output, trainable).items()):
        folder = output / TRIALS_FOLDER / name
        if not (folder / SETTINGS_FILE).is_file():
            continue  # the time was up before it began
        trial = _trial(folder, status, error)
        trials.append(replace(trial, status=STOPPED) if status == COMPLETED and len(trial.epochs) < epochs else trial)
    known = {trial.trial_id for trial in trials}
    for folder in (output / TRIALS_FOLDER).iterdir():
        if folder.name not in known:
            shutil.rmtree(folder)
    return trials


def _endings(output: Path, trainable: Callable[..., None]) -> dict[str, tuple[str, str | None]]:
    results = ray.tune.Tuner.restore(str(output / TUNE_FOLDER), trainable).get_results()
    names = {Path(result.path).name: result.error for result in results}
    return {name: (FAILED, reason_of(error, name)) if error else (COMPLETED, None) for name, error in names.items()}


def reason_of(error: BaseException | None, trial_id: str = "") -> str:
    """Why a trial failed, in words that are the same for all that fail alike."""
    lines = [line for line in str(error or "").strip().splitlines() if line.strip()]
    reason = re.sub(r"^fer_ray\.errors\.\w+: ", "", lines[-1].strip() if lines else type(error).__name__)
    reason = reason.partition(KEPT)[0].rstrip(" (:;")
    return " ".join(word for word in reason.split() if not trial_id or trial_id not in word)[:REASON_LENGTH]


def _trial(folder: Path, status: str, error: str | None) -> Trial:
    with _readable(folder / SETTINGS_FILE, folder):
        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        seed = seed_of(settings)
    best = best_bundle(folder)
    epochs = tuple(read_epochs(best)) if best else ()
    return Trial(folder.name, status, settings, epochs, error, seed)


@contextmanager
def _readable(file: Path, folder: Path) -> Iterator[None]:
    """Name the file that cannot be read, and the folder that the search can do without."""
    try:
        yield
    except (OSError, ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        reason = sanitize(" ".join(str(error).split())[:REASON_LENGTH])
        remedy = f"remove {sanitize(str(folder))} to do without it, and resume the search with --resume"
        raise TrainingError(f"The file {sanitize(str(file))} cannot be read ({reason}): {remedy}.") from error


def read_epochs(best: Path) -> list[TrialEpoch]:
    """The epochs in the history of a checkpoint's bundle.

    Raises:
        TrainingError: it cannot be read.
    """
    file = best / bundle.HISTORY_FILE
    with _readable(file, best.parent):
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
        return [to_epoch(row) for row in rows]


def to_epoch(row: Mapping[str, Any]) -> TrialEpoch:
    """The epoch that a row of the history, or a report to Tune, tells of."""
    return TrialEpoch(**{field.name: row[field.name] for field in fields(TrialEpoch) if field.name in row})


def best_bundle(folder: Path) -> Path | None:
    """The bundle of the trial's best epoch, in its newest checkpoint; None before the first."""
    found = list(folder.glob(f"**/checkpoint_*/{BEST_FOLDER}/{bundle.METADATA_FILE}"))
    return max(found, key=lambda file: (file.stat().st_mtime_ns, file)).parent if found else None
