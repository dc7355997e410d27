"""The page about a search for hyperparameters: one HTML file with everything in it. `templates/search.html.j2` says how it looks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fer_ray
from fer_ray.io.storage import Storage, join
from fer_ray.models.flops import Cost
from fer_ray.models.metrics import LESS_IS_BETTER
from fer_ray.reporting.html import render
from fer_ray.text import duration, first_few, percent
from fer_ray.tune import plots
from fer_ray.tune.importance import (
    MIN_TRIALS,
    Importance,
    VariedSetting,
    by_importance,
    format_value,
    measure_importance,
    tried_values,
    typical_value,
    varied_settings,
)
from fer_ray.tune.plots import LABELS, format_figure
from fer_ray.tune.results import FAILED, TRIALS_FILE, LeaderboardEntry, Trial, leaderboard, pareto_front, score
from fer_ray.tune.space.search_space import to_yaml

PAGE_FILE = "index.html"
FIRST_COLUMNS = ("learning_rate", "optimizer", "widths")  # settings that people look for first
MAX_SETTING_COLUMNS = 8  # of the leaderboard, which else grows wider than anyone reads
MAX_ROWS = 200  # of the leaderboard
MAX_REASONS = 20  # of failures
MAX_REASON_LENGTH = 400
POOR_FIT = 0.1  # share of the differences explained, up to which importances are hardly better than chance
NO_FIGURE = "\N{EN DASH}"


@dataclass(frozen=True)
class SearchSummary:
    """What the page says about the search itself.

    `searched` names the settings that were searched (empty: all that vary), `best` the trial whose settings are recommended
    (empty: the first of the leaderboard). `facts` are shown as they are, such as the searcher, the scheduler and the data set;
    `seconds` is how long the whole search took.
    """

    name: str
    objective: str
    searched: tuple[str, ...] = ()
    best: str = ""
    seconds: float | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Findings:
    """What the page shows, worked out once; the settings have a value for each trial of `entries`, in its order."""

    search: SearchSummary
    trials: Sequence[Trial]
    costs: Mapping[str, Cost]
    entries: Sequence[LeaderboardEntry]
    settings: Sequence[VariedSetting]
    importance: Importance | None

    @property
    def best(self) -> LeaderboardEntry | None:
        named = [entry for entry in self.entries if entry.trial.trial_id == self.search.best]
        return next(iter([*named, *self.entries]), None)

    @property
    def costed(self) -> list[LeaderboardEntry]:
        """The entries whose cost is known, best first."""
        return [entry for entry in self.entries if entry.trial.trial_id in self.costs]


def write_report(storage: Storage, output: str, search: SearchSummary, trials: Sequence[Trial], costs: Mapping[str, Cost]) -> str:
    """Write the page into the folder of a search; returns its address. `costs` are by trial_id, as far as they are known."""
    address = join(output, PAGE_FILE)
    storage.write(address, search_page(search, trials, costs).encode("utf-8", "replace"))
    return address


def search_page(search: SearchSummary, trials: Sequence[Trial], costs: Mapping[str, Cost]) -> str:
    """The page, which has all its charts in it."""
    found = _find(search, trials, costs)
    best = found.best
    return render(
        "fer_ray.tune",
        "search.html.j2",
        styles=("charts.css", "search.css"),
        scripts=("base.js", "search.js"),
        title=f"Search {search.name}",
        links=[("best.yaml", "best.yaml"), (TRIALS_FILE, TRIALS_FILE)],
        label=LABELS[search.objective],
        less_is_better=search.objective in LESS_IS_BETTER,
        facts=search.facts,
        cards=_cards(found),
        best=best and {"trial": best.trial.trial_id, "yaml": to_yaml(best.trial.settings).rstrip()},
        leaderboard=_leaderboard(found),
        curves=plots.learning_curves(trials, search.objective, [entry.trial.trial_id for entry in found.entries]) if best else [],
        parallel=_parallel(found),
        importance=_importance(found),
        costs=_costs(found),
        failures=_failures(trials),
        trials_file=TRIALS_FILE,
        version=fer_ray.__version__,
    )


def _find(search: SearchSummary, trials: Sequence[Trial], costs: Mapping[str, Cost]) -> _Findings:
    entries = leaderboard(trials, search.objective, costs)
    settings = varied_settings([entry.trial for entry in entries], search.searched)
    importance = measure_importance(settings, np.array([score(search.objective, entry.value) for entry in entries]))
    return _Findings(search, trials, costs, entries, by_importance(settings, importance), importance)


def _cards(found: _Findings) -> list[dict[str, Any]]:
    trials, objective, best = found.trials, found.search.objective, found.best
    epochs, seconds = sum(len(trial.epochs) for trial in trials), sum(trial.seconds for trial in trials)
    statuses = ", ".join(f"{count:,} {status}" for status, count in Counter(trial.status for trial in trials).most_common())
    whole = f"the search took {duration(found.search.seconds)}" if found.search.seconds is not None else "over all trials"
    value = format_figure(objective, best.value) if best else NO_FIGURE
    where = f"{best.trial.trial_id}, epoch {best.epoch.epoch}" if best else "no trial reached a figure"
    cards = (
        (f"Best {LABELS[objective]}", value, where),
        ("Trials", f"{len(trials):,}", statuses or NO_FIGURE),
        ("Epochs", f"{epochs:,}", f"{epochs / len(trials):.1f} a trial" if trials else NO_FIGURE),
        ("Time of training", duration(seconds), whole),
    )
    return [{"name": name, "value": value, "notes": [note]} for name, value, note in cards]


def _leaderboard(found: _Findings) -> dict[str, Any]:
    """Header, rows of cells, and how many trials and settings are left out."""
    by_name = {one.name: one for one in found.settings}
    ordered = [*(name for name in FIRST_COLUMNS if name in by_name), *(name for name in by_name if name not in FIRST_COLUMNS)]
    names = ordered[:MAX_SETTING_COLUMNS]
    others = [name for name in ("accuracy", "macro_f1", "nll", "ece") if name != found.search.objective]
    figures = [*(LABELS[name] for name in others), "best epoch", "epochs", "time", "million multiply-adds", "ms per image"]
    return {
        "columns": ["rank", LABELS[found.search.objective], *names, *figures, "trial", "ended"],
        "words": [2 + index for index, name in enumerate(names) if not by_name[name].numeric]
        + [2 + len(names) + len(figures) + i for i in (0, 1)],
        "rows": [{"trial": entry.trial.trial_id, "cells": _cells(found, entry, names, others)} for entry in found.entries[:MAX_ROWS]],
        "trials_left_out": len(found.entries[MAX_ROWS:]),
        "settings_left_out": ordered[MAX_SETTING_COLUMNS:],
    }


def _cells(found: _Findings, entry: LeaderboardEntry, names: Sequence[str], others: Sequence[str]) -> list[dict[str, Any]]:
    """Each as words, what it is sorted by, and a note below."""
    trial, cost = entry.trial, found.costs.get(entry.trial.trial_id)
    seeds = f"mean of {entry.seeds} seeds, \N{PLUS-MINUS SIGN} {format_figure(entry.objective, entry.spread)}" if entry.seeds > 1 else ""
    adds = cost.multiply_adds if cost else None
    cells = [
        (f"{entry.rank}", entry.rank),
        (format_figure(entry.objective, entry.value), entry.value),
        *((NO_FIGURE if (value := trial.settings.get(name)) is None else format_value(value), _sort_key(value)) for name in names),
        *((_figure(name, value := entry.epoch.value(name)), value) for name in others),
        (f"{entry.epoch.epoch:,}", entry.epoch.epoch),
        (f"{len(trial.epochs):,}", len(trial.epochs)),
        (duration(trial.seconds), trial.seconds),
        (NO_FIGURE if adds is None else f"{adds / 1e6:,.1f}", adds),
        (_milliseconds(cost), cost.milliseconds if cost else None),
        (trial.trial_id, trial.trial_id),
        (trial.status, trial.status),
    ]
    return [
        {"words": words, "sort": "" if key is None else key, "note": seeds if index == 1 else ""}
        for index, (words, key) in enumerate(cells)
    ]


def _sort_key(value: Any) -> float | str | None:
    """Numbers by their size, everything else by its words."""
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    return format_value(value)


def _figure(name: str, value: float | None) -> str:
    return NO_FIGURE if value is None else format_figure(name, value)


def _milliseconds(cost: Cost | None) -> str:
    return NO_FIGURE if cost is None or cost.milliseconds is None else f"{cost.milliseconds:.2f}"


def _parallel(found: _Findings) -> dict[str, Any] | None:
    if len(found.entries) < 2 or not found.settings:
        return None
    drawn = plots.parallel_coordinates(found.settings, found.entries[:MAX_ROWS])
    return {"drawn": drawn, "settings_left_out": len(found.settings) - len(drawn.axes) + 1}


def _importance(found: _Findings) -> dict[str, Any] | None:
    """How much each setting mattered, what was tried of it, and what the best third has in common."""
    best = found.best
    if not found.settings or len(found.entries) < 2 or best is None:
        return None
    third = -(-len(found.entries) // 3)
    shares = found.importance.shares if found.importance else {}
    rows = [
        {
            "name": one.name,
            "share": shares.get(one.name),
            "tried": tried_values(one),
            "third": typical_value(one.first(third)),
            "best": format_value(best.trial.settings.get(one.name)),
        }
        for one in found.settings
    ]
    return {"note": _trust(found), "third": third, "rows": rows}


def _trust(found: _Findings) -> str:
    if found.importance is None:
        needed = f"It takes {MIN_TRIALS} trials that did not fail and that differ to say how much each setting matters"
        return f"{needed}; there are {len(found.entries)}."
    explained = found.importance.explained
    if explained <= POOR_FIT:
        return (
            "A random forest predicts the rank of trials that it did not see hardly better than chance: do not read much into the shares."
        )
    return f"A random forest on the settings explains {percent(explained)} of the differences between trials that it did not see."


def _costs(found: _Findings) -> dict[str, Any] | None:
    """The charts, and the trials on the Pareto front, the cheapest first; None where no cost is known."""
    costed = found.costed
    if not costed:
        return None
    front = pareto_front([(found.costs[entry.trial.trial_id].multiply_adds, score(entry.objective, entry.value)) for entry in costed])
    rows = []
    for entry in (costed[index] for index in front):
        cost = found.costs[entry.trial.trial_id]
        value = format_figure(entry.objective, entry.value)
        rows.append((entry.trial.trial_id, value, f"{cost.multiply_adds / 1e6:,.1f}", _milliseconds(cost)))
    return {"charts": plots.costs(costed[:MAX_ROWS], found.costs), "front": rows}


def _failures(trials: Sequence[Trial]) -> dict[str, Any]:
    """Trials that failed, by reason: those that differ only in their numbers are one reason."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.status == FAILED:
            groups.setdefault(re.sub(r"0x[0-9a-fA-F]+|\d+", "#", _reason(trial)), []).append(trial)
    ordered = sorted(groups.values(), key=len, reverse=True)
    rows = [(_reason(group[0]), f"{len(group):,}", first_few(trial.trial_id for trial in group)) for group in ordered[:MAX_REASONS]]
    return {"rows": rows, "left_out": len(ordered) - len(rows)}


def _reason(trial: Trial) -> str:
    """The error in one line, without the trial's own name, which would make every reason another."""
    words = " ".join((trial.error or "no reason was recorded").split()).replace(trial.trial_id, "the trial")
    return words if len(words) <= MAX_REASON_LENGTH else words[:MAX_REASON_LENGTH] + "\N{HORIZONTAL ELLIPSIS}"
