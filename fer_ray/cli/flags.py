"""From flags to a configuration, through cyclopts.

tyro (with OmitArgPrefixes) has flat names and suggestions too, but answers a wrong flag with a box and ends the process itself; here
it has to be one sentence that the caller prints. jsonargparse wants the nested names and suggested nothing.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fer_ray.config.flat import RECIPES, build, read_yaml
from fer_ray.config.options import OptionSpec, options_of
from fer_ray.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from cyclopts import App

Config = TypeVar("Config")
MAX_REASON = 500  # characters of what the parser says, which repeats what it was given
_GROUPS_FIRST = ("Input and output",)


def parse(
    config_class: type[Config], arguments: Sequence[str], description: str = "", name: str = "fer-ray", epilogue: str = "", takes: str = ""
) -> Config:
    """The configuration from flags, which win over the YAML file of `--config`, which wins over the defaults.

    Args:
        config_class: The options of the job.
        arguments: The command line without the program's name.
        description: What `--help` begins with.
        name: The program's name, for help and errors.
        epilogue: What `--help` ends with.
        takes: The option whose value may be given without its name.

    Raises:
        UsageError: an unknown flag or key, a value of a wrong type, or a file that cannot be read.
    """
    options = options_of(config_class)
    app = _app(options, description, name, epilogue, takes)
    with one_sentence(name):
        given = app(list(arguments), exit_on_error=False, print_error=False)
    if given is None:  # help was asked for
        sys.exit(EXIT_DONE)
    file = given.pop("config", None)
    return build(config_class, {**(read_yaml(file, options) if file else {}), **given})


@contextlib.contextmanager
def one_sentence(name: str) -> Iterator[None]:
    """Whatever the parser refuses becomes a UsageError of one sentence."""
    from cyclopts import CycloptsError

    try:
        yield
    except CycloptsError as error:
        reason = " ".join(str(error).split())[:MAX_REASON].rstrip(".")
        raise UsageError(f"{reason}{'' if reason.endswith('?') else '.'} See {name} --help.") from error


def _app(options: dict[str, OptionSpec], description: str, name: str, epilogue: str, takes: str) -> App:
    """A command whose flags are the options; it returns what was given of them."""
    from cyclopts import App, Group, Parameter

    names = [*_GROUPS_FIRST, *dict.fromkeys(option.group for option in options.values() if option.group not in _GROUPS_FIRST)]
    groups = {title: Group(title, sort_key=rank) for rank, title in enumerate(names)}

    def given(*first: Any, **values: Any) -> dict[str, Any]:
        values |= dict(zip([takes], first, strict=False))
        return {key: value for key, value in values.items() if value is not None}

    flags = {
        "config": Annotated[
            str | None, Parameter(help=_CONFIG_HELP, metavar="NAME|FILE", group=groups["Input and output"], show_default=False)
        ]
    }
    for option in options.values():
        parameter = Parameter(
            help=_help(option),
            metavar=option.metavar or None,
            group=groups[option.group],
            choices=option.choices or None,
            consume_multiple=option.many,
            negative_iterable=(),
            negative_none=(),
            show_default=False,
        )
        flags[option.name] = Annotated[option.annotation | None, parameter]
    kinds = {key: inspect.Parameter.POSITIONAL_OR_KEYWORD if key == takes else inspect.Parameter.KEYWORD_ONLY for key in flags}
    parameters = [inspect.Parameter(key, kinds[key], default=None, annotation=annotation) for key, annotation in flags.items()]
    given.__signature__ = inspect.Signature(sorted(parameters, key=lambda one: one.kind))  # type: ignore[attr-defined]  # for cyclopts
    given.__annotations__ = flags
    app = App(name, help=description, help_epilogue=epilogue, version_flags=(), help_format="plaintext", result_action="return_value")
    app.default(given)
    return app


_CONFIG_HELP = f"YAML file with the same names as these flags, or a recipe of the package: {', '.join(RECIPES)}; flags win"


def _help(option: OptionSpec) -> str:
    shown = " ".join(map(str, option.default)) if option.many else option.default
    if shown in ("", None) or shown is False:
        return option.help
    return f"{option.help} (default: {'on' if shown is True else shown})"
