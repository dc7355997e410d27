"""What moved in a night beside the nights before it: like folders with like, and the mix of folders apart from that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fer_ray.label.report.aggregates import MIN_NIGHTS, FolderNight, RunAggregates, add_up, history_of_the_like
from fer_ray.label.report.drift import MIN_FACES, chi_squared, stability_index
from fer_ray.label.report.summary import LABELS, OTHERS, RunSummary

CHANCE = 0.001  # that a night rings although nothing moved, whatever the number of its folders


@dataclass(frozen=True)
class Change:
    """What moved; None where there is too little to compare.

    Attributes:
        drift_psi: PSI of the folder that moved most, less what sampling adds to it; 0 where chance explains all of it.
        drift_folder: That folder; None for the small ones together, or where none moved.
        mix_psi: PSI of the emotions that tonight's mix of folders leads one to expect, against those of all nights before.
        faces_ratio: Faces for each image against the nights before, in the same folders.
    """

    drift_psi: float | None = None
    drift_folder: str | None = None
    mix_psi: float | None = None
    faces_ratio: float | None = None


@dataclass(frozen=True)
class _Stratum:
    """Faces that are compared with faces of the same kind. `noise` is the variance of their shares, in those of one face."""

    folder: str | None
    now: Mapping[str, float]
    before: Mapping[str, float]
    noise: float

    def moved(self, chance: float) -> float | None:
        """The index less what noise adds to it, 0 where it is not beyond chance; None with too few faces."""
        index = stability_index(self.now, self.before)
        if index is None:
            return None
        freedom = max(1, sum(1 for name in LABELS if self.now.get(name) or self.before.get(name)) - 1)
        return index - self.noise * freedom if index > self.noise * chi_squared(freedom, chance) else 0.0


def compare_nights(summary: RunSummary, earlier: Sequence[RunAggregates]) -> Change:
    """What moved in a run since earlier ones of the same model."""
    now = {name: FolderNight(Counter(one.emotions), one.looked_at) for name, one in summary.folders.items()}
    change = compare_folders(now, history_of_the_like(earlier, summary), add_up(one.emotions for one in earlier))
    if change.drift_folder is None:
        return change
    return Change(change.drift_psi, summary.base + change.drift_folder, change.mix_psi, change.faces_ratio)


def compare_folders(now: Mapping[str, FolderNight], history: Mapping[str, Sequence[FolderNight]], before: Mapping[str, int]) -> Change:
    """The same from counts.

    Args:
        now: What the run found by folder.
        history: What each earlier run found in the same folder, or in its like.
        before: Faces of all earlier runs by emotion.
    """
    usual = {name: add_up(night.emotions for night in nights) for name, nights in history.items() if len(nights) >= MIN_NIGHTS}
    known = [name for name in now if name != OTHERS and sum(usual.get(name, Counter()).values()) >= MIN_FACES]
    small = [name for name in known if sum(now[name].emotions.values()) < MIN_FACES]
    strata = [_Stratum(name, now[name].emotions, usual[name], _noise(now[name], history[name])) for name in known if name not in small]
    if small:
        strata.append(_together(small, now, usual, history))
    moves = [(moved, one.folder) for one in strata if (moved := one.moved(CHANCE / len(strata))) is not None]
    drift, folder = max(moves, key=lambda move: move[0], default=(None, None))
    return Change(drift, folder if drift else None, _mix(now, usual, known, before), _faces_ratio(now, history))


def _expected(names: Sequence[str], now: Mapping[str, FolderNight], usual: Mapping[str, Counter[str]]) -> dict[str, float]:
    """Faces by emotion that so many faces in these folders would have, had no folder changed."""
    scales = {name: sum(now[name].emotions.values()) / sum(usual[name].values()) for name in names}
    return {emotion: sum(usual[name][emotion] * scale for name, scale in scales.items()) for emotion in LABELS}


def _together(
    names: Sequence[str], now: Mapping[str, FolderNight], usual: Mapping[str, Counter[str]], history: Mapping[str, Sequence[FolderNight]]
) -> _Stratum:
    """Folders with too few faces of their own, as one with the mix of tonight on both sides."""
    total = add_up(now[name].emotions for name in names)
    faces = max(1, sum(total.values()))
    weights = {name: sum(now[name].emotions.values()) / faces for name in names}
    noise = sum(weight**2 * _noise(now[name], history[name]) for name, weight in weights.items() if weight)
    scale = sum(sum(usual[name].values()) for name in names) / faces
    return _Stratum(None, total, {emotion: n * scale for emotion, n in _expected(names, now, usual).items()}, noise)


def _noise(now: FolderNight, nights: Sequence[FolderNight]) -> float:
    """How far shares of tonight lie from those of all nights before when nothing moves.

    More than samples of the same faces would: a wedding is one night's and not the next one's. How alike the faces of a night
    are comes from chi-squared of the nights before, as in a Dirichlet-multinomial distribution; a folder that changes from night
    to night has moved only when it moves more.
    """
    total = add_up(night.emotions for night in nights)
    faces, sizes = sum(total.values()), [sum(night.emotions.values()) for night in nights]
    squares = 0.0
    for night, size in zip(nights, sizes, strict=True):
        expected = {emotion: n * size / faces for emotion, n in total.items() if n and size}
        squares += sum((night.emotions[emotion] - n) ** 2 / n for emotion, n in expected.items())
    freedom = max(1, sum(map(bool, total.values())) - 1)
    excess = squares / freedom - (sum(map(bool, sizes)) - 1)
    possible = sum((size - 1) * (1 - size / faces) for size in sizes if size)
    alike = min(1.0, max(0.0, excess / possible)) if possible > 0 else 0.0
    nights_before = sum((size / faces) ** 2 for size in sizes)
    return alike * (1 + nights_before) + (1 - alike) * (1 / sum(now.emotions.values()) + 1 / faces)


def _mix(
    now: Mapping[str, FolderNight], usual: Mapping[str, Counter[str]], known: Sequence[str], before: Mapping[str, int]
) -> float | None:
    """Folders that are new are part of the mix, with what they hold."""
    new = add_up(one.emotions for name, one in now.items() if name not in known)
    expected = _expected(known, now, usual)
    return stability_index({name: expected[name] + new[name] for name in LABELS}, before)


def _faces_ratio(now: Mapping[str, FolderNight], history: Mapping[str, Sequence[FolderNight]]) -> float | None:
    found, expected = 0, 0.0
    for name, nights in history.items():
        counted = [night for night in nights if night.images]
        if len(counted) >= MIN_NIGHTS:
            faces = sum(sum(night.emotions.values()) for night in counted)
            expected += now[name].images * faces / sum(night.images for night in counted)
            found += sum(now[name].emotions.values())
    return found / expected if expected >= MIN_FACES else None
