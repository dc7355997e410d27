"""The charts about a search for hyperparameters, as plain values that the page's template draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fer_ray.models.flops import Cost
from fer_ray.models.metrics import LESS_IS_BETTER
from fer_ray.reporting.charts import COLORS, Chart, Series, Words, axis, plain
from fer_ray.text import percent, plural
from fer_ray.tune.importance import VariedSetting, format_value
from fer_ray.tune.results import COMPLETED, FAILED, LeaderboardEntry, Trial, pareto_front, score
from fer_ray.typing import Float64Array

LABELS = {"accuracy": "accuracy", "macro_f1": "macro F1", "nll": "NLL", "ece": "ECE", "train_loss": "training loss"}
SHARES = ("accuracy",)  # figures that are shown in percent
BEST_CURVES = 5  # trials whose curves are coloured
MAX_CURVES = 200  # of the others, or the page would grow with the search
MAX_AXES = 9  # settings that still can be told apart side by side
MAX_TICKS = 10  # of an axis
FEW = 5  # numbers, each of which gets a tick of its own
ABSENT_SHARE = 0.14  # of an axis, kept for trials that lack the setting
WORST_SHARE = 0.1  # of the trials, which share the lowest place: a few that failed to learn would press all others together
LOSS_SHARE = 0.97  # of the losses, which decide how high the axis reaches


@dataclass(frozen=True)
class ParallelAxis:
    """One setting among the parallel coordinates: its ticks are where (0 to 1) and what they say."""

    name: str
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class ParallelLine:
    """One trial among the parallel coordinates: where it crosses each axis, and how good it is by rank, 0 to 1."""

    trial: str
    places: Sequence[float]
    strength: float


@dataclass(frozen=True)
class ParallelCoordinates:
    """Every trial as a line through the values of its settings to its objective, the worst trial first."""

    axes: Sequence[ParallelAxis]
    lines: Sequence[ParallelLine]


def format_figure(name: str, value: float, digits: int = 2) -> str:
    """A figure as the page shows it: percent for shares, else a number with two more decimals."""
    return percent(value, digits) if name in SHARES else f"{value:.{digits + 2}f}"


def learning_curves(trials: Sequence[Trial], objective: str, ranked: Sequence[str]) -> list[Chart]:
    """Objective and training loss over the epochs; the first of `ranked` are coloured, and of the others the best 200 are drawn."""
    places = {trial_id: place for place, trial_id in enumerate(ranked)}
    ordered = sorted((trial for trial in trials if trial.epochs), key=lambda trial: places.get(trial.trial_id, len(places)))
    shown = ordered[: BEST_CURVES + MAX_CURVES]
    return [_curves(shown, column) for column in (objective, "train_loss")]


def _curves(ranked: Sequence[Trial], column: str) -> Chart:
    values = [value for trial in ranked for epoch in trial.epochs if (value := epoch.value(column)) is not None]
    is_loss = column == "train_loss" or column in LESS_IS_BETTER
    highest = float(np.quantile(values, LOSS_SHARE)) if is_loss and values else None
    y = axis(values, words=_words(column), high=highest if highest and highest > min(values) else None)
    x = axis([1, max(trial.epochs[-1].epoch for trial in ranked)], "epoch", whole=True, margin=0)
    title = "Training loss" if column == "train_loss" else f"{capitalized(LABELS[column])} on validation images"
    colors = [*COLORS[:BEST_CURVES], *["other"] * len(ranked)]
    curves = [_curve(trial, column, color) for trial, color in zip(ranked, colors, strict=False)]
    best = [
        Series(f"{rank}. {trial.trial_id}", (), color)
        for rank, (trial, color) in enumerate(zip(ranked, COLORS[:BEST_CURVES], strict=False), 1)
    ]
    marks: dict[str, Series] = {
        "other": Series("other trials", (), "other"),
        "stopped": Series("stopped early", (), "other", "dots"),
        "failed": Series("failed", (), "other", "dots", end="failed"),
    }
    used = {one.end for one in curves} | {one.color for one in curves}
    legend = [*best, *(series for mark, series in marks.items() if mark in used)]
    alt = f"{title} of {plural(len(ranked), 'trial')} over the epochs; the best is {ranked[0].trial_id}"
    return Chart(title, alt, x, y, [*legend, *reversed(curves)])  # the best on top


def _curve(trial: Trial, column: str, color: str) -> Series:
    points = [(float(epoch.epoch), value) for epoch in trial.epochs if (value := epoch.value(column)) is not None]
    end: Literal["", "stopped", "failed"] = ""
    if points and trial.status != COMPLETED:
        end = "failed" if trial.status == FAILED else "stopped"
    return Series("", points, color, key=trial.trial_id, title=trial.trial_id, end=end)


def parallel_coordinates(settings: Sequence[VariedSetting], entries: Sequence[LeaderboardEntry]) -> ParallelCoordinates:
    """One line for each entry through the values of its settings to its objective."""
    objective, shown = entries[0].objective, settings[:MAX_AXES]
    scores = np.array([score(objective, entry.value) for entry in entries])
    order = np.argsort(scores, kind="stable")
    strength = np.empty(len(order))
    strength[order] = np.linspace(0, 1, len(order))  # by rank: values lie too close together at the top
    axes = [_setting_axis(one, strength) for one in shown]
    axes.append(_objective_axis(scores, objective))
    places = np.stack([places for places, _ in axes], axis=1).round(4)
    lines = [ParallelLine(entries[i].trial.trial_id, places[i].tolist(), float(strength[i])) for i in order]
    names = [*(one.name for one in shown), LABELS[objective]]
    return ParallelCoordinates([ParallelAxis(name, ticks) for name, (_, ticks) in zip(names, axes, strict=True)], lines)


Ticks = list[tuple[float, str]]


def _setting_axis(setting: VariedSetting, strength: Float64Array) -> tuple[Float64Array, Ticks]:
    """Where each trial (n,) crosses the setting's axis, 0 to 1, and what stands there; equal values side by side, better ones higher."""
    spread = strength - 0.5
    if not setting.numeric:
        categories = sorted(set(setting.words), key=lambda word: (word != "not used", word))
        step = 1 / max(1, len(categories) - 1)
        places = np.array([categories.index(word) * step for word in setting.words])
        every = -(-len(categories) // MAX_TICKS)
        return np.clip(places + spread * min(0.06, step / 3), 0, 1), [(i * step, word) for i, word in enumerate(categories)][::every]
    absent = np.array([value is None for value in setting.values])
    numbers = np.array([setting.median if value is None else float(value) for value in setting.values])
    few = len(set(setting.present)) <= FEW
    scale = axis(numbers, logarithmic=setting.logarithmic, margin=0)
    start = ABSENT_SHARE if absent.any() else 0.0
    places = np.array([start + scale.place(number) * (1 - start) for number in numbers])
    places = np.where(absent, 0.0, places) + spread * np.where(absent | few, 0.05, 0)
    marks = [(scale.place(value), format_value(value)) for value in sorted(set(setting.present))] if few else scale.ticks
    ticks = [(start + place * (1 - start), words) for place, words in marks]
    return np.clip(places, 0, 1), ticks + ([(0.0, "not used")] if absent.any() else [])


def _objective_axis(scores: Float64Array, objective: str) -> tuple[Float64Array, Ticks]:
    """The better, the higher; the worst tenth shares the lowest place."""
    floor, top = float(np.quantile(scores, WORST_SHARE)), float(scores.max())
    places = np.clip((scores - floor) / max(top - floor, 1e-12), 0, 1)
    worse = "\N{GREATER-THAN OR EQUAL TO} " if objective in LESS_IS_BETTER else "\N{LESS-THAN OR EQUAL TO} "
    ticks = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        words = format_figure(objective, score(objective, floor + share * (top - floor)), 1)
        ticks.append((share, worse + words if share == 0 and scores.min() < floor else words))
    return places, ticks


def costs(entries: Sequence[LeaderboardEntry], known: Mapping[str, Cost]) -> list[Chart]:
    """The objective over multiply-adds, and over milliseconds where they were measured; the Pareto front is a line through its trials."""
    costed = [(known[entry.trial.trial_id], entry) for entry in entries]
    charts = [_cost_chart("Multiply-adds", "million per image", [(cost.multiply_adds / 1e6, entry) for cost, entry in costed])]
    timed = [(cost.milliseconds, entry) for cost, entry in costed if cost.milliseconds is not None]
    return charts + ([_cost_chart("Time", "milliseconds per image here, on the CPU", timed)] if timed else [])


def _cost_chart(title: str, label: str, costed: Sequence[tuple[float, LeaderboardEntry]]) -> Chart:
    objective = costed[0][1].objective
    front = pareto_front([(cost, score(objective, entry.value)) for cost, entry in costed])
    on_front = [(cost, entry.value) for cost, entry in (costed[index] for index in front)]
    x = axis([cost for cost, _ in costed], label, logarithmic=True, margin=0.08)
    y = axis([entry.value for _, entry in costed], words=_words(objective), margin=0.08)
    names = [entry.trial.trial_id for _, entry in costed]
    dots = [
        Series("", [(cost, entry.value)], COLORS[0], "dots", key=name, title=name)
        for name, (cost, entry) in zip(names, costed, strict=True)
    ]
    alt = f"{LABELS[objective]} of {plural(len(costed), 'trial')} over {label}; on the Pareto front are "
    alt += ", ".join(names[index] for index in front[:MAX_TICKS])
    line = [Series("Pareto front", on_front, COLORS[1], "steps"), Series("trial", (), COLORS[0], "dots")]
    heading = f"{capitalized(LABELS[objective])} over {title.lower()}"
    return Chart(heading, alt, x, y.reversed() if objective in LESS_IS_BETTER else y, [*line, *dots])


def capitalized(words: str) -> str:
    """The words as a sentence begins; the rest stays: macro F1 -> Macro F1."""
    return words[:1].upper() + words[1:]


def _words(name: str) -> Words:
    return (lambda value: percent(value)) if name in SHARES else plain
