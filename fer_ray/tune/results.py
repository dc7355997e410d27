"""The trials of a search for hyperparameters: `trials.parquet` with a row for every epoch, and who did best."""

from __future__ import annotations

import datetime
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.errors import StorageError, TooLargeError, UsageError
from fer_ray.io.storage import Storage, join
from fer_ray.models.metrics import LESS_IS_BETTER

TRIALS_FILE = "trials.parquet"
COMPLETED = "completed"
STOPPED = "stopped"
PRUNED = "pruned"
FAILED = "failed"
MAX_BYTES = 256 << 20  # of a table of trials, which comes from strangers too
MAX_ROWS = 2_000_000  # of the same: a trial and an epoch each


def _column(name: str, kind: pa.DataType, meaning: str, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"comment": meaning})


TRIALS = pa.schema(
    [
        _column("trial_id", pa.string(), "name of the trial, unique in the search", nullable=False),
        _column(
            "epoch", pa.int32(), "1 for the first pass over the training images; 0 in the one row of a trial that had none", nullable=False
        ),
        _column("status", pa.string(), "how the trial ended: completed, stopped or pruned by the scheduler, failed", nullable=False),
        _column("config_json", pa.string(), "the settings by their flags' names, JSON", nullable=False),
        _column("seed", pa.int64(), "seed of initial weights, order and augmentation", nullable=False),
        _column("accuracy", pa.float64(), "share of the validation images labeled right, 0 to 1"),
        _column("macro_f1", pa.float64(), "mean F1 of the classes on the validation images, 0 to 1"),
        _column("nll", pa.float64(), "mean of -log p of the label on the validation images, nats"),
        _column("ece", pa.float64(), "gap between confidence and accuracy on the validation images, 15 bins, 0 to 1"),
        _column("train_loss", pa.float64(), "mean loss over the epoch's batches"),
        _column("learning_rate", pa.float64(), "learning rate at the end of the epoch"),
        _column("seconds", pa.float64(), "how long the epoch took"),
        _column("finished_at", pa.timestamp("us", tz="UTC"), "when the epoch ended"),
        _column("error", pa.string(), "why the trial failed, null for the others"),
    ]
)


@dataclass(frozen=True)
class TrialEpoch:
    """One epoch of a trial as its row says; None where there is no figure."""

    epoch: int
    accuracy: float | None = None
    macro_f1: float | None = None
    nll: float | None = None
    ece: float | None = None
    train_loss: float | None = None
    learning_rate: float | None = None
    seconds: float | None = None
    finished_at: datetime.datetime | None = None

    def value(self, objective: str) -> float | None:
        """The figure by name; None also where it is not finite, as after a divergence."""
        value = getattr(self, objective)
        return float(value) if value is not None and math.isfinite(value) else None


_EPOCH_COLUMNS = tuple(TrialEpoch.__dataclass_fields__)


@dataclass(frozen=True)
class Trial:
    """One training of the search: its settings, its epochs in their order, and how it ended."""

    trial_id: str
    status: str
    settings: dict[str, Any]
    epochs: tuple[TrialEpoch, ...] = ()
    error: str | None = None
    seed: int = 0

    @property
    def seconds(self) -> float:
        """How long its epochs took together."""
        return sum(epoch.value("seconds") or 0.0 for epoch in self.epochs)

    @property
    def configuration(self) -> str:
        """The settings but for the seed, as text: the same for all trials of one configuration."""
        return json.dumps({name: value for name, value in self.settings.items() if name != "seed"}, sort_keys=True)

    def best(self, objective: str) -> TrialEpoch | None:
        """The epoch that is best by the objective, the first of equals; None when no epoch has that figure."""
        judged = [epoch for epoch in self.epochs if epoch.value(objective) is not None]
        return max(judged, key=lambda epoch: score(objective, epoch.value(objective) or 0.0), default=None)

    def rows(self) -> list[dict[str, Any]]:
        """The trial as rows of TRIALS."""
        same = {
            "trial_id": self.trial_id,
            "status": self.status,
            "config_json": json.dumps(self.settings, sort_keys=True),
            "seed": self.seed,
            "error": self.error,
        }
        return [{**same, **{name: getattr(epoch, name) for name in _EPOCH_COLUMNS}} for epoch in self.epochs or (TrialEpoch(0),)]


@dataclass(frozen=True)
class LeaderboardEntry:
    """A configuration's place on the leaderboard: its best trial, that one's best epoch, and the objective.

    `value` is the mean over the trials of the configuration, one for each of its `seeds`; `spread` is their standard deviation.
    """

    rank: int
    trial: Trial
    epoch: TrialEpoch
    value: float
    objective: str
    seeds: int = 1
    spread: float = 0.0


class HasMultiplyAdds(Protocol):
    """What a network costs, as far as ties need it: `fer_ray.models.flops.Cost`."""

    @property
    def multiply_adds(self) -> int: ...


def score(objective: str, value: float) -> float:
    """The value with the sign that makes more of it better."""
    return -value if objective in LESS_IS_BETTER else value


def write_trials(storage: Storage, place: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write `trials.parquet` into a folder, whole or not at all; gives its address.

    Rows have the columns of TRIALS; nullable ones may be missing, and other keys are left out.

    Raises:
        ValueError: a row lacks a column that is not nullable.
    """
    listed = [{name: row.get(name) for name in TRIALS.names} for row in rows]
    lacking = {name for row in listed for name in TRIALS.names if row[name] is None and not TRIALS.field(name).nullable}
    if lacking:
        raise ValueError(f"rows of {TRIALS_FILE} lack {', '.join(sorted(lacking))}")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(listed, schema=TRIALS), sink, compression="zstd")
    address = join(place, TRIALS_FILE)
    storage.write(address, bytes(sink.getvalue().to_pybytes()))
    return address


def read_trials(storage: Storage, place: str) -> list[Trial]:
    """The trials of a search in the order of their first rows; where an epoch was done again, its last row counts.

    Raises:
        UsageError: there is no such table, or it is none of a search.
        StorageError: it cannot be read.
    """
    address = join(place, TRIALS_FILE)
    try:
        table = _read_table(storage.read(address, MAX_BYTES))
        grouped: dict[str, list[dict[str, Any]]] = {}
        for row in table.to_pylist():
            grouped.setdefault(row["trial_id"], []).append(row)
        return [_trial(rows) for rows in grouped.values()]
    except FileNotFoundError as error:
        raise UsageError(f"There is no {address}: give the folder of a search.") from error
    except TooLargeError as error:
        raise UsageError(f"The file {address} is too large to be the trials of a search.") from error
    except StorageError:
        raise
    except (ValueError, KeyError, OSError, pa.ArrowException) as error:
        raise UsageError(f"The file {address} cannot be read as the trials of a search ({' '.join(str(error).split())[:200]}).") from error


def _read_table(content: bytes) -> pa.Table:
    file = pq.ParquetFile(pa.BufferReader(content))
    if not 0 <= file.metadata.num_rows <= MAX_ROWS:
        raise ValueError(f"it has {file.metadata.num_rows:,} rows")
    table = file.read(columns=TRIALS.names).select(TRIALS.names).cast(TRIALS)
    empty = [column.name for column in TRIALS if not column.nullable and table[column.name].null_count]
    if empty:
        raise ValueError(f"there are no values in rows of {', '.join(empty)}")
    return table


def _trial(rows: Sequence[Mapping[str, Any]]) -> Trial:
    last = rows[-1]
    settings = json.loads(last["config_json"])
    if not isinstance(settings, dict):
        raise ValueError("the settings of a trial are no JSON object")
    epochs = {row["epoch"]: TrialEpoch(**{name: row[name] for name in _EPOCH_COLUMNS}) for row in rows if row["epoch"] > 0}
    ordered = tuple(epochs[number] for number in sorted(epochs))
    return Trial(last["trial_id"], last["status"], settings, ordered, last["error"], last["seed"])


def leaderboard(trials: Iterable[Trial], objective: str, costs: Mapping[str, HasMultiplyAdds] | None = None) -> list[LeaderboardEntry]:
    """The configurations whose trials did not all fail, by the mean of their best epochs, best first; among equals the cheaper network.

    `objective` is `accuracy` or `macro_f1`, of which more is better, or `nll`, of which less is.
    """
    known = costs or {}
    judged: dict[tuple[str, int], list[tuple[float, Trial, TrialEpoch]]] = {}
    tries: Counter[tuple[str, int]] = Counter()  # a searcher may propose the same twice: only other seeds belong together
    for trial in trials:
        epoch = trial.best(objective)
        value = epoch.value(objective) if epoch else None
        if trial.status != FAILED and epoch is not None and value is not None:
            tries[trial.configuration, trial.seed] += 1
            judged.setdefault((trial.configuration, tries[trial.configuration, trial.seed]), []).append((value, trial, epoch))
    places = []
    for several in judged.values():
        _, trial, epoch = max(several, key=lambda one: score(objective, one[0]))
        values = [value for value, _, _ in several]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        cost = known[trial.trial_id].multiply_adds if trial.trial_id in known else math.inf
        places.append((cost, LeaderboardEntry(0, trial, epoch, statistics.fmean(values), objective, len(values), spread)))
    places.sort(key=lambda place: (-score(objective, place[1].value), place[0], place[1].trial.trial_id))
    return [replace(entry, rank=rank) for rank, (_, entry) in enumerate(places, start=1)]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the points (cost, gain) that no other beats: none is as cheap and better, or cheaper and as good.

    Cheapest first; of equal points the first one counts.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1], index)):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front
