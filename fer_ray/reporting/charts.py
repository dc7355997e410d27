"""Charts as plain values: where things stand on them. `charts.html.j2` draws them as SVG, which follows the page's colours and width."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

WIDTH = 460  # of a chart in its own units; a page stretches it to its column
HEIGHT = 260
LEFT = 54  # room for the words of the vertical axis, where a chart does not say how much it needs
RIGHT = 12
TOP = 10
BOTTOM = 42  # room for the words and the title of the horizontal axis
MIN_DECADES = 0.6  # a logarithmic axis needs this range (a factor of 4), or it has too few round ticks
WIDE_DECADES = 2.5  # above, only powers of ten get a tick
COLORS = ("c1", "c2", "c3", "c4", "c5", "c6")  # classes of charts.css

Words = Callable[[float], str]


def plain(value: float) -> str:
    """A number in up to four digits."""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`, its title, and its ticks: where they stand (0 to 1) and what they say."""

    low: float
    high: float
    label: str = ""
    logarithmic: bool = False
    ticks: tuple[tuple[float, str], ...] = ()

    def place(self, value: float) -> float:
        """Where a value stands, 0 at `low` and 1 at `high`; what lies beyond stands at the end."""
        return _place(value, self.low, self.high, self.logarithmic)

    def reversed(self) -> Axis:
        """The same with its end at the beginning, for figures of which less is better."""
        ticks = tuple((1 - place, words) for place, words in self.ticks)
        return replace(self, low=self.high, high=self.low, ticks=ticks)


@dataclass(frozen=True)
class Series:
    """One thing on a chart.

    Attributes:
        name: What the legend says; series of the same name share an entry, one without a name has none.
        points: Pairs (x, y); of bars y is the height.
        color: A class of `charts.css`: one of COLORS, `other` or `ink`.
        kind: How the points are drawn.
        key: What the page's script knows it by, such as the number of a trial.
        title: What the browser shows where the pointer rests.
        end: A mark at the last point: `stopped` is a dot, `failed` a cross.
    """

    name: str
    points: Sequence[tuple[float, float]]
    color: str = COLORS[0]
    kind: Literal["line", "dashed", "steps", "dots", "bars"] = "line"
    key: str = ""
    title: str = ""
    end: Literal["", "stopped", "failed"] = ""


@dataclass(frozen=True)
class Chart:
    """Series over two axes. `alt` says in words what is to be seen."""

    title: str
    alt: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    bars: int = 1  # how many there is room for side by side
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT  # room for the words of the vertical axis

    @property
    def bar(self) -> float:
        """How wide one of the bars is."""
        return round(0.9 * (self.width - self.left - RIGHT) / self.bars, 1)

    def across(self, place: float) -> float:
        """The x of a place 0 to 1 in the chart's own units."""
        return round(self.left + place * (self.width - self.left - RIGHT), 1)

    def down(self, place: float) -> float:
        """The y of a place 0 to 1, which counts from below."""
        return round(self.height - BOTTOM - place * (self.height - TOP - BOTTOM), 1)

    def placed(self, series: Series) -> list[tuple[float, float]]:
        """The points in the chart's own units; steps get the corner between two."""
        points = [(self.across(self.x.place(x)), self.down(self.y.place(y))) for x, y in series.points]
        if series.kind != "steps":
            return points
        corners = [[(later, y), (later, below)] for (_, y), (later, below) in itertools.pairwise(points)]
        return [*points[:1], *(point for pair in corners for point in pair)]

    @property
    def legend(self) -> dict[str, Series]:
        """The first series of every name."""
        named: dict[str, Series] = {}
        for one in self.series:
            if one.name:
                named.setdefault(one.name, one)
        return named


def axis(
    values: Iterable[float],
    label: str = "",
    *,
    words: Words = plain,
    low: float | None = None,
    high: float | None = None,
    logarithmic: bool = False,
    whole: bool = False,
    margin: float = 0.04,
) -> Axis:
    """An axis on which the values have room, with round ticks.

    Args:
        values: What is shown; may be empty.
        label: The axis' title.
        words: What a tick says.
        low: Where the axis begins, if not at the least value.
        high: Where it ends, if not at the largest.
        logarithmic: Whether equal ratios get equal room; only where all values are above 0 and differ enough.
        whole: Whether only whole numbers get a tick.
        margin: Room beyond the values, as a share of their range.
    """
    known = list(values) or [0.0, 1.0]
    smallest, largest = min(known) if low is None else low, max(known) if high is None else high
    if logarithmic and smallest > 0 and math.log10(largest / smallest) >= MIN_DECADES:
        room = (largest / smallest) ** margin
        start, end, marks = smallest / room, largest * room, _decades(smallest / room, largest * room)
        return Axis(start, end, label, True, tuple((_place(mark, start, end, True), words(mark)) for mark in marks))
    if largest <= smallest:
        smallest, largest = smallest - (abs(smallest) or 1) * 0.05, largest + (abs(largest) or 1) * 0.05
    room = (largest - smallest) * margin
    start, end = smallest if low is not None else smallest - room, largest if high is not None else largest + room
    return Axis(
        start,
        end,
        label,
        False,
        tuple((_place(mark, start, end, False), words(mark)) for mark in _round_marks(start, end, 1 if whole else 0)),
    )


def _place(value: float, low: float, high: float, logarithmic: bool) -> float:
    if logarithmic:
        value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _round_marks(low: float, high: float, least: float = 0) -> list[float]:
    """Multiples of a step of 1, 2 or 5 times a power of ten between the two, four to nine of them: 0.31, 0.68 -> 0.35, 0.4, ..., 0.65.

    No step is below `least`.
    """
    power = 10 ** math.floor(math.log10((high - low) / 4))
    step = max(least, next((power * factor for factor in (5, 2) if (high - low) / (power * factor) >= 4), power))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(np.round(number * step, 12)) for number in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten between the two, and twice and five times them where these are few."""
    factors = (1,) if math.log10(high / low) > WIDE_DECADES else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
