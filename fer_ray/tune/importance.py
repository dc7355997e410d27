"""What the settings of a search had to do with how its trials did: which ones varied, how much each mattered, what the best had."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fer_ray.text import first_few
from fer_ray.tune.results import Trial
from fer_ray.typing import Float64Array

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MIN_TRIALS = 8  # below, shares of importance are noise
FOLDS = 5  # of the cross-validation that says how far to trust the shares
TREES = 64  # in a forest, as many as optuna grows
MIN_RATIO = 20  # of the largest to the smallest number, for a scale to be logarithmic
MAX_WORDS = 12  # categories that a cell of a table lists
SEED = "seed"  # a setting of every recipe, but no hyperparameter


@dataclass(frozen=True)
class VariedSetting:
    """A setting that varied: its value in each of n trials, None in those that have no such setting."""

    name: str
    values: tuple[Any, ...]

    @property
    def present(self) -> list[Any]:
        """The values of the trials that have the setting."""
        return [value for value in self.values if value is not None]

    @property
    def numeric(self) -> bool:
        """Whether all values are numbers; true and false are none."""
        plain = (isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) for value in self.present)
        return bool(self.present) and all(plain)

    @property
    def logarithmic(self) -> bool:
        """Whether the numbers were spread by their ratios: all above 0, a wide range, and the median nearer to its geometric middle."""
        if not self.numeric or min(self.present) <= 0 or max(self.present) < MIN_RATIO * min(self.present):
            return False
        low, median, high = np.quantile(self.present, [0, 0.5, 1])
        ratio = np.log(median / low) / np.log(high / low)
        return bool(abs(ratio - 0.5) < abs((median - low) / (high - low) - 0.5))

    @property
    def words(self) -> list[str]:
        """The values as people read them."""
        return [format_value(value) for value in self.values]

    @property
    def median(self) -> float:
        """Of the numbers, or of their logarithms where the setting is `logarithmic`."""
        numbers = np.array(self.present, np.float64)
        return float(np.exp(np.median(np.log(numbers)))) if self.logarithmic else float(np.median(numbers))

    def first(self, count: int) -> VariedSetting:
        """The setting in the first trials only."""
        return VariedSetting(self.name, self.values[:count])


@dataclass(frozen=True)
class Importance:
    """Each setting's share of what matters, adding up to 1; `explained` is R^2 of trials that the forest did not see."""

    shares: dict[str, float]
    explained: float


def format_value(value: Any) -> str:
    """A setting's value in a word: lists joined by a hyphen, numbers in four digits, `not used` for None."""
    if value is None:
        return "not used"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return "-".join(map(format_value, value)) or "none"
    return str(value)


def varied_settings(trials: Sequence[Trial], names: Sequence[str] = ()) -> list[VariedSetting]:
    """The settings that are not the same in all trials, by name; only those in `names` where any are given. The seed is none."""
    candidates = sorted({name for trial in trials for name in trial.settings} - {SEED})
    chosen = [name for name in candidates if not names or name in names]
    settings = [VariedSetting(name, tuple(trial.settings.get(name) for trial in trials)) for name in chosen]
    return [one for one in settings if len({json.dumps(value, sort_keys=True) for value in one.values}) > 1]


def measure_importance(settings: Sequence[VariedSetting], scores: Float64Array) -> Importance | None:
    """Each setting's share of what tells good trials from bad ones, by optuna's mean decrease of impurity in a random forest.

    It ranks the settings of `benchmarks/recorded_search` as shuffling them does; optuna's fANOVA puts widths before the learning
    rate there. Ranks of trials, so that a few that diverged do not decide everything. How far to trust the shares optuna does
    not say: that is the R^2 of a forest on trials that it did not see.

    Args:
        settings: Those that varied, each with a value for every trial.
        scores: The trials' objective (n,), more is better.

    Returns:
        None for fewer than 8 trials, or when they do not differ.
    """
    if len(scores) < MIN_TRIALS or not settings or np.ptp(scores) == 0:
        return None
    import optuna
    from scipy.stats import rankdata

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would tell of every study
    ranks = rankdata(scores) / len(scores)
    columns = [_column(one) for one in settings]
    distributions = {one.name: distribution for one, (distribution, _) in zip(settings, columns, strict=True)}
    study = optuna.create_study(direction="maximize")
    for index, rank in enumerate(ranks):
        values = {one.name: column[index] for one, (_, column) in zip(settings, columns, strict=True)}
        study.add_trial(optuna.trial.create_trial(params=values, distributions=distributions, value=float(rank)))
    evaluator = optuna.importance.MeanDecreaseImpurityImportanceEvaluator(n_trees=TREES, seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    features = [[distribution.to_internal_repr(value) for value in column] for distribution, column in columns]
    return Importance({one.name: float(shares[one.name]) for one in settings}, _explained(np.array(features).T, ranks))


def _column(setting: VariedSetting) -> tuple[BaseDistribution, list[Any]]:
    """The setting as optuna takes it, which leaves out settings that some trials lack: these get the median of the others."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if not setting.numeric or len(set(setting.present)) == 1:
        return CategoricalDistribution(sorted(set(setting.words))), setting.words
    filled = [setting.median if value is None else float(value) for value in setting.values]
    return FloatDistribution(min(filled), max(filled), log=setting.logarithmic), filled


def _explained(features: Float64Array, ranks: Float64Array) -> float:
    """R^2 of a forest's answers to the trials (n, settings) that it did not see."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.metrics import r2_score
    from sklearn.model_selection import KFold, cross_val_predict

    forest = RandomForestRegressor(TREES, min_samples_leaf=2, random_state=0)
    folds = KFold(FOLDS, shuffle=True, random_state=0)
    return float(r2_score(ranks, cross_val_predict(forest, features, ranks, cv=folds)))


def tried_values(setting: VariedSetting) -> str:
    """The values of a setting in words: the range of numbers, or the categories."""
    if setting.numeric:
        low, high = format_value(min(setting.present)), format_value(max(setting.present))
        return f"{low} to {high}" + (", or not used" if None in setting.values else "")
    return first_few(sorted(set(setting.words)), MAX_WORDS)


def typical_value(setting: VariedSetting) -> str:
    """The median of a setting's numbers, or its most frequent value and how often that is."""
    if setting.numeric and len(setting.present) * 2 > len(setting.values):
        return format_value(setting.median)
    word, count = Counter(setting.words).most_common(1)[0]
    return f"{word} ({count} of {len(setting.values)})"


def by_importance(settings: Sequence[VariedSetting], importance: Importance | None) -> list[VariedSetting]:
    """The settings, the one that matters most first; by name where nothing is known."""
    shares: Mapping[str, float] = importance.shares if importance else {}
    return sorted(settings, key=lambda one: (-shares.get(one.name, 0.0), one.name))
