"""A search space: which recipes a search may try, how they are drawn, and the check that all of them can be trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from fer_ray.config.flat import build
from fer_ray.config.options import check, options_of
from fer_ray.config.recipe import Recipe
from fer_ray.errors import UsageError
from fer_ray.tune.space.parameter import Parameter, Trial
from fer_ray.tune.space.parse import SpaceFile

SPACES = ("compact", "classic")
MAX_BYTES = 1 << 20
# Draws that check a space: for each value some tries to reach it, and on top of that some at random for combinations.
_TRIES = 300
_RANDOM_DRAWS = 500

Settings = dict[str, Any]


class Description(NamedTuple):
    """One line of a report about a space."""

    name: str
    kind: str
    values: str
    log: bool


@dataclass(frozen=True)
class Space:
    """The settings of a search in the order of their file, each with its alternatives; of these the first that applies is drawn.

    A setting none of whose alternatives applies is absent from what is drawn: the recipe's default holds. `text` is the file.

    Example:
        >>> space = read_space("compact")
        >>> settings = space.random(np.random.default_rng(0))
        >>> recipe = space.recipe(settings)
    """

    file: str
    text: str
    groups: tuple[tuple[Parameter, ...], ...]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Everything that the file says of settings, constants included."""
        return tuple(parameter for group in self.groups for parameter in group)

    def suggest(self, trial: Trial) -> Settings:
        """The flat settings that a trial of Optuna proposes; only what applies is asked for."""
        return self._draw(lambda parameter: parameter.suggest(trial))

    def random(self, generator: np.random.Generator) -> Settings:
        """Flat settings drawn at random."""
        return self._draw(lambda parameter: parameter.random(generator))

    def vary(self, settings: Mapping[str, Any], names: Collection[str], generator: np.random.Generator) -> Settings:
        """Flat settings in the neighbourhood of others: those named are changed a little, within the space."""
        known = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}

        def pick(parameter: Parameter) -> Any:
            value = known.get(parameter.setting)
            if value is None or not parameter.takes(value):
                return parameter.random(generator)
            return parameter.vary(value, generator) if parameter.setting in names else value

        return self._draw(pick)

    def settings(self, proposed: Mapping[str, Any]) -> Settings:
        """The flat settings behind the parameters that a study has stored for a trial (`trial.params`)."""
        return self._draw(lambda parameter: parameter.values[0] if parameter.fixed else parameter.decode(proposed[parameter.name]))

    def proposed(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The parameters that a study would have stored for these settings; None where the space does not hold them."""
        known = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
        drawn: Settings = {}
        stored: dict[str, Any] = {}
        for group in self.groups:
            parameter = _applying(group, drawn)
            if parameter is None:
                continue
            value = known.get(parameter.setting, parameter.values[0] if parameter.fixed else None)
            if value is None or not parameter.takes(value):
                return None
            drawn[parameter.setting] = value
            if not parameter.fixed:
                stored[parameter.name] = parameter.encode(value)
        return stored

    def grid(self, points: int) -> Iterator[Settings]:
        """Every combination once, with `points` values of each range.

        Raises:
            UsageError: fewer than one point.
        """
        check(points >= 1, f"A grid needs one point of each range at least, not {points}.")
        return self._grid({}, 0, points)

    def grid_size(self, points: int) -> int:
        """How many combinations `grid` gives, without going through them.

        Raises:
            UsageError: fewer than one point.
        """
        check(points >= 1, f"A grid needs one point of each range at least, not {points}.")
        asked = [{other for group in self.groups[index:] for p in group for other, _ in p.conditions} for index in range(len(self.groups))]

        @cache
        def count(index: int, known: tuple[tuple[str, Any], ...]) -> int:
            if index == len(self.groups):
                return 1
            # What no later setting asks about is forgotten, so that equal remainders are counted once.
            settings = {name: value for name, value in known if name in asked[index]}
            parameter = _applying(self.groups[index], settings)
            if parameter is None:
                return count(index + 1, tuple(settings.items()))
            values = parameter.grid(points)
            if parameter.setting not in asked[index]:
                return len(values) * count(index + 1, tuple(settings.items()))
            return sum(count(index + 1, (*settings.items(), (parameter.setting, value))) for value in values)

        return count(0, ())

    def recipe(self, settings: Mapping[str, Any]) -> Recipe:
        """The recipe of flat settings.

        Raises:
            UsageError: they do not go together.
        """
        return build(Recipe, settings)

    def describe(self) -> list[Description]:
        """What is searched and what is held constant, for a report."""
        return [Description(parameter.name, parameter.kind, parameter.text(), parameter.log) for parameter in self.parameters]

    def _draw(self, pick: Callable[[Parameter], Any]) -> Settings:
        settings: Settings = {}
        for group in self.groups:
            parameter = _applying(group, settings)
            if parameter is not None:
                settings[parameter.setting] = pick(parameter)
        return settings

    def _grid(self, settings: Settings, index: int, points: int) -> Iterator[Settings]:
        if index == len(self.groups):
            yield settings
            return
        parameter = _applying(self.groups[index], settings)
        if parameter is None:
            yield from self._grid(settings, index + 1, points)
            return
        for value in parameter.grid(points):
            yield from self._grid({**settings, parameter.setting: value}, index + 1, points)


def _applying(group: tuple[Parameter, ...], settings: Settings) -> Parameter | None:
    return next((parameter for parameter in group if parameter.applies(settings)), None)


def read_space(path: str) -> Space:
    """The space in a YAML file, or one that comes with the project by its name; see `fer_ray/spaces` for the form.

    Raises:
        UsageError: the file is missing or too large, or something in it is wrong: the sentence names the line.
    """
    file = Path(str(resources.files("fer_ray.tune.space") / f"{path}.yaml")) if path in SPACES else Path(path)
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"There is no search space {path}: give a YAML file, or one of {', '.join(SPACES)}.") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"The search space {path} cannot be read ({error}): give a YAML file in UTF-8.") from error
    check(len(content) <= MAX_BYTES, f"The search space {path} has more than {MAX_BYTES:,} bytes: give a YAML file of settings.")
    return parse_space(text, str(file))


def parse_space(text: str, file: str) -> Space:
    """The space that a YAML text describes; `file` is what errors call it.

    Raises:
        UsageError: something in it is wrong: the sentence names the line.
    """
    space = Space(file, text, SpaceFile(text, file, options_of(Recipe)).read())
    generator = np.random.default_rng(0)
    for parameter in space.parameters:
        for value in parameter.bounds():
            _check(space, _reach(space, parameter, value, generator))
    for _ in range(_RANDOM_DRAWS):
        _check(space, space.random(generator))
    return space


def _reach(space: Space, parameter: Parameter, value: Any, generator: np.random.Generator) -> Settings:
    """Random settings with this value; what it depends on is steered towards its conditions."""
    wanted = _wanted(space, parameter)

    def pick(other: Parameter) -> Any:
        if other is parameter:
            return value
        hits = [hit for hit in wanted.get(other.setting, ()) if other.takes(hit)]
        return hits[int(generator.integers(len(hits)))] if hits else other.random(generator)

    for _ in range(_TRIES):
        settings = space._draw(pick)
        group = next(group for group in space.groups if parameter in group)
        if _applying(group, settings) is parameter:
            return settings
    raise UsageError(f"{space.file}:{parameter.line}: this line for {parameter.setting} never applies: correct its `when`, or remove it.")


def _wanted(space: Space, parameter: Parameter) -> dict[str, tuple[Any, ...]]:
    """The values that the conditions of a parameter ask for, and those that their own conditions ask for."""
    wanted = dict(parameter.conditions)
    for group in reversed(space.groups):
        for other in group:
            if other.setting in wanted and any(other.takes(value) for value in wanted[other.setting]):
                wanted = {**dict(other.conditions), **wanted}
    return wanted


def _check(space: Space, settings: Settings) -> None:
    """Refuse settings of which no recipe can be made; the line is that of the last setting that has to do with it."""
    sentence = _refusal(space, settings)
    if sentence is None:
        return
    drawn = {group[0].setting: parameter for group in space.groups if (parameter := _applying(group, settings))}
    guilty = {name: settings[name] for name in settings if _cures(space, settings, drawn[name])} or _core(space, settings, sentence)
    name = list(guilty)[-1]
    parameter = drawn[name]
    values = " with ".join(f"{other} {list(value) if isinstance(value, tuple) else value}" for other, value in reversed(guilty.items()))
    raise UsageError(f"{space.file}:{parameter.line_of(settings[name])}: no recipe can have {values}: {sentence}")


def _cures(space: Space, settings: Settings, parameter: Parameter) -> bool:
    """Another value of this setting alone, or none, would make a recipe of the settings."""
    rest = {name: value for name, value in settings.items() if name != parameter.setting}
    others = ({**rest, parameter.setting: value} for value in parameter.bounds())
    return any(_refusal(space, changed) is None for changed in (rest, *others))


def _core(space: Space, settings: Settings, sentence: str) -> Settings:
    """The settings that are left when everything is taken away without which the trouble stays the same."""
    core = dict(settings)
    for name in settings:
        rest = {other: value for other, value in core.items() if other != name}
        core = rest if _refusal(space, rest) == sentence else core
    return core


def _refusal(space: Space, settings: Settings) -> str | None:
    try:
        space.recipe(settings)
    except UsageError as error:
        return str(error)
    return None


def to_yaml(settings: Mapping[str, Any]) -> str:
    """Flat settings as a file that `jobs/train.py --config` takes."""
    lines = ["# A recipe that a search found: fer-ray train --config THIS_FILE --dataset DATA --output MODEL\n"]
    for name, value in settings.items():
        several = isinstance(value, (tuple, list))
        plain = {name: list(value) if several else value}
        lines.append(yaml.safe_dump(plain, default_flow_style=None if several else False, width=1000))
    return "".join(lines)
