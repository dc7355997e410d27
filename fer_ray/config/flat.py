"""From flat names and values, as YAML files hold them, to config classes, which are nested."""

from __future__ import annotations

import dataclasses
import difflib
import reprlib
import typing
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from fer_ray.config.options import OptionSpec, wanted
from fer_ray.errors import UsageError

Config = TypeVar("Config")
MAX_YAML_BYTES = 64 << 10
MAX_DEPTH = 8  # a mapping with lists has 2
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
RECIPES = ("classic", "fer2013", "ferplus", "ferplus_robust")


def read_yaml(name: str, options: Mapping[str, OptionSpec]) -> dict[str, Any]:
    """The settings in a YAML file or in a recipe that comes with the package, converted to the types of their options.

    Args:
        name: A path, or one of `RECIPES`.
        options: What the job can be told.

    Raises:
        UsageError: it cannot be read, or holds an unknown name or a value of a wrong type.
    """
    content = _load(name)
    if not isinstance(content, dict):
        raise UsageError(f"The configuration file {name} must hold one `name: value` a line.")
    values = {}
    for key, value in content.items():
        option = str(key).replace("-", "_")
        if option not in options:
            raise UsageError(
                f"The key {reprlib.repr(key)} in {name} is no setting of this job{did_you_mean(option, options)} --help lists them."
            )
        values[option] = convert(value, options[option], name)
    return values


def _load(name: str) -> Any:
    """What YAML makes of the file."""
    import yaml

    try:
        file = Path(name).expanduser()
        bundled = name in RECIPES and not file.exists()
        with (resources.files("fer_ray.config") / "recipes" / f"{name}.yaml").open("rb") if bundled else file.open("rb") as opened:
            content = opened.read(MAX_YAML_BYTES + 1)
        if len(content) > MAX_YAML_BYTES:
            raise ValueError(f"it is larger than {MAX_YAML_BYTES:,} bytes")
        text = content.decode()
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.CollectionStartEvent) and event.anchor:  # lists of lists of the same list unfold to gigabytes
                raise ValueError(f"the anchor &{event.anchor[:40]} stands at a list or mapping: write it out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:  # the time that YAML takes grows with its square
                raise ValueError("it is nested too deeply")
        loader = yaml.SafeLoader(text)
        resolvers = loader.yaml_implicit_resolvers  # dates stay text, which the setting reads
        loader.yaml_implicit_resolvers = {first: [one for one in found if one[0] != _TIMESTAMP] for first, found in resolvers.items()}
        return loader.get_single_data()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"The configuration file {name} cannot be read ({reason}).") from error


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
            raise UsageError(f"The key {option.name!r} in {file} must be a value, not {reprlib.repr(value)}.")
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
