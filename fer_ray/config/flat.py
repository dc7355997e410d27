"""From flat names and values, as YAML files hold them, to config classes, which are nested."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from fer_ray.config.options import OptionSpec, wanted
from fer_ray.errors import UsageError

Config = TypeVar("Config")
RECIPES = ("classic", "fer2013", "ferplus")


def read_yaml(name: str, options: Mapping[str, OptionSpec]) -> dict[str, Any]:
    """The settings in a YAML file or in a recipe that comes with the package, converted to the types of their options.

    Args:
        name: A path, or one of `RECIPES`.
        options: What the job can be told.

    Raises:
        UsageError: it cannot be read, or holds an unknown name or a value of a wrong type.
    """
    import yaml

    file = Path(name).expanduser()
    try:
        bundled = name in RECIPES and not file.exists()
        text = (resources.files("fer_ray.config") / "recipes" / f"{name}.yaml").read_text("utf-8") if bundled else file.read_text("utf-8")
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"The configuration file {name} cannot be read ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict):
        raise UsageError(f"The configuration file {name} must hold one `name: value` a line.")
    values = {}
    for key, value in content.items():
        option = str(key).replace("-", "_")
        if option not in options:
            raise UsageError(f"The key {key!r} in {name} is no setting of this job{did_you_mean(option, options)} --help lists them.")
        values[option] = convert(value, options[option], name)
    return values


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: `: did you mean epochs?`, or a colon where nothing is like it."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f": did you mean {near[0]}?" if near else ":"


def convert(value: Any, option: OptionSpec, file: str) -> Any:
    """A value of a YAML file as its flag would give it.

    Args:
        value: What YAML made of it; a single value stands for a list of one.
        option: The setting.
        file: Where it was found, for the sentence.

    Raises:
        UsageError: it is of another type than the setting, out of bounds, or none of its choices.
    """
    if hasattr(value, "isoformat"):  # YAML makes dates of dates
        value = value.isoformat()
    items = value if isinstance(value, list) else [value]
    if option.many:
        value = tuple(items)
    truths = any(isinstance(item, bool) for item in items)
    try:
        if truths and option.annotation is not bool:
            raise UsageError(f"The key {option.name!r} in {file} must be a value, not {value!r}.")
        return option.adapter().validate_python(value)
    except pydantic.ValidationError as error:
        raise UsageError(f"The key {option.name!r} in {file} must be {wanted(error.errors(include_url=False)[0])}.") from error


def build(config_class: type[Config], values: Mapping[str, Any]) -> Config:
    """A config, with the config classes inside it, from flat settings; names that it does not have are left out.

    Raises:
        UsageError: the config refuses a value.
    """
    hints = typing.get_type_hints(config_class)
    arguments: dict[str, Any] = {}
    for name in (field.name for field in dataclasses.fields(config_class)):  # type: ignore[arg-type]  # all are dataclasses
        if dataclasses.is_dataclass(hints[name]):
            arguments[name] = build(hints[name], values)
        elif name in values:
            arguments[name] = values[name]
    return config_class(**arguments)
