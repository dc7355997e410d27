"""From a command line to a job: flags and YAML become a config, errors one sentence and an exit code, the summary JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from fer_ray.cli.logs import set_up_logging
from fer_ray.config.flat import build, option_kinds, read_yaml
from fer_ray.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, FerRayError, UsageError
from fer_ray.text import round_floats

Config = TypeVar("Config")
_UPLOADS = "working_dir_files"  # where Ray 2.60 unpacks uploaded folders
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
    set_up_logging()
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
    print(json.dumps(round_floats(dict(summary))), flush=True)
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
    values = {**(read_yaml(file, kinds) if file else {}), **given}
    return build(config_class, values)


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
