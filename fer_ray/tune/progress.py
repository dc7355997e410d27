"""What a search says while it runs: a line for every epoch of a trial, with the best so far; and when it stops by itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray.tune

from fer_ray.config.tune import TuneConfig
from fer_ray.errors import TrainingError
from fer_ray.reporting.progress import format_left
from fer_ray.text import sanitize
from fer_ray.tune.results import COMPLETED, FAILED, LeaderboardEntry, Trial, TrialEpoch, leaderboard
from fer_ray.tune.searchers import parse_proposed, seed_of
from fer_ray.tune.trial_dirs import TRIALS_FOLDER, best_bundle, read_epochs, reason_of, to_epoch

LOGGER = logging.getLogger(__name__)
MAX_EQUAL_FAILURES = 4  # in a row, after which the next trials would fail in the same way


class SearchProgress(ray.tune.Callback):  # type: ignore[misc]  # Ray has no types
    """Logs every epoch of every trial, and ends a search whose trials all fail in the same way.

    Args:
        config: The search.
        output: Its folder, from which a resumed search learns of earlier epochs.
        expected: How many trials there will be.
    """

    def __init__(self, config: TuneConfig, output: str, expected: int) -> None:
        self.config, self.output, self.expected = config, output, expected
        self.epochs: dict[str, dict[int, TrialEpoch]] = {}  # of each trial, by their numbers
        self.began: tuple[float, int] | None = None  # when this process saw its first result, and how many trials had ended by then
        self.last_failure = ""
        self.equal_failures = 0

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        objective, epoch = self.config.objective, to_epoch(result)
        best = self.best(trials, trial.trial_id, epoch)
        value = epoch.value(objective)
        ended = sum(other.is_finished() for other in trials)
        words = [
            f"trial {trial.trial_id} epoch {epoch.epoch}: {objective} {'not a number' if value is None else f'{value:.4f}'}",
            f"best {best.trial.trial_id} {best.value:.4f} at epoch {best.epoch.epoch}" if best else "no best yet",
            f"{ended} of {self.expected} ended{self._time_left(ended)}",
        ]
        LOGGER.info("%s", "; ".join(words))

    def best(self, trials: Sequence[Any], trial_id: str, epoch: TrialEpoch) -> LeaderboardEntry | None:
        """The first of the leaderboard with this new epoch of a trial: the same that is recommended where the search ends here."""
        for other in trials:
            if other.trial_id not in self.epochs:
                self.epochs[other.trial_id] = {earlier.epoch: earlier for earlier in self._epochs_on_disk(other.trial_id)}
        self.epochs[trial_id][epoch.epoch] = epoch
        board = leaderboard([self._snapshot(other) for other in trials], self.config.objective)
        return board[0] if board else None

    def _epochs_on_disk(self, trial_id: str) -> list[TrialEpoch]:
        bundle = best_bundle(Path(self.output) / TRIALS_FOLDER / trial_id)
        return read_epochs(bundle) if bundle else []

    def _snapshot(self, trial: Any) -> Trial:
        settings: Mapping[str, Any] = parse_proposed(trial.config)
        epochs = tuple(epoch for _, epoch in sorted(self.epochs[trial.trial_id].items()))
        return Trial(trial.trial_id, FAILED if trial.status == "ERROR" else COMPLETED, dict(settings), epochs, seed=seed_of(settings))

    def _time_left(self, ended: int) -> str:
        """From the pace since the first result, which leaves the start of Ray and of the first trials out."""
        if self.began is None:
            self.began = (time.monotonic(), ended)
        since, before = self.began
        if ended == before:
            return ""
        return f", {format_left((time.monotonic() - since) / (ended - before) * (self.expected - ended))}"

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.equal_failures = 0

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = reason_of(trial.get_error(), trial.trial_id)
        LOGGER.warning("trial %s failed: %s", trial.trial_id, sanitize(reason))
        self.equal_failures = self.equal_failures + 1 if reason == self.last_failure else 1
        self.last_failure = reason
        if self.equal_failures >= MAX_EQUAL_FAILURES:
            many = f"{MAX_EQUAL_FAILURES} trials in a row failed in the same way"
            raise TrainingError(f"{many} ({sanitize(reason)}): the search was stopped")
