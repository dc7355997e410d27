"""How far the emotions of a run moved since earlier runs, and whether that is more than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

from fer_ray.label.report.summary import LABELS

PSI_WATCH = 0.1  # above: the shares may be moving
PSI_MOVED = 0.2  # above: they have moved
MIN_FACES = 200  # on both sides; fewer say nothing about shares
MOVED = "moved"
WATCHED = "watched"
_SMOOTHING = 0.5  # faces that are added to each count
_CHANCE = 0.001  # that what is marked has not moved


@dataclass(frozen=True)
class Drift:
    """A stability index, None with too few faces, and MOVED, WATCHED or nothing."""

    index: float | None
    level: str


def stability_index(now: Mapping[str, float], before: Mapping[str, float]) -> float | None:
    """Population stability index (PSI) of two sets of counts, sum of (p - q) ln(p / q); None where either has too few faces.

    Half a face is added to every count, so that an emotion that is missing on one side has a share (Jeffreys' prior). Below
    0.1 is called stable and above 0.2 moved (Siddiqi, Credit Risk Scorecards, 2006).
    """
    faces, faces_before = sum(now.values()), sum(before.values())
    if min(faces, faces_before) < MIN_FACES:
        return None
    names = [name for name in LABELS if now.get(name) or before.get(name)]
    extra = _SMOOTHING * len(names)
    shares = [
        ((now.get(name, 0) + _SMOOTHING) / (faces + extra), (before.get(name, 0) + _SMOOTHING) / (faces_before + extra)) for name in names
    ]
    return sum((p - q) * math.log(p / q) for p, q in shares)


def chi_squared(freedom: int, chance: float) -> float:
    """What chi-squared with so many degrees of freedom exceeds with this chance, 3 % too high at most (Wilson and Hilferty, 1931).

    SciPy, which knows it exactly, would be a seventh of what an installation that labels takes.
    """
    spread = 2 / (9 * freedom)
    return float(freedom * (1 - spread + NormalDist().inv_cdf(1 - chance) * math.sqrt(spread)) ** 3)


def measure_drift(now: Mapping[str, int], before: Mapping[str, int]) -> Drift:
    """How far the shares moved, and whether that is to be looked at.

    By chance alone the index is about (1/n + 1/m) chi-squared with one degree of freedom less than there are emotions
    (Yurdakul, Statistical Properties of Population Stability Index, 2018); what that reaches once in a thousand times counts
    as none.
    """
    index = stability_index(now, before)
    if index is None:
        return Drift(None, "")
    freedom = max(1, sum(1 for name in LABELS if now.get(name) or before.get(name)) - 1)
    by_chance = (1 / sum(now.values()) + 1 / sum(before.values())) * chi_squared(freedom, _CHANCE)
    level = MOVED if index > PSI_MOVED else WATCHED if index > PSI_WATCH else ""
    return Drift(index, level if index > by_chance else "")


@dataclass(frozen=True)
class Comparison:
    """The faces of a folder, a day or a whole run by emotion, beside those of earlier runs."""

    now: Mapping[str, int]
    before: Mapping[str, int]

    @property
    def faces(self) -> int:
        return sum(self.now.values())

    @property
    def faces_before(self) -> int:
        return sum(self.before.values())

    @cached_property
    def drift(self) -> Drift:
        return measure_drift(self.now, self.before)

    def largest_moves(self, limit: int = 3) -> list[tuple[str, float, float]]:
        """The emotions whose shares differ most: name, share before, share now. Both sides need faces."""
        total, total_before = self.faces, self.faces_before
        shares = [(name, self.before.get(name, 0) / total_before, self.now.get(name, 0) / total) for name in LABELS]
        return sorted(shares, key=lambda one: -abs(one[2] - one[1]))[:limit]
