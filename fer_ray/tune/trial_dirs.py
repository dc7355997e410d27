"""What the folders of a search's trials hold: settings, checkpoints with the best bundle so far, and how each trial ended."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.tune

from fer_ray.errors import AccessError, OutageError, TrainingError
from fer_ray.io.storage import Storage, join
from fer_ray.models import bundle
from fer_ray.text import sanitize
from fer_ray.train.filesystem import ray_storage, wait_out
from fer_ray.train.recorder import BEST_FOLDER, newest_checkpoint
from fer_ray.train.trainer import KEPT
from fer_ray.tune.results import COMPLETED, FAILED, STOPPED, Trial, TrialEpoch
from fer_ray.tune.searchers import seed_of

SETTINGS_FILE = "settings.json"  # in the folder of a trial
TRIALS_FOLDER = "trials"  # in the output of a search: a folder for each trial
TUNE_FOLDER = "tune"  # in the output of a search: what Ray Tune needs to resume it
REASON_LENGTH = 300  # characters of why a trial failed


def collect(storage: Storage, output: str, trainable: Callable[..., None], epochs: int) -> list[Trial]:
    """The trials that Tune knows of, with their epochs from the last checkpoints, and how each ended.

    A trial without an error and with fewer epochs than it might have had was stopped by the scheduler. Folders of trials
    that an interruption made Tune forget, before their first epoch, are removed.
    """
    trials, folder = [], join(output, TRIALS_FOLDER)
    begun = {entry.image_uri[len(folder) + 1 :].split("/")[0] for entry in storage.list_files(folder) if entry.error is None}
    for name, (status, error) in sorted(_endings(storage, output, trainable).items()):
        if name not in begun or storage.stat(join(folder, name, SETTINGS_FILE)) is None:
            continue  # the time was up before it began
        trial = _trial(storage, join(folder, name), status, error)
        trials.append(replace(trial, status=STOPPED) if status == COMPLETED and len(trial.epochs) < epochs else trial)
    for name in begun - {trial.trial_id for trial in trials}:
        storage.remove_folder(join(folder, name))
    return trials


def _endings(storage: Storage, output: str, trainable: Callable[..., None]) -> dict[str, tuple[str, str | None]]:
    place = ray_storage(storage, join(output, TUNE_FOLDER))
    results = ray.tune.Tuner.restore(place["storage_path"], trainable, storage_filesystem=place["storage_filesystem"]).get_results()
    names = {PurePosixPath(result.path).name: result.error for result in results}
    return {name: (FAILED, reason_of(error, name)) if error else (COMPLETED, None) for name, error in names.items()}


def reason_of(error: BaseException | None, trial_id: str = "") -> str:
    """Why a trial failed, in words that are the same for all that fail alike."""
    lines = [line for line in str(error or "").strip().splitlines() if line.strip()]
    reason = re.sub(r"^fer_ray\.errors\.\w+: ", "", lines[-1].strip() if lines else type(error).__name__)
    reason = reason.partition(KEPT)[0].rstrip(" (:;")
    return " ".join(word for word in reason.split() if not trial_id or trial_id not in word)[:REASON_LENGTH]


def _trial(storage: Storage, folder: str, status: str, error: str | None) -> Trial:
    file = join(folder, SETTINGS_FILE)
    with _readable(file, folder):
        settings = json.loads(wait_out(lambda: storage.read(file)))
        seed = seed_of(settings)
    best = best_bundle(storage, folder)
    epochs = tuple(read_epochs(storage, best)) if best else ()
    return Trial(folder.rpartition("/")[2], status, settings, epochs, error, seed)


@contextmanager
def _readable(file: str, folder: str) -> Iterator[None]:
    """Name the file that cannot be read, and the folder that the search can do without."""
    try:
        yield
    except OutageError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, AccessError, pa.ArrowException) as error:
        reason = sanitize(" ".join(str(error).split())[:REASON_LENGTH])
        remedy = f"remove {sanitize(folder)} to do without it, and resume the search with --resume"
        raise TrainingError(f"The file {sanitize(file)} cannot be read ({reason}): {remedy}.") from error


def read_epochs(storage: Storage, best: str) -> list[TrialEpoch]:
    """The epochs in the history of a checkpoint's bundle.

    Raises:
        TrainingError: it cannot be read.
    """
    file = join(best, bundle.HISTORY_FILE)
    with _readable(file, best.rpartition("/")[0]):
        rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(wait_out(lambda: storage.read(file)))).to_pylist()
        return [to_epoch(row) for row in rows]


def to_epoch(row: Mapping[str, Any]) -> TrialEpoch:
    """The epoch that a row of the history, or a report to Tune, tells of."""
    return TrialEpoch(**{field.name: row[field.name] for field in fields(TrialEpoch) if field.name in row})


def best_bundle(storage: Storage, folder: str) -> str | None:
    """The bundle of the trial's best epoch, in its newest checkpoint that is whole; None before the first."""
    newest = newest_checkpoint(storage, folder)
    return join(newest, BEST_FOLDER) if newest else None
