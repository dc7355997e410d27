"""What a search shows while it runs: the epochs of all its trials, and the best so far; and when it stops by itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import ray.tune

from fer_ray.config.jobs.tune import TuneConfig
from fer_ray.errors import TrainingError
from fer_ray.io.storage import Storage, join
from fer_ray.reporting.progress import LogProgress, Progress
from fer_ray.text import sanitize
from fer_ray.train.filesystem import wait_out
from fer_ray.train.worker import FAILURE_FILE
from fer_ray.tune.results import COMPLETED, FAILED, LeaderboardEntry, Trial, TrialEpoch, leaderboard
from fer_ray.tune.searchers import parse_proposed, seed_of
from fer_ray.tune.study import Follower
from fer_ray.tune.trial_dirs import TRIALS_FOLDER, best_bundle, read_epochs, reason_of, to_epoch

LOGGER = logging.getLogger(__name__)
MAX_EQUAL_FAILURES = 4  # in a row, after which the next trials would fail in the same way
_shown: Progress = LogProgress()  # of the search in this process: Tune pickles its callbacks, and no bar can be pickled
_followers: tuple[Follower, ...] = ()  # likewise


def show_on(progress: Progress, *followers: Follower) -> None:
    """Have searches of this process shown there, and tell the followers of their trials."""
    global _shown, _followers
    _shown, _followers = progress, followers


class SearchProgress(ray.tune.Callback):  # type: ignore[misc]  # Ray has no types
    """Shows every epoch of every trial, and ends a search whose trials all fail in the same way.

    Args:
        config: The search.
        output: Its folder, from which a resumed search learns of earlier epochs.
        expected: How many trials there will be.
    """

    def __init__(self, config: TuneConfig, output: str, expected: int) -> None:
        self.config, self.output, self.expected = config, output, expected
        self.epochs: dict[str, dict[int, TrialEpoch]] = {}  # of each trial, by their numbers
        self.last_failure = ""
        self.equal_failures = 0

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        objective, epoch = self.config.objective, to_epoch(result)
        best = self.best(trials, trial.trial_id, epoch)
        for follower in _followers:
            self._tell(follower, trials, trial, epoch)
        ended = sum(other.is_finished() for other in trials)
        note = f"{objective} {best.value:.4f} by {best.trial.trial_id} at epoch {best.epoch.epoch}" if best else "no best yet"
        # A trial that was stopped early is as near the end as one that had all its epochs.
        done = sum(self.config.epochs if other.is_finished() else len(self.epochs[other.trial_id]) for other in trials)
        _shown.update(done, self.expected * self.config.epochs, f"{ended} of {self.expected} trials ended, {note}", unit="epochs")

    def _tell(self, follower: Follower, trials: Sequence[Any], trial: Any, epoch: TrialEpoch) -> None:
        """Tell of the epoch, and of trials that are new: after an interruption all of them."""
        for other in (other for other in trials if other.trial_id not in follower):
            follower.report(other.trial_id, parse_proposed(other.config), self.epochs[other.trial_id].values())
            if other.is_finished():
                follower.end(other.trial_id, self.epochs[other.trial_id], failed=other.status == "ERROR")
        follower.report(trial.trial_id, parse_proposed(trial.config), [epoch])

    def best(self, trials: Sequence[Any], trial_id: str, epoch: TrialEpoch) -> LeaderboardEntry | None:
        """The first of the leaderboard with this new epoch of a trial: the same that is recommended where the search ends here."""
        for other in trials:
            if other.trial_id not in self.epochs:
                self.epochs[other.trial_id] = {earlier.epoch: earlier for earlier in self._epochs_on_disk(other.trial_id)}
        self.epochs[trial_id][epoch.epoch] = epoch
        board = leaderboard([self._snapshot(other) for other in trials], self.config.objective)
        return board[0] if board else None

    def _epochs_on_disk(self, trial_id: str) -> list[TrialEpoch]:
        storage = Storage.of(self.config.data)
        bundle = best_bundle(storage, join(self.output, TRIALS_FOLDER, trial_id))
        return read_epochs(storage, bundle) if bundle else []

    def _snapshot(self, trial: Any) -> Trial:
        settings: Mapping[str, Any] = parse_proposed(trial.config)
        epochs = tuple(epoch for _, epoch in sorted(self.epochs[trial.trial_id].items()))
        return Trial(trial.trial_id, FAILED if trial.status == "ERROR" else COMPLETED, dict(settings), epochs, seed=seed_of(settings))

    def _recorded_failure(self, trial_id: str) -> TrainingError | None:
        """What a worker wrote down: Tune now and then has no error yet when it tells of one."""
        file = join(self.output, TRIALS_FOLDER, trial_id, FAILURE_FILE)
        try:
            return TrainingError(wait_out(lambda: Storage.of(self.config.data).read(file)).decode().rstrip("."))
        except FileNotFoundError:
            return None

    def _tell_end(self, trial: Any, failed: bool) -> None:
        for follower in _followers:
            follower.end(trial.trial_id, self.epochs.get(trial.trial_id, {}), failed)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.equal_failures = 0
        self._tell_end(trial, failed=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell_end(trial, failed=True)
        reason = reason_of(self._recorded_failure(trial.trial_id) or trial.get_error(), trial.trial_id)
        LOGGER.warning("trial %s failed: %s", trial.trial_id, sanitize(reason))
        self.equal_failures = self.equal_failures + 1 if reason == self.last_failure else 1
        self.last_failure = reason
        if self.equal_failures >= MAX_EQUAL_FAILURES:
            many = f"{MAX_EQUAL_FAILURES} trials in a row failed in the same way"
            raise TrainingError(f"{many} ({sanitize(reason)}): the search was stopped")
