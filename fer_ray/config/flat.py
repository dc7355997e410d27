"""From flat names and values, as YAML files hold them, to config classes, which are nested."""

from __future__ import annotations

import contextlib
import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from fer_ray.errors import UsageError

Config = TypeVar("Config")
Kinds = dict[str, tuple["dataclasses.Field[Any]", Any]]


def option_kinds(config_class: Any) -> Kinds:
    """Every option of a config class and of the config classes inside it, by name."""
    hints = typing.get_type_hints(config_class)
    kinds: Kinds = {}
    for option_field in dataclasses.fields(config_class):
        kind = hints[option_field.name]
        if dataclasses.is_dataclass(kind):
            kinds.update(option_kinds(kind))
        else:
            kinds[option_field.name] = (option_field, _without_none(kind))
    return kinds


def _without_none(kind: Any) -> Any:
    if isinstance(kind, types.UnionType):
        (kind,) = (part for part in typing.get_args(kind) if part is not type(None))
    return kind


def read_yaml(file: str, kinds: Kinds) -> dict[str, Any]:
    """The settings in a YAML file, converted to the kinds of their options.

    Raises:
        UsageError: it cannot be read, or holds an unknown name or a value of a wrong type.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"The configuration file {file} cannot be read ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict):
        raise UsageError(f"The configuration file {file} must hold one `name: value` a line.")
    values = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in kinds:
            raise UsageError(f"The key {key!r} in {file} is no setting of this job: --help lists them.")
        values[name] = convert(name, value, *kinds[name], file)
    return values


def convert(name: str, value: Any, option_field: dataclasses.Field[Any], kind: Any, file: str) -> Any:
    """A YAML value as its flag would give it.

    Raises:
        UsageError: it is of another type than the setting, or none of its choices; the sentence says so of the key in `file`.
    """
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        items = value if isinstance(value, list) else [value]
        return tuple(_convert_scalar(name, part, item, file) for part in items)
    converted = _convert_scalar(name, value, kind, file)
    choices = option_field.metadata["choices"]
    if choices and converted not in choices:
        raise UsageError(f"The key {name!r} in {file} must be one of {', '.join(choices)}, not {value!r}.")
    return converted


def _convert_scalar(name: str, value: Any, kind: type, file: str) -> Any:
    accepted = {float: (int, float), str: (str, int, float)}.get(kind, (kind,))
    if kind is str and hasattr(value, "isoformat"):
        value = value.isoformat()
    if kind is float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)  # YAML 1.1 takes 1e-3 for text: it wants 1.0e-3
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"The key {name!r} in {file} must be a {kind.__name__}, not {value!r}.")
    return kind(value)


def build(config_class: type[Config], values: Mapping[str, Any]) -> Config:
    """A config, with the config classes inside it, from flat settings; names that it does not have are left out.

    Raises:
        UsageError: the config refuses a value.
    """
    hints = typing.get_type_hints(config_class)
    arguments: dict[str, Any] = {}
    for name in (option_field.name for option_field in dataclasses.fields(config_class)):  # type: ignore[arg-type]  # all are dataclasses
        if dataclasses.is_dataclass(hints[name]):
            arguments[name] = build(hints[name], values)
        elif name in values:
            value = values[name]
            arguments[name] = tuple(value) if isinstance(value, list) else value
    return config_class(**arguments)
