"""What every config class is made of: fields that are also command-line flags, and checks that end in a sentence."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from fer_ray.errors import UsageError


def option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field that is also a command-line flag."""
    return field(default=default, metadata={"help": help, "choices": choices})


def check(condition: bool, sentence: str) -> None:
    """Raise a UsageError with the sentence unless the condition holds."""
    if not condition:
        raise UsageError(sentence)


def check_share(config: Any, *names: str) -> None:
    """These fields must lie in 0..1."""
    for name in names:
        check(0 <= getattr(config, name) <= 1, f"The setting {name} must lie between 0 and 1, not {getattr(config, name)}.")


def check_positive(config: Any, *names: str) -> None:
    """These fields must be above 0."""
    for name in names:
        check(getattr(config, name) > 0, f"The setting {name} must be above 0, not {getattr(config, name)}.")


def check_part(config: Any, *names: str) -> None:
    """These fields must be fractions of 1 or whole numbers above 0, where they are set: shares of a CPU or GPU, or several."""
    for name in names:
        amount = getattr(config, name)
        fitting = amount is None or (amount > 0 and (amount < 1 or amount == int(amount)))
        check(fitting, f"The setting {name} must be a fraction of 1 or a whole number, not {amount}.")
