"""What every config class is made of: fields that are also command-line flags, and checks that end in a sentence.

pydantic checks types, bounds and choices; whatever it finds wrong becomes one sentence that names the setting.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
from pydantic.dataclasses import dataclass as pydantic_dataclass

from fer_ray.errors import UsageError

PathText = Annotated[str, pydantic.AfterValidator(os.path.expanduser)]
"""A path or address, with `~` for the home folder; addresses such as s3://bucket/prefix stay as they are."""

Config = TypeVar("Config")
Option = TypeVar("Option")
_KINDS = {"int": "a whole number", "float": "a number", "finite": "a number", "bool": "true or false", "string": "text", "tuple": "a list"}
_ADAPTER: Any = pydantic.TypeAdapter
_MAX_NUMBER = 2**32 - 1  # the largest seed, and more than anything else needs
_PYDANTIC = pydantic.ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smh])")
_MAX_TIME = 1e6  # hours, and so of any unit
TRACKERS = ("mlflow", "wandb")
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def option(
    *,
    default: Option,
    help: str,
    metavar: str = "",
    group: str = "",
    choices: tuple[str, ...] = (),
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    kw_only: bool = False,
) -> Option:
    """A field of a config class that is also a command-line flag and a key of YAML files.

    Args:
        default: What holds where nothing is said.
        help: One phrase for `--help`.
        metavar: What stands for the value in `--help`, such as `N`, `DIR` or `SHARE`.
        group: The heading in `--help`; the class's own where it is empty.
        choices: The only values that are taken.
        gt: The value must be above this.
        ge: At least this.
        lt: Below this.
        le: At most this.
        kw_only: Whether it is given by name alone, so that a class may inherit it without a change of what comes first.
    """
    shown: Any = {"metavar": metavar, "group": group, "choices": list(choices)}
    pattern = f"^({'|'.join(choices)})$" if choices else None
    make: Any = pydantic.Field
    field: Option = make(
        default=default, description=help, json_schema_extra=shown, pattern=pattern, gt=gt, ge=ge, lt=lt, le=le, kw_only=kw_only
    )
    return field


@dataclass_transform(frozen_default=True, field_specifiers=(option, dataclasses.field))
def config(title: str) -> Callable[[type[Config]], type[Config]]:
    """Make a frozen class of options, whose checks raise a UsageError; `title` heads them in `--help`."""

    def decorate(cls: type[Config]) -> type[Config]:
        made: Any = pydantic_dataclass(cls, frozen=True, config=_PYDANTIC)
        made.options_title = title
        checked = made.__init__

        @functools.wraps(checked)
        def check_and_say(self: Any, *arguments: Any, **settings: Any) -> None:
            try:
                checked(self, *arguments, **settings)
            except pydantic.ValidationError as error:
                raise UsageError(f"{_complaint(error, made)}.") from error
            for field in dataclasses.fields(self):
                _check_value(field.name, getattr(self, field.name))

        made.__init__ = check_and_say
        return typing.cast("type[Config]", made)

    return decorate


def _check_value(name: str, value: Any) -> None:
    """What no option can be: a number that libraries do not take, or a text that is no name on any machine."""
    for item in value if isinstance(value, tuple) else (value,):
        if isinstance(item, (int, float)) and abs(item) > _MAX_NUMBER:
            raise UsageError(f"The setting {name} must be at most {_MAX_NUMBER:,}, not {reprlib.repr(item)}.")
        if isinstance(item, str) and ("\0" in item or not _is_a_name(item, written=name == "output")):
            raise UsageError(f"The setting {name} must be text in UTF-8 without zero bytes, not {reprlib.repr(item)}.")


def _is_a_name(text: str, written: bool) -> bool:
    """Whether files can have it; libraries that write want it in UTF-8, while what others named may hold any bytes."""
    try:
        text.encode() if written else os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _complaint(error: pydantic.ValidationError, config_class: Any) -> str:
    found = error.errors(include_url=False)[0]
    place = str(found["loc"][0]) if found["loc"] else ""
    if found["type"] in ("unexpected_keyword_argument", "missing_keyword_only_argument"):
        return f"{config_class.__name__} has no setting {place!r}"
    return f"The setting {place} must be {wanted(found)}"


def wanted(found: Mapping[str, Any]) -> str:
    """What pydantic asked for, in words: `above 0, not -1`.

    Args:
        found: One of a ValidationError's `errors()`.
    """
    bounds, value = found.get("ctx", {}), found["input"]
    for name, word in _BOUNDS.items():
        if name in bounds:
            return f"{word} {bounds[name]:g}, not {reprlib.repr(value)}"
    if found["type"] == "string_pattern_mismatch":
        return f"one of {', '.join(bounds['pattern'][2:-2].split('|'))}, not {reprlib.repr(value)}"
    kind = next((words for prefix, words in _KINDS.items() if found["type"].startswith(prefix)), found["msg"])
    return f"{kind}, not {reprlib.repr(value)}"


@dataclass(frozen=True)
class OptionSpec:
    """One option of a config class, as flags, YAML files and search spaces need it."""

    name: str
    annotation: Any
    default: Any
    help: str
    metavar: str
    group: str
    choices: tuple[str, ...]
    adapter: Callable[[], pydantic.TypeAdapter[Any]]

    @property
    def kind(self) -> Any:
        """The type of a value, without the None of what need not be said."""
        parts = [part for part in typing.get_args(self.annotation) if part is not type(None)]
        return parts[0] if isinstance(self.annotation, types.UnionType) else self.annotation

    @property
    def many(self) -> bool:
        """Whether it takes several values."""
        return typing.get_origin(self.annotation) is tuple


def options_of(config_class: Any) -> dict[str, OptionSpec]:
    """Every option of a config class and of the config classes inside it, by name."""
    hints = typing.get_type_hints(config_class, include_extras=True)
    found: dict[str, OptionSpec] = {}
    for name, field in config_class.__pydantic_fields__.items():
        if dataclasses.is_dataclass(hints[name]):
            found.update(options_of(hints[name]))
            continue
        shown = field.json_schema_extra
        kind = functools.reduce(lambda bare, bound: Annotated[bare, bound], field.metadata, hints[name])
        found[name] = OptionSpec(
            name,
            hints[name],
            field.default,
            field.description,
            shown["metavar"],
            shown["group"] or config_class.options_title,
            tuple(shown["choices"]),
            functools.partial(_ADAPTER, kind, config=_PYDANTIC),
        )
    return found


def seconds_of(name: str, text: str) -> float:
    """A time such as 90m in seconds.

    Raises:
        UsageError: it is none; `name` is what the sentence calls it.
    """
    match = _DURATION.fullmatch(text)
    if match is None or not 0 < float(match[1]) < _MAX_TIME:
        raise UsageError(f"The {name} {reprlib.repr(text)} must be a number with s, m or h, such as 90m.")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def check_tracker(target: str) -> None:
    """Refuse what names no tracker; the place is not shown, since people put passwords into it."""
    system, _, place = target.partition(":")
    check(not target or (system in TRACKERS and bool(place)), "The setting track takes mlflow:URI or wandb:PROJECT.")


def check(condition: bool, sentence: str) -> None:
    """Raise a UsageError with the sentence unless the condition holds."""
    if not condition:
        raise UsageError(sentence)


def check_part(config: Any, *names: str) -> None:
    """These fields must be fractions of 1 or whole numbers above 0, where they are set: shares of a CPU or GPU, or several."""
    for name in names:
        amount = getattr(config, name)
        fitting = amount is None or (amount > 0 and (amount < 1 or amount == int(amount)))
        check(fitting, f"The setting {name} must be a fraction of 1 or a whole number, not {amount}.")
