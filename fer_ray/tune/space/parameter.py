"""One searched setting: the values that it may take, on which condition, and how one of them is drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

CONSTANT = "constant"
CHOICE = "choice"
UNIFORM = "uniform"
LOG = "log"
INTEGER = "integer"
LOG_INTEGER = "log_integer"
RANGES = (UNIFORM, LOG, INTEGER, LOG_INTEGER)
DIGITS = 6
GRID_STEPS = 9  # of a range that is varied
RESAMPLED = 0.2  # share of the variations that are drawn anew


class Trial(Protocol):
    """What a space asks of `optuna.trial.Trial`."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...
    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...


@dataclass(frozen=True)
class Parameter:
    """What one line of a space says of one setting; a setting with alternatives has several, each with its condition.

    `name` is what a study calls it: the setting, followed by the condition where there are alternatives. `values` are those of a
    constant or a choice, `low` and `high` (both included) and `step` those of a range. `conditions` are (setting, values) pairs;
    `lines` are those of `bounds()` in the file.
    """

    setting: str
    name: str
    kind: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    conditions: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    real: bool = True  # the setting takes numbers with a fraction, also where whole ones are searched
    line: int = 0
    lines: tuple[int, ...] = ()

    @property
    def fixed(self) -> bool:
        """There is only one value: nobody needs to be asked."""
        return len(self.values) == 1

    @property
    def log(self) -> bool:
        """The logarithm is searched evenly, not the number."""
        return self.kind in (LOG, LOG_INTEGER)

    @property
    def whole(self) -> bool:
        """The range has whole numbers only."""
        return self.kind in (INTEGER, LOG_INTEGER)

    def applies(self, settings: Mapping[str, Any]) -> bool:
        """The settings drawn so far meet every condition; one that is absent meets none."""
        return all(other in settings and settings[other] in values for other, values in self.conditions)

    def takes(self, value: Any) -> bool:
        """The value can be drawn."""
        if self.kind not in RANGES:
            return value in self.values
        steps = (value - self.low) / self.step if self.step else value
        return bool(self.low <= value <= self.high and (not (self.whole or self.step) or abs(steps - round(steps)) < 1e-9))

    def bounds(self) -> tuple[Any, ...]:
        """Every value of a choice; the ends of a range."""
        return (self._number(self.low), self._number(self.high)) if self.kind in RANGES else self.values

    def line_of(self, value: Any) -> int:
        """Where the file says that value; where it is between two ends, where the parameter begins."""
        return next((line for bound, line in zip(self.bounds(), self.lines, strict=True) if bound == value), self.line)

    def suggest(self, trial: Trial) -> Any:
        """A value that the trial proposes."""
        if self.kind in RANGES and self.whole:
            return self._number(trial.suggest_int(self.name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log))
        if self.kind in RANGES:
            return self._number(trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log))
        return self.values[0] if self.fixed else self.decode(trial.suggest_categorical(self.name, list(map(_scalar, self.values))))

    def decode(self, proposed: Any) -> Any:
        """The setting's value from what a study stores for it."""
        if self.kind in RANGES:
            return self._number(proposed)
        return next(value for value in self.values if _scalar(value) == proposed)

    def encode(self, value: Any) -> Any:
        """What a study stores for one of the setting's values: the other way round than `decode`."""
        return value if self.kind in RANGES else _scalar(value)

    def random(self, generator: np.random.Generator) -> Any:
        """A value drawn evenly, for `log` kinds by its logarithm."""
        if self.kind not in RANGES:
            return self.values[int(generator.integers(len(self.values)))]
        if self.step or self.kind == INTEGER:
            return self._number(self.low + (self.step or 1) * int(generator.integers(self._steps() + 1)))
        if not self.log:
            return self._number(generator.uniform(self.low, self.high))
        margin = 0.5 * self.whole  # so that both ends of whole numbers are as likely as the others
        value = math.exp(generator.uniform(math.log(self.low - margin), math.log(self.high + margin)))
        return self._number(round(value) if self.whole else value)

    def grid(self, points: int) -> tuple[Any, ...]:
        """Every value of a choice; of a range `points` values at most, evenly spread from end to end (one: the middle)."""
        if self.kind not in RANGES:
            return self.values
        shares = [index / (points - 1) for index in range(points)] if points > 1 else [0.5]
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            spread = [math.exp(low + share * (high - low)) for share in shares]
        elif self.step:
            spread = [self.low + self.step * round(share * self._steps()) for share in shares]
        else:
            spread = [self.low + share * (self.high - self.low) for share in shares]
        return tuple(dict.fromkeys(self._number(round(value) if self.whole else value) for value in spread))

    def vary(self, value: Any, generator: np.random.Generator) -> Any:
        """Mostly a value near this one: its neighbour among the values of a grid, or itself; sometimes another one at random."""
        if generator.random() < RESAMPLED:
            return self.random(generator)
        values = self.grid(GRID_STEPS)
        numbers = self.kind in RANGES
        place = min(range(len(values)), key=lambda index: abs(values[index] - value)) if numbers else values.index(value)
        return values[min(max(place + int(generator.integers(-1, 2)), 0), len(values) - 1)]

    def text(self) -> str:
        """The values and the condition, for people."""
        if self.kind in RANGES:
            text = f"{self._number(self.low)} to {self._number(self.high)}" + (f" in steps of {self.step:g}" if self.step else "")
        else:
            text = ", ".join(map(_readable, self.values))
        return f"{text}, if {self.condition()}" if self.conditions else text

    def condition(self) -> str:
        """The conditions, for people and for the names of alternatives: `optimizer=sgd`."""
        return "; ".join(f"{other}={'|'.join(map(_readable, values))}" for other, values in self.conditions)

    def _steps(self) -> int:
        return round((self.high - self.low) / (self.step or 1))

    def _number(self, value: float) -> Any:
        """A plain number inside the range, with as many digits as people read: what they see is then what was trained."""
        if self.whole:
            return float(value) if self.real else int(value)
        return float(min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high))


def _scalar(value: Any) -> Any:
    """What a study can store: optuna takes no lists."""
    return json.dumps(value) if isinstance(value, tuple) else value


def _readable(value: Any) -> str:
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, tuple) else str(value)
