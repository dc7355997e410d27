"""Figures of trainings and searches for MLflow and Weights & Biases; what these cannot take is said once, and the training goes on."""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Protocol

from fer_ray.errors import UsageError
from fer_ray.text import sanitize

LOGGER = logging.getLogger(__name__)
NAMES = {"mlflow": "MLflow", "wandb": "Weights & Biases"}
EXPERIMENT = "fer_ray"  # of MLflow
LAST_SECONDS = 30.0  # for what is not yet sent when the job ends
HTTP_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}  # MLflow's own try for minutes
MAX_VALUE_LENGTH = 500  # of a setting, which MLflow takes


class Runs(Protocol):
    """What a tracker keeps: runs with settings and figures by epoch. Only one thread calls it."""

    def log(self, run: str, settings: Mapping[str, Any], step: int, figures: Mapping[str, float]) -> None:
        """Note an epoch; the run is made with its settings where it is new, and found where it was interrupted."""

    def end(self, run: str, failed: bool) -> None:
        """Close a run."""


class Tracker:
    """Hands epochs to a tracker in a thread of its own, so that no training waits for one.

    Args:
        target: `mlflow:URI`, `wandb:PROJECT`, or nothing.
        place: Where the results go; a run that is resumed there is the same run.

    Raises:
        UsageError: the package that it needs is not installed.
    """

    def __init__(self, target: str, place: str) -> None:
        self._kind, _, self._where = target.partition(":")
        self._place = place
        self._waiting: queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if target:
            if find_spec(self._kind) is None:
                raise UsageError(f"The setting track needs a package: pip install 'fer-ray[{self._kind}]'.")
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def log(self, run: str, settings: Mapping[str, Any], row: Mapping[str, Any]) -> None:
        """Note an epoch of a training or trial, from its row of the history."""
        numbers = {name: float(value) for name, value in row.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}
        step = int(numbers.pop("epoch"))
        if self._thread:
            self._waiting.put(("log", (run, dict(settings), step, numbers)))

    def end(self, run: str, failed: bool = False) -> None:
        """Note that there will be no more epochs."""
        if self._thread:
            self._waiting.put(("end", (run, failed)))

    def close(self) -> None:
        """Wait a little for what was not sent yet."""
        if self._thread:
            self._waiting.put(None)
            self._thread.join(LAST_SECONDS)
            if self._thread.is_alive():
                LOGGER.warning("%s did not take all figures in time: they are in history.parquet", NAMES[self._kind])
            self._thread = None

    def _work(self) -> None:
        runs: Runs | None = None
        while (task := self._waiting.get()) is not None:
            name, arguments = task
            try:
                runs = runs or (MlflowRuns if self._kind == "mlflow" else WandbRuns)(self._where, self._place)
                getattr(runs, name)(*arguments)
            except Exception as error:  # noqa: BLE001 - each system raises kinds of its own, and none of them is worth a training
                reason = sanitize(type(error).__name__)  # its text may hold the address with a password
                LOGGER.warning("%s takes no figures (%s): the job goes on without it", NAMES[self._kind], reason)
                return


def identify(place: str, run: str) -> str:
    """What a run is found by after an interruption."""
    return hashlib.sha256(f"{place}\n{run}".encode()).hexdigest()[:16]


class MlflowRuns:
    """Runs of the experiment `fer_ray` in an MLflow server, database or folder."""

    def __init__(self, uri: str, place: str) -> None:
        for name, value in HTTP_LIMITS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self._client, self._place = MlflowClient(tracking_uri=uri), place
        known = self._client.get_experiment_by_name(EXPERIMENT)
        self._steps: dict[str, int] = {}  # the last that a run had before this start
        self._experiment = known.experiment_id if known else self._client.create_experiment(EXPERIMENT)
        self._ids: dict[str, str] = {}

    def log(self, run: str, settings: Mapping[str, Any], step: int, figures: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now, run_id = int(time.time() * 1000), self._ids.get(run) or self._find(run, settings)
        if step > self._steps.get(run, 0):  # a job that resumes tells of earlier epochs again
            self._client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value in figures.items()])

    def end(self, run: str, failed: bool) -> None:
        if run in self._ids:
            self._client.set_terminated(self._ids[run], "FAILED" if failed else "FINISHED")

    def _find(self, run: str, settings: Mapping[str, Any]) -> str:
        from mlflow.entities import Param

        key = identify(self._place, run)
        earlier = self._client.search_runs([self._experiment], f"tags.fer_ray_run = '{key}'", max_results=1)
        if earlier:
            self._ids[run] = earlier[0].info.run_id
            self._client.update_run(self._ids[run], "RUNNING")
            self._steps[run] = max((metric.step for metric in self._client.get_metric_history(self._ids[run], "accuracy")), default=0)
            return self._ids[run]
        made = self._client.create_run(self._experiment, tags={"fer_ray_run": key, "fer_ray_output": self._place}, run_name=run)
        self._ids[run] = made.info.run_id
        params = [Param(name, str(value)[:MAX_VALUE_LENGTH]) for name, value in settings.items()]
        self._client.log_batch(made.info.run_id, params=params)
        return self._ids[run]


class WandbRuns:
    """Runs of a project of Weights & Biases; with WANDB_MODE=offline they stay on this machine."""

    def __init__(self, project: str, place: str) -> None:
        self._project, self._place = project, place
        self._runs: dict[str, Any] = {}

    def log(self, run: str, settings: Mapping[str, Any], step: int, figures: Mapping[str, float]) -> None:
        import wandb

        if run not in self._runs:
            self._runs[run] = wandb.init(
                project=self._project,
                name=run,
                id=identify(self._place, run),
                resume="allow",
                config=dict(settings),
                reinit="create_new",
                settings=wandb.Settings(silent=True, init_timeout=LAST_SECONDS, console="off"),
            )
        if step >= self._runs[run].step:  # a job that resumes tells of earlier epochs again
            self._runs[run].log(dict(figures), step=step)

    def end(self, run: str, failed: bool) -> None:
        if run in self._runs:
            self._runs.pop(run).finish(exit_code=int(failed))
