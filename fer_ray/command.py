"""From a command line to a job: flags and YAML become a config, errors one sentence and an exit code, the summary JSON."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from fer_ray.errors import FerRayError, UsageError

Config = TypeVar("Config")
_UPLOADS = "working_dir_files"  # where Ray 2.60 unpacks uploaded folders
EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_TOO_MANY_FAILED = 0, 1, 2, 3
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143  # 128 and the number of the signal, as shells do
EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration (nothing was written), "
    "3 done but too many images failed. The last line of the output is a summary in JSON."
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[0].upper()}{message[1:]}: see {self.prog} --help.")


def run_job(
    config_class: type[Config],
    job: Callable[[Config], tuple[Mapping[str, Any], int]],
    description: str,
    after_interruption: str = "start the same command again to finish the run",
) -> NoReturn:
    """Parse the command line into `config_class`, run `job`, print its summary as the last line, and exit with its code."""

    def terminate(number: int, frame: Any) -> NoReturn:
        # SIGTERM (`ray job stop`, a scheduler, a machine that shuts down): end at once, since whatever is half done is done again.
        os.write(2, f"error: terminated; {after_interruption}.\n".encode())
        os._exit(EXIT_TERMINATED)

    signal.signal(signal.SIGTERM, terminate)
    try:
        config = parse(config_class, sys.argv[1:], description)
        _check_output_lasts(getattr(config, "output", ""))
        summary, exit_code = job(config)
        _leave_ray()
    except FerRayError as error:
        _leave_ray()
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(f"error: interrupted; {after_interruption}.", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)
    print(json.dumps(summary), flush=True)
    sys.exit(exit_code)


def _leave_ray() -> None:
    """Let Ray end, where it was used: what it still has to say comes before the last line."""
    if cluster := sys.modules.get("fer_ray.cluster"):
        cluster.leave()


def _check_output_lasts(output: str) -> None:
    """Refuse an output inside the folder that `ray job submit --working-dir` uploaded: Ray removes it with the job."""
    relative = output and "://" not in output and not Path(output).is_absolute()
    if relative and _UPLOADS in Path.cwd().parts:
        raise UsageError(f"The output {output} would lie in Ray's copy of the working folder: give an absolute path or s3://bucket/prefix.")


def parse(config_class: type[Config], arguments: Sequence[str], description: str) -> Config:
    """The configuration from flags, which win over the YAML file of `--config`, which wins over the defaults.

    Raises:
        UsageError: an unknown flag or key, a value of a wrong type, or a file that cannot be read.
    """
    kinds = option_kinds(config_class)
    parser = _Parser(description=description, epilog=EXIT_CODES, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config", metavar="FILE", help="YAML file with the same names as these flags; flags win")
    for option_field, kind in kinds.values():
        _add_flag(parser, option_field, kind)
    given = vars(parser.parse_args(arguments))
    file = given.pop("config", None)
    values = {**(_read_yaml(file, kinds) if file else {}), **given}
    return build(config_class, values)


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


def _add_flag(parser: argparse.ArgumentParser, option_field: dataclasses.Field[Any], kind: Any) -> None:
    flag, default = "--" + option_field.name.replace("_", "-"), option_field.default
    shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
    help_text = option_field.metadata["help"] + ("" if shown in ("", None) else f" (default: {shown})")
    help_text = help_text.replace("%", "%%")
    if kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=help_text)
    elif typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        parser.add_argument(flag, nargs="+", action="extend", type=item, metavar=item.__name__.upper(), help=help_text)
    else:
        parser.add_argument(flag, type=kind, choices=option_field.metadata["choices"], metavar=_metavar(option_field, kind), help=help_text)


def _metavar(option_field: dataclasses.Field[Any], kind: Any) -> str | None:
    return None if option_field.metadata["choices"] else {int: "N", float: "X", str: "TEXT"}[kind]


def _read_yaml(file: str, kinds: Kinds) -> dict[str, Any]:
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
