"""The page about a search for hyperparameters: one HTML file with everything in it, and its pictures beside it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

import fer_ray
from fer_ray.io.storage import Storage, join
from fer_ray.models.flops import Cost
from fer_ray.models.metrics import LESS_IS_BETTER
from fer_ray.reporting.html import document, figure, table, text
from fer_ray.text import duration, first_few, percent, plural
from fer_ray.tune import plots as figures
from fer_ray.tune.importance import (
    MIN_TRIALS,
    Importance,
    VariedSetting,
    by_importance,
    first_of,
    measure_importance,
    tried,
    typical,
    varying,
    worded,
)
from fer_ray.tune.plots import BEST_CURVES, LABELS, MOST_AXES, SHARES, CostPoint
from fer_ray.tune.results import FAILED, TRIALS_FILE, LeaderboardEntry, Trial, leaderboard, pareto_front, score
from fer_ray.tune.space.search_space import to_yaml

PAGE_FILE = "index.html"
CURVES, COORDINATES, IMPORTANCE, COSTS = "learning_curves.png", "parallel_coordinates.png", "importance.png", "costs.png"
FIRST_ROWS, MOST_ROWS, MOST_REASONS, MOST_SETTINGS, REASON_LENGTH = 15, 200, 20, 6, 400
NOTHING = "\N{EN DASH}"


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
    """What the page shows, worked out once; the parameters have a value for each trial of `board`, in its order."""

    search: SearchSummary
    trials: Sequence[Trial]
    costs: Mapping[str, Cost]
    board: Sequence[LeaderboardEntry]
    parameters: Sequence[VariedSetting]
    importance: Importance | None

    @property
    def best(self) -> LeaderboardEntry | None:
        named = [entry for entry in self.board if entry.trial.trial_id == self.search.best]
        return next(iter([*named, *self.board]), None)

    @property
    def points(self) -> list[CostPoint]:
        """The trials whose cost is known, best first."""
        known = [(one, self.costs[one.trial.trial_id]) for one in self.board if one.trial.trial_id in self.costs]
        return [CostPoint(one.trial.trial_id, cost.multiply_adds, cost.milliseconds, one.value) for one, cost in known]


def write_report(storage: Storage, output: str, search: SearchSummary, trials: Sequence[Trial], costs: Mapping[str, Cost]) -> str:
    """Write the page and its pictures into a folder; gives the page's address. `costs` are by trial_id, as far as they are known."""
    found = _find(search, trials, costs)
    pictures = _draw(found)
    for name, png in pictures.items():
        storage.write(join(output, name), png)
    address = join(output, PAGE_FILE)
    storage.write(address, _render(found, pictures).encode("utf-8", "replace"))
    return address


def search_page(search: SearchSummary, trials: Sequence[Trial], costs: Mapping[str, Cost]) -> str:
    """The page alone, which has all its pictures in it."""
    found = _find(search, trials, costs)
    return _render(found, _draw(found))


def _find(search: SearchSummary, trials: Sequence[Trial], costs: Mapping[str, Cost]) -> _Findings:
    board = leaderboard(trials, search.objective, costs)
    parameters = varying([entry.trial for entry in board], search.searched)
    importance = measure_importance(parameters, np.array([score(search.objective, entry.value) for entry in board]))
    return _Findings(search, trials, costs, board, by_importance(parameters, importance), importance)


def _draw(found: _Findings) -> dict[str, bytes]:
    """The pictures that there is something to show in, by file name."""
    objective, board, points = found.search.objective, found.board, found.points
    pictures = {}
    if board:
        best = [entry.trial.trial_id for entry in board[:BEST_CURVES]]
        pictures[CURVES] = figures.draw_learning_curves(found.trials, objective, best)
    if len(board) > 1 and found.parameters:
        values = [entry.value for entry in board]
        pictures[COORDINATES] = figures.draw_parallel_coordinates(found.parameters, values, objective)
    if found.importance is not None and any(found.importance.shares.values()):
        pictures[IMPORTANCE] = figures.draw_importance(found.importance)
    if points:
        pictures[COSTS] = figures.draw_costs(points, objective)
    return pictures


def _render(found: _Findings, pictures: Mapping[str, bytes]) -> str:
    sections = (
        _head(found)
        + _best(found)
        + _leaderboard(found)
        + _curves(found, pictures)
        + _coordinates(found, pictures)
        + _importance(found, pictures)
        + _costs(found, pictures)
        + _failures(found.trials)
    )
    footer = (
        f'<footer class="muted"><p>All figures are those of the validation images. Every trial and epoch is in {TRIALS_FILE}.</p>'
        f"<p>fer_ray {text(fer_ray.__version__)}</p></footer>\n"
    )
    return document(f"Search {found.search.name}", sections + footer)


def _head(found: _Findings) -> str:
    search, trials = found.search, found.trials
    epochs, seconds = sum(len(trial.epochs) for trial in trials), sum(trial.seconds for trial in trials)
    direction = "less is better" if search.objective in LESS_IS_BETTER else "more is better"
    statuses = ", ".join(f"{count:,} {text(status)}" for status, count in Counter(trial.status for trial in trials).most_common())
    whole = f"the search took {duration(search.seconds)}" if search.seconds is not None else "over all trials"
    best = found.best
    where = f"{text(best.trial.trial_id)}, epoch {best.epoch.epoch}" if best else "no trial reached a figure"
    cards = (
        (f"Best {LABELS[search.objective]}", _value(search.objective, best.value if best else None), where),
        ("Trials", f"{len(trials):,}", statuses or NOTHING),
        ("Epochs", f"{epochs:,}", f"{epochs / len(trials):.1f} a trial" if trials else NOTHING),
        ("Time of training", duration(seconds), whole),
    )
    shown = "".join(
        f'<div class="card"><span class="name">{name}</span><b>{value}</b><span>{note}</span></div>\n' for name, value, note in cards
    )
    facts = "; ".join(f"{text(name)} {text(value)}" for name, value in search.facts.items())
    return (
        f'<p class="facts">Objective: {LABELS[search.objective]} on the validation images, the best epoch of each trial; {direction}'
        f'{"; " + facts if facts else ""}</p>\n<div class="cards">\n{shown}</div>\n'
    )


def _value(name: str, value: float | None, digits: int = 2) -> str:
    if value is None:
        return NOTHING
    return percent(value, digits) if name in SHARES else f"{value:.{digits + 2}f}"


def _best(found: _Findings) -> str:
    best = found.best
    if best is None:
        return (
            "<h3>Best settings</h3>\n<p>No trial that did not fail has a figure for the objective, so there is nothing to recommend.</p>\n"
        )
    lines = "\n".join(text(line) for line in to_yaml(best.trial.settings).splitlines())
    return (
        f"<h3>Best settings</h3>\n<p>Those of {text(best.trial.trial_id)}, as a file for "
        f"<code>python jobs/train.py --config best.yaml --dataset DATA --output MODEL</code>.</p>\n<pre>{lines}</pre>\n"
    )


def _leaderboard(found: _Findings) -> str:
    if not found.board:
        return ""
    rows = [_row(found, entry) for entry in found.board[:MOST_ROWS]]
    others = [LABELS[name] for name in _others(found)]
    header = ["", "trial", LABELS[found.search.objective], *others, "at epoch", "epochs", "time", "million multiply-adds", "ms per image"]
    shown = table(header, rows[:FIRST_ROWS], text_columns=(1,))
    if rows[FIRST_ROWS:]:
        summary = f"<summary>{plural(len(rows) - FIRST_ROWS, 'more trial')}</summary>"
        shown += f"<details>{summary}\n{table(header, rows[FIRST_ROWS:], text_columns=(1,))}</details>\n"
    left_out = len(found.board) - len(rows)
    note = f'<p class="muted">{left_out:,} more are in {TRIALS_FILE}.</p>\n' if left_out else ""
    return f"<h3>Leaderboard</h3>\n{shown}{note}"


def _others(found: _Findings) -> list[str]:
    """The figures beside the objective."""
    return [name for name in ("accuracy", "macro_f1", "nll", "ece") if name != found.search.objective]


def _row(found: _Findings, entry: LeaderboardEntry) -> list[str]:
    trial, epoch, objective = entry.trial, entry.epoch, found.search.objective
    cost = found.costs.get(trial.trial_id)
    return [
        f"{entry.rank}",
        _name(trial, found.parameters),
        f"<b>{_value(objective, entry.value)}</b>" + _seeds(entry),
        *(_value(name, epoch.value(name)) for name in _others(found)),
        f"{epoch.epoch:,}",
        f"{len(trial.epochs):,}",
        duration(trial.seconds),
        f"{cost.multiply_adds / 1e6:,.1f}" if cost else NOTHING,
        _milliseconds(cost.milliseconds if cost else None),
    ]


def _seeds(entry: LeaderboardEntry) -> str:
    """Of how many seeds a value is the mean."""
    if entry.seeds == 1:
        return ""
    return f"<small>mean of {entry.seeds} seeds, \N{PLUS-MINUS SIGN} {_value(entry.objective, entry.spread)}</small>"


def _name(trial: Trial, parameters: Sequence[VariedSetting]) -> str:
    """The trial, how it ended, and its values of the settings that mattered most."""
    chosen = [(one.name, trial.settings.get(one.name)) for one in parameters[:MOST_SETTINGS]]
    settings = ", ".join(f"{name} {worded(value)}" for name, value in chosen if value is not None)
    return f"{text(trial.trial_id)}, {text(trial.status)}<small>{text(settings)}</small>"


def _milliseconds(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}"


def _curves(found: _Findings, pictures: Mapping[str, bytes]) -> str:
    best = found.best
    if CURVES not in pictures or best is None:
        return ""
    label = LABELS[found.search.objective]
    alt = f"{label} and training loss of {plural(len(found.trials), 'trial')} over the epochs; best is {best.trial.trial_id}"
    caption = f"The best {min(BEST_CURVES, len(found.board))} in colour. Losses above nearly all others are cut off."
    return "<h3>Learning curves</h3>\n" + figure(pictures[CURVES], alt, caption)


def _coordinates(found: _Findings, pictures: Mapping[str, bytes]) -> str:
    if COORDINATES not in pictures:
        return "<h3>Settings and objective</h3>\n<p>There are not two trials with different settings to compare.</p>\n"
    shown = found.parameters[:MOST_AXES]
    label = LABELS[found.search.objective]
    alt = f"One line for each of {len(found.board)} trials through {', '.join(one.name for one in shown)} to its {label}"
    caption = f"Each line is a trial, the darker, the better; its {label} is on the last axis, the best on top. "
    caption += "The worst tenth shares the lowest place there. Axes of wide ranges are logarithmic."
    left_out = len(found.parameters) - len(shown)
    caption += f" {plural(left_out, 'setting')} that mattered least are left out." if left_out else ""
    return "<h3>Settings and objective</h3>\n" + figure(pictures[COORDINATES], alt, caption)


def _importance(found: _Findings, pictures: Mapping[str, bytes]) -> str:
    if not found.parameters or len(found.board) < 2:
        return ""
    importance = found.importance
    picture = ""
    if importance is None:
        note = f"It takes {MIN_TRIALS} trials that did not fail and that differ to say how much each setting matters; there are "
        note += f"{len(found.board)}."
    elif IMPORTANCE not in pictures:
        note = "No setting had an effect that can be told from chance with so few trials."
    else:
        note = "How much worse a random forest predicts the rank of trials that it did not see when one setting is shuffled, as shares. "
        note += _trust(importance.explained) + " Trials that were stopped early count with the best they had reached."
        alt = "Share of each setting: " + ", ".join(f"{name} {percent(share)}" for name, share in importance.shares.items())
        picture = figure(pictures[IMPORTANCE], alt, "")
    return f'<h3>Importance of each setting</h3>\n<p class="muted">{note}</p>\n{picture}{_parameters(found)}'


def _trust(explained: float) -> str:
    if explained <= 0.1:
        return "It predicts them hardly better than chance: do not read much into the shares."
    return f"It explains {percent(explained)} of the differences between them."


def _parameters(found: _Findings) -> str:
    """What was tried of each parameter, and what the best third has in common."""
    third = -(-len(found.board) // 3)
    shares = found.importance.shares if found.importance else {}
    best = found.best
    rows = []
    for one in found.parameters:
        share = percent(shares[one.name]) if one.name in shares else NOTHING
        chosen = worded(best.trial.settings.get(one.name)) if best else NOTHING
        rows.append([text(one.name), share, text(tried(one)), text(typical(first_of(one, third))), text(chosen)])
    header = ("setting", "importance", "tried", f"the best third ({third})", "the best trial")
    note = '<p class="muted">Of the best third: the median of numbers, else the most frequent value.</p>\n'
    return table(header, rows, text_columns=(2, 3, 4)) + note


def _costs(found: _Findings, pictures: Mapping[str, bytes]) -> str:
    label = LABELS[found.search.objective]
    title = f"<h3>{label[0].upper()}{label[1:]} against cost</h3>\n"
    points = found.points
    if COSTS not in pictures:
        return f"{title}<p>The cost of these networks is not known.</p>\n" if found.board else ""
    front = pareto_front([(point.multiply_adds, score(found.search.objective, point.value)) for point in points])
    rows = [
        [text(one.name), _value(found.search.objective, one.value), f"{one.multiply_adds / 1e6:,.1f}", _milliseconds(one.milliseconds)]
        for one in (points[index] for index in front)
    ]
    alt = f"{label} of {plural(len(points), 'trial')} over cost; on the Pareto front are {', '.join(points[index].name for index in front)}"
    caption = "The Pareto front: no other trial is as cheap and better, or cheaper and as good. Take the cheapest that is good enough."
    listed = table(("on the front", label, "million multiply-adds", "ms per image"), rows)
    note = '<p class="muted">Multiply-adds of convolutions and fully connected layers; times of batches of 64 on this machine.</p>\n'
    return title + figure(pictures[COSTS], alt, caption) + listed + note


def _failures(trials: Sequence[Trial]) -> str:
    """Trials that failed, by reason: what differs only in its numbers is one reason."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.status == FAILED:
            groups.setdefault(re.sub(r"0x[0-9a-fA-F]+|\d+", "#", _reason(trial)), []).append(trial)
    if not groups:
        return ""
    ordered = sorted(groups.values(), key=len, reverse=True)
    rows = [
        [text(_reason(group[0])), f"{len(group):,}", text(first_few(trial.trial_id for trial in group))] for group in ordered[:MOST_REASONS]
    ]
    more = len(ordered) - len(rows)
    note = f'<p class="muted">{plural(more, "more reason")} in {TRIALS_FILE}.</p>\n' if more else ""
    return "<h3>Failures</h3>\n" + table(("reason", "trials", "which"), rows, text_columns=(2,)) + note


def _reason(trial: Trial) -> str:
    """The error in one line, without the trial's own name, which would make every reason another."""
    words = " ".join((trial.error or "no reason was recorded").split()).replace(trial.trial_id, "the trial")
    return words if len(words) <= REASON_LENGTH else words[:REASON_LENGTH] + "\N{HORIZONTAL ELLIPSIS}"
