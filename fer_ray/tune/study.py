"""The search as a study of Optuna in its output, which optuna-dashboard shows while it runs; whatever searcher proposes the trials."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fer_ray.config.jobs.tune import TuneConfig
from fer_ray.errors import FerRayError
from fer_ray.io.storage import Storage, is_remote, join
from fer_ray.models.metrics import LESS_IS_BETTER
from fer_ray.text import sanitize
from fer_ray.train.tracking import Tracker

if TYPE_CHECKING:
    from optuna.trial import TrialState

    from fer_ray.tune.results import TrialEpoch
    from fer_ray.tune.space.search_space import Space

LOGGER = logging.getLogger(__name__)
STUDY_FILE = "optuna.log"  # in the output of a search: a journal of Optuna
UPLOAD_SECONDS = 10.0  # between two copies of it to a store


class Follower(Protocol):
    """Hears of every trial of a running search."""

    def __contains__(self, trial_id: str) -> bool:
        """Whether it has heard of the trial."""

    def report(self, trial_id: str, settings: Mapping[str, Any], epochs: Iterable[TrialEpoch]) -> None:
        """Take a trial where it is new, and epochs that it has finished."""

    def end(self, trial_id: str, epochs: Mapping[int, TrialEpoch], failed: bool) -> None:
        """Take note that the trial has ended, after these epochs."""


class TrackedTrials:
    """Hands the trials to a tracker, each as a run of its own."""

    def __init__(self, tracker: Tracker, search: str) -> None:
        self._tracker, self._search = tracker, search
        self._known: set[str] = set()

    def __contains__(self, trial_id: str) -> bool:
        return trial_id in self._known

    def report(self, trial_id: str, settings: Mapping[str, Any], epochs: Iterable[TrialEpoch]) -> None:
        self._known.add(trial_id)
        for epoch in epochs:
            self._tracker.log(f"{self._search}/{trial_id}", settings, asdict(epoch))

    def end(self, trial_id: str, epochs: Mapping[int, TrialEpoch], failed: bool) -> None:
        self._tracker.end(f"{self._search}/{trial_id}", failed)


class StudyLog:
    """Keeps the journal; what goes wrong with it is said once, and the search goes on.

    Args:
        storage: How to get at the output.
        output: The folder of the search, or its address.
        config: The search.
        space: What it searches.
    """

    def __init__(self, storage: Storage, output: str, config: TuneConfig, space: Space) -> None:
        self._storage, self._place = storage, join(output, STUDY_FILE)
        self._config, self._space = config, space
        self._numbers: dict[str, int] = {}  # of each trial in the study
        self._uploaded_at, self._is_broken = 0.0, False
        self._folder = tempfile.TemporaryDirectory(prefix="fer-ray-") if is_remote(output) else None
        self._file = Path(self._folder.name) / STUDY_FILE if self._folder else Path(self._place)
        self._study: Any = None

    def __contains__(self, trial_id: str) -> bool:
        return trial_id in self._numbers

    def report(self, trial_id: str, settings: Mapping[str, Any], epochs: Iterable[TrialEpoch]) -> None:
        """Add the trial where it is new, and epochs that it has finished."""
        self._safely(lambda: self._report(trial_id, settings, epochs))

    def end(self, trial_id: str, epochs: Mapping[int, TrialEpoch], failed: bool) -> None:
        """Say how the trial ended: before its last epoch, it was pruned."""
        from optuna.trial import TrialState

        values = [value for _, epoch in sorted(epochs.items()) if (value := epoch.value(self._config.objective)) is not None]
        state = TrialState.COMPLETE if len(epochs) >= self._config.epochs else TrialState.PRUNED
        self._safely(lambda: self._end(trial_id, TrialState.FAIL if failed or not values else state, values[-1:]))

    def close(self) -> None:
        """Bring a journal in a store up to date."""
        self._safely(self._upload)
        if self._folder:
            self._folder.cleanup()

    def _safely(self, action: Any) -> None:
        if self._is_broken:
            return
        try:
            action()
            if time.monotonic() - self._uploaded_at > UPLOAD_SECONDS:
                self._upload()
        except (OSError, ValueError, KeyError, RuntimeError, FerRayError) as error:
            self._is_broken = True
            LOGGER.warning("the study for optuna-dashboard cannot be written (%s): the search goes on", sanitize(str(error)[:200]))

    def _upload(self) -> None:
        if self._folder and self._file.exists():
            self._storage.put_file(self._file, self._place)
        self._uploaded_at = time.monotonic()

    def _begin(self) -> Any:
        import optuna
        from optuna.storages.journal import JournalFileBackend

        self._file.unlink(missing_ok=True)  # that of an earlier start: its trials are reported again
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        journal = optuna.storages.JournalStorage(JournalFileBackend(str(self._file)))
        direction: Any = "minimize" if self._config.objective in LESS_IS_BETTER else "maximize"
        return optuna.create_study(storage=journal, study_name="search", direction=direction)

    def _report(self, trial_id: str, settings: Mapping[str, Any], epochs: Iterable[TrialEpoch]) -> None:
        self._study = self._study or self._begin()
        if trial_id not in self._numbers:
            self._add(trial_id, settings)
        for epoch in epochs:
            value = epoch.value(self._config.objective)
            if value is not None:
                self._study._storage.set_trial_intermediate_value(self._key(trial_id), epoch.epoch, value)

    def _add(self, trial_id: str, settings: Mapping[str, Any]) -> None:
        from optuna.trial import FixedTrial, TrialState, create_trial

        proposed = self._space.proposed(settings)
        asked = FixedTrial(proposed or {})
        if proposed is not None:
            self._space.suggest(asked)  # which notes what each of them may be
        named = {"trial": trial_id, "settings": {name: str(value) for name, value in settings.items()}}
        new = create_trial(state=TrialState.RUNNING, params=asked.params, distributions=asked.distributions, user_attrs=named)
        self._study.add_trial(new)
        self._numbers[trial_id] = len(self._numbers)

    def _end(self, trial_id: str, state: TrialState, values: list[float]) -> None:
        if trial_id in self._numbers and not self._study.trials[self._numbers[trial_id]].state.is_finished():
            self._study._storage.set_trial_state_values(self._key(trial_id), state, values if state.name != "FAIL" else None)

    def _key(self, trial_id: str) -> int:
        """What the storage calls the trial."""
        storage = self._study._storage
        return int(storage.get_trial_id_from_study_id_trial_number(self._study._study_id, self._numbers[trial_id]))
