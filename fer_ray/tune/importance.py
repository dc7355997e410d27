"""What the settings of a search had to do with how its trials did: which ones varied, how much each mattered, what the best had."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fer_ray.text import first_few
from fer_ray.tune.results import Trial
from fer_ray.typing import Float64Array, Int64Array

MIN_TRIALS = 8
TREES, FOLDS, REPEATS = 100, 5, 10
WIDE, MOST_WORDS = 20, 12
SEED = "seed"  # a setting of every recipe, but no hyperparameter


@dataclass(frozen=True)
class VariedSetting:
    """A setting that varied: its value in each of n trials, None in those that have no such setting."""

    name: str
    values: tuple[Any, ...]

    @property
    def there(self) -> list[Any]:
        """The values of the trials that have the setting."""
        return [value for value in self.values if value is not None]

    @property
    def numeric(self) -> bool:
        """Whether all values are numbers; true and false are none."""
        plain = (isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) for value in self.there)
        return bool(self.there) and all(plain)

    @property
    def logarithmic(self) -> bool:
        """Whether the numbers were spread by their ratios: all above 0, a wide range, and the median nearer to its geometric middle."""
        if not self.numeric or min(self.there) <= 0 or max(self.there) < WIDE * min(self.there):
            return False
        low, median, high = np.quantile(self.there, [0, 0.5, 1])
        ratio = np.log(median / low) / np.log(high / low)
        return bool(abs(ratio - 0.5) < abs((median - low) / (high - low) - 0.5))

    @property
    def words(self) -> list[str]:
        """The values as people read them."""
        return [worded(value) for value in self.values]

    def scaled(self) -> Float64Array:
        """The numbers (n,), their logarithms where it is `logarithmic`, NaN where there are none."""
        numbers = np.array([math.nan if value is None else float(value) for value in self.values])
        return np.log(numbers) if self.logarithmic else numbers

    def columns(self) -> Float64Array:
        """The setting as features (n, columns): a number and whether it is there, or one column for each category."""
        if not self.numeric:
            return np.stack([np.array(self.words) == word for word in sorted(set(self.words))], axis=1).astype(np.float64)
        numbers = self.scaled()
        absent = np.isnan(numbers)
        filled = np.where(absent, np.nanmedian(numbers), numbers)
        return np.stack([filled, absent], axis=1) if absent.any() else filled[:, None]


@dataclass(frozen=True)
class Importance:
    """Each parameter's share of what matters, adding up to 1 or all 0; `explained` is R^2 of trials that the forest did not see."""

    shares: dict[str, float]
    explained: float


def worded(value: Any) -> str:
    """A setting's value in a word: lists joined by a hyphen, numbers in four digits, `not used` for None."""
    if value is None:
        return "not used"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return "-".join(map(worded, value)) or "none"
    return str(value)


def varying(trials: Sequence[Trial], names: Sequence[str] = ()) -> list[VariedSetting]:
    """The settings that are not the same in all trials, by name; only those in `names` where any are given. The seed is none."""
    candidates = sorted({name for trial in trials for name in trial.settings} - {SEED})
    chosen = [name for name in candidates if not names or name in names]
    parameters = [VariedSetting(name, tuple(trial.settings.get(name) for trial in trials)) for name in chosen]
    return [one for one in parameters if len({json.dumps(value, sort_keys=True) for value in one.values}) > 1]


def measure_importance(parameters: Sequence[VariedSetting], gains: Float64Array) -> Importance | None:
    """How much worse a random forest predicts the trials' ranks (n,) when one parameter's values are shuffled among them.

    Permutation importance (Breiman 2001, "Random Forests", section 10) on trials that the forest did not see, in five folds;
    all columns of a parameter are shuffled together. Ranks, so that a few trials that diverged do not decide everything.
    None for fewer than 8 trials, or when they do not differ.
    """
    if len(gains) < MIN_TRIALS or not parameters or np.ptp(gains) == 0:
        return None
    from scipy.stats import rankdata
    from sklearn.model_selection import KFold

    blocks = [one.columns() for one in parameters]
    features, ranks = np.concatenate(blocks, axis=1), rankdata(gains) / len(gains)
    ends = np.cumsum([block.shape[1] for block in blocks])
    groups = [slice(int(end) - block.shape[1], int(end)) for end, block in zip(ends, blocks, strict=True)]
    generator = np.random.default_rng(0)
    raised, error = np.zeros(len(parameters)), 0.0
    for seen, unseen in KFold(FOLDS, shuffle=True, random_state=0).split(features):
        plain, shuffled = _errors(features, ranks, seen, unseen, groups, generator)
        error += plain
        raised += shuffled - plain
    kept = np.maximum(raised, 0)
    shares = kept / kept.sum() if kept.sum() > 0 else kept
    spread = float(((ranks - ranks.mean()) ** 2).sum())
    return Importance({one.name: float(share) for one, share in zip(parameters, shares, strict=True)}, 1 - error / spread)


def _errors(
    features: Float64Array,
    ranks: Float64Array,
    seen: Int64Array,
    unseen: Int64Array,
    groups: Sequence[slice],
    generator: np.random.Generator,
) -> tuple[float, Float64Array]:
    """The squared error on unseen trials, and with each group of columns drawn from other trials (groups,), averaged over repeats."""
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(TREES, min_samples_leaf=2, max_features=0.5, random_state=0).fit(features[seen], ranks[seen])
    trial_sets = [features[unseen]]
    for columns in groups:
        for _ in range(REPEATS):
            changed = features[unseen].copy()
            changed[:, columns] = features[generator.choice(len(features), len(unseen))][:, columns]
            trial_sets.append(changed)
    answers = forest.predict(np.concatenate(trial_sets)).reshape(len(trial_sets), len(unseen))
    errors = ((answers - ranks[unseen]) ** 2).sum(axis=1)
    return float(errors[0]), errors[1:].reshape(len(groups), REPEATS).mean(axis=1)


def tried(parameter: VariedSetting) -> str:
    """The values of a parameter in words: the range of numbers, or the categories."""
    if parameter.numeric:
        low, high = worded(min(parameter.there)), worded(max(parameter.there))
        return f"{low} to {high}" + (", or not used" if None in parameter.values else "")
    return first_few(sorted(set(parameter.words)), MOST_WORDS)


def typical(parameter: VariedSetting) -> str:
    """The median of a parameter's numbers, or its most frequent value and how often that is."""
    if parameter.numeric and len(parameter.there) * 2 > len(parameter.values):
        median = float(np.nanmedian(parameter.scaled()))
        return worded(math.exp(median) if parameter.logarithmic else median)
    word, count = Counter(parameter.words).most_common(1)[0]
    return f"{word} ({count} of {len(parameter.values)})"


def first_of(parameter: VariedSetting, count: int) -> VariedSetting:
    """The parameter in the first trials only."""
    return VariedSetting(parameter.name, parameter.values[:count])


def by_importance(parameters: Sequence[VariedSetting], importance: Importance | None) -> list[VariedSetting]:
    """The parameters, the one that matters most first; by name where nothing is known."""
    shares: Mapping[str, float] = importance.shares if importance else {}
    return sorted(parameters, key=lambda one: (-shares.get(one.name, 0.0), one.name))
