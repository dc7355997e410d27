"""Pictures about a search for hyperparameters as PNG bytes. Settings and names in them come from strangers: nothing in them is markup."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fer_ray.models.metrics import LESS_IS_BETTER
from fer_ray.reporting.plotting import BLUE, GRID, INK, MODEL_COLORS, MUTED, ORANGE, RED, figure, fit, percent_axis
from fer_ray.text import percent
from fer_ray.tune.importance import Importance, VariedSetting, worded
from fer_ray.tune.results import COMPLETED, FAILED, Trial, pareto_front, score
from fer_ray.typing import Float64Array, Int64Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEST_CURVES, MOST_AXES, MOST_TICKS, FEW, LABEL_LENGTH = 5, 12, 10, 5, 22
ABSENT = 0.14  # share of an axis that is kept for trials without the setting
SHARES = ("accuracy",)
CURVE_COLORS = (*MODEL_COLORS[:4], MODEL_COLORS[5])  # the fifth is too near the second
OTHERS = "#aab4c0"
LABELS = {"accuracy": "accuracy", "macro_f1": "macro F1", "nll": "NLL", "ece": "ECE", "train_loss": "training loss"}


@dataclass(frozen=True)
class CostPoint:
    """A trial in the picture of costs: multiply-adds and milliseconds of one image, and the objective's value."""

    name: str
    multiply_adds: int
    milliseconds: float | None
    value: float


def draw_learning_curves(trials: Sequence[Trial], objective: str, best: Sequence[str]) -> bytes:
    """Objective and training loss over the epochs: the best trials coloured, dots where trials were stopped, crosses where they failed."""
    with figure(10.5, 4.2) as (sheet, png):
        for axes, column in zip(sheet.subplots(1, 2), (objective, "train_loss"), strict=True):
            for trial in sorted(trials, key=lambda trial: trial.trial_id in best):
                _curve(axes, trial, column, list(best))
            _limit(axes, [epoch.value(column) for trial in trials for epoch in trial.epochs], column)
            axes.set_title(f"{LABELS[column]}{'' if column == 'train_loss' else ' on validation images'}", loc="left")
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(axis="y")
        if objective in SHARES:
            percent_axis(sheet.axes[0].yaxis)
        _legend(sheet.axes[1], trials, best)
    return png.getvalue()


def _curve(axes: Axes, trial: Trial, column: str, best: list[str]) -> None:
    points = [(epoch.epoch, value) for epoch in trial.epochs if (value := epoch.value(column)) is not None]
    if not points:
        return
    x, y = zip(*points, strict=True)
    chosen = trial.trial_id in best
    color = CURVE_COLORS[best.index(trial.trial_id)] if chosen else OTHERS
    marker = "o" if len(points) == 1 and chosen else None
    axes.plot(x, y, color=color, linewidth=1.8 if chosen else 0.8, alpha=1 if chosen else 0.75, marker=marker, zorder=3 if chosen else 2)
    if trial.status != COMPLETED:
        failed = trial.status == FAILED
        axes.plot(x[-1], y[-1], "x" if failed else ".", color=RED if failed else color, markersize=5, zorder=4)


def _limit(axes: Axes, values: Sequence[float | None], column: str) -> None:
    """Losses of a trial that diverged would flatten all other curves."""
    known = [value for value in values if value is not None]
    if known and (column in LESS_IS_BETTER or column == "train_loss"):
        low, high = min(known), float(np.quantile(known, 0.97))
        if high > low:
            axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _legend(axes: Axes, trials: Sequence[Trial], best: Sequence[str]) -> None:
    """Beside the curves: who is who, and what the marks mean."""
    from matplotlib.lines import Line2D

    labels = [f"{rank}. {fit(name, LABEL_LENGTH)}" for rank, name in enumerate(best, start=1)]
    entries = [Line2D([], [], color=color, linewidth=1.8, label=label) for color, label in zip(CURVE_COLORS, labels, strict=False)]
    if len(trials) > len(best):
        entries.append(Line2D([], [], color=OTHERS, linewidth=0.8, label="other trials"))
    statuses = {trial.status for trial in trials if trial.epochs}
    if statuses - {COMPLETED, FAILED}:
        entries.append(Line2D([], [], color=OTHERS, marker=".", linestyle="", label="stopped early"))
    if FAILED in statuses:
        entries.append(Line2D([], [], color=RED, marker="x", linestyle="", label="failed"))
    axes.legend(handles=entries, fontsize=7.5, loc="upper left", bbox_to_anchor=(1.01, 1.02))


def draw_parallel_coordinates(parameters: Sequence[VariedSetting], values: Sequence[float], objective: str) -> bytes:
    """One line for each trial through the values of its settings to its objective; the darker, the better."""
    from matplotlib.collections import LineCollection

    shown = list(parameters)[:MOST_AXES]
    objectives = VariedSetting(LABELS[objective], tuple(values))
    gains = np.array([score(objective, value) for value in values])
    floor = float(np.quantile(gains, 0.1))
    order = np.argsort(gains, kind="stable")
    scales = [_place(one, order) for one in shown] + [_place_objective(objectives, gains, floor, objective)]
    x = np.arange(len(scales))
    shade = np.empty(len(order))
    shade[order] = np.linspace(0, 1, len(order))  # by rank: values lie too close together at the top
    with figure(max(6.0, 1.15 * len(scales) + 1.2), 4.6) as (sheet, png):
        axes = sheet.add_subplot()
        lines = [np.column_stack([x, [positions[trial] for positions, _ in scales]]) for trial in order]
        width = [0.8 + 1.4 * shade[trial] ** 3 for trial in order]
        axes.add_collection(LineCollection(lines, array=0.3 + 0.7 * shade[order], cmap="YlGnBu", linewidths=width, alpha=0.9))
        axes.collections[0].set_clim(0, 1)
        for index, (_, ticks) in enumerate(scales):
            _axis(axes, index, ticks)
        axes.set(xlim=(-0.3, len(scales) - 0.35), ylim=(-0.06, 1.06))
        axes.set_yticks([])
        names = [fit(one.name, LABEL_LENGTH).replace("_", "_\n", 1) for one in [*shown, objectives]]
        axes.set_xticks(x, names, fontsize=8)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return png.getvalue()


Ticks = list[tuple[float, str]]


def _place(parameter: VariedSetting, order: Int64Array) -> tuple[Float64Array, Ticks]:
    """Where each trial crosses the parameter's axis, 0 to 1, and what stands there."""
    spread = np.empty(len(order))
    spread[order] = np.linspace(-0.5, 0.5, len(order))  # side by side rather than on top of each other
    if not parameter.numeric:
        categories = sorted(set(parameter.words), key=lambda word: (word != "not used", word))
        step = 1 / max(1, len(categories) - 1)
        places = np.array([categories.index(word) * step for word in parameter.words])
        every = -(-len(categories) // MOST_TICKS)
        return places + spread * min(0.06, step / 3), [(i * step, fit(word, 16)) for i, word in enumerate(categories)][::every]
    numbers, absent = parameter.scaled(), np.array([value is None for value in parameter.values])
    low, high = float(np.nanmin(numbers)), float(np.nanmax(numbers))
    start = ABSENT if absent.any() else 0.0
    span = (1 - start) / max(high - low, 1e-12)
    few = len(set(parameter.there)) <= FEW
    places = np.where(absent, 0.0, start + (np.nan_to_num(numbers, nan=low) - low) * span) + spread * np.where(absent | few, 0.05, 0)
    ticks = [(start + (mark - low) * span, words) for mark, words in _marks(parameter, few, low, high)]
    return places, ticks + ([(0.0, "not used")] if absent.any() else [])


def _marks(parameter: VariedSetting, few: bool, low: float, high: float) -> Ticks:
    """Where numbers stand on the parameter's scale: its values where they are few, else five between the ends."""
    if few:
        return [(math.log(value) if parameter.logarithmic else float(value), worded(value)) for value in sorted(set(parameter.there))]
    return [(float(mark), f"{math.exp(mark) if parameter.logarithmic else mark:.2g}") for mark in np.linspace(low, high, 5)]


def _place_objective(parameter: VariedSetting, gains: Float64Array, floor: float, objective: str) -> tuple[Float64Array, Ticks]:
    """The better, the higher; the worst tenth shares the lowest place, or it would press all others together."""
    top = float(gains.max())
    places = np.clip((gains - floor) / max(top - floor, 1e-12), 0, 1)
    ticks = []
    for share in np.linspace(0, 1, 5):
        value = score(objective, floor + share * (top - floor))
        words = percent(value, 1) if objective in SHARES else f"{value:.3f}"
        below = "\N{GREATER-THAN OR EQUAL TO} " if objective in LESS_IS_BETTER else "\N{LESS-THAN OR EQUAL TO} "
        ticks.append((float(share), below + words if share == 0 and gains.min() < floor else words))
    return places, ticks


def _axis(axes: Axes, index: int, ticks: Ticks) -> None:
    axes.plot([index, index], [0, 1], color=INK, linewidth=1, zorder=4)
    box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 0.8}
    for height, words in ticks:
        axes.plot([index - 0.03, index], [height, height], color=INK, linewidth=1, zorder=4)
        axes.text(index + 0.05, height, words, fontsize=7, va="center", bbox=box, zorder=5)


def draw_importance(importance: Importance) -> bytes:
    """Each parameter's share of what matters, the largest first."""
    shares = sorted(importance.shares.items(), key=lambda item: (item[1], item[0]))
    with figure(7.5, 0.8 + 0.3 * len(shares)) as (sheet, png):
        axes = sheet.add_subplot()
        axes.barh(range(len(shares)), [share for _, share in shares], color=BLUE, height=0.65)
        for index, (_, share) in enumerate(shares):
            axes.text(share + 0.008, index, percent(share), va="center", fontsize=8, color=MUTED)
        axes.set_yticks(range(len(shares)), [fit(name, 30) for name, _ in shares])
        axes.set_xlim(0, max(share for _, share in shares) * 1.12 or 1)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=GRID)
        axes.set_axisbelow(True)
        percent_axis(axes.xaxis)
    return png.getvalue()


def draw_costs(points: Sequence[CostPoint], objective: str) -> bytes:
    """The objective over multiply-adds, and over milliseconds where they were measured; the Pareto front is a line through its trials."""
    columns: list[tuple[str, list[tuple[float, CostPoint]]]] = [
        ("million multiply-adds per image", [(point.multiply_adds / 1e6, point) for point in points])
    ]
    timed = [(point.milliseconds, point) for point in points if point.milliseconds is not None]
    if timed:
        columns.append(("milliseconds per image here, on the CPU", timed))
    with figure(5.4 * len(columns), 4.2) as (sheet, png):
        for axes, (label, costed) in zip(np.atleast_1d(sheet.subplots(1, len(columns))), columns, strict=True):
            _scatter(axes, costed, objective)
            axes.set_xlabel(label)
            axes.set_ylabel(LABELS[objective])
            if objective in SHARES:
                percent_axis(axes.yaxis)
            if objective in LESS_IS_BETTER:
                axes.invert_yaxis()
    return png.getvalue()


def _scatter(axes: Axes, costed: Sequence[tuple[float, CostPoint]], objective: str) -> None:
    x, y = [cost for cost, _ in costed], [point.value for _, point in costed]
    front = pareto_front([(cost, score(objective, point.value)) for cost, point in costed])
    axes.scatter(x, y, s=26, color=BLUE, alpha=0.6, linewidths=0, label="trial")
    axes.plot([x[i] for i in front], [y[i] for i in front], "o-", color=ORANGE, drawstyle="steps-post", label="Pareto front", zorder=3)
    for index in front:
        style: dict[str, Any] = {"textcoords": "offset points", "xytext": (5, 6), "fontsize": 7}
        axes.annotate(fit(costed[index][1].name, LABEL_LENGTH), (x[index], y[index]), **style)
    if min(x) > 0 and max(x) > 4 * min(x):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}" if max(x) < 20 * min(x) else "")
        axes.tick_params(axis="x", which="minor", labelsize=7)
    axes.margins(x=0.12, y=0.1)
    axes.grid()
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, loc="lower right")
