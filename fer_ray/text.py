"""Words for people: names that come from strangers, numbers and lists in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"


def sanitize(text: str) -> str:
    """Names and errors come from strangers: what a terminal would obey is shown escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode() for char in text)


def first_few(names: Iterable[str], limit: int = 3) -> str:
    """The first few names, for a sentence."""
    listed = list(names)
    return ", ".join(listed[:limit]) + (" ..." if len(listed) > limit else "")


def plural(number: int, noun: str) -> str:
    """`1 image`, `1,200 images`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    """`40 s`, `12.5 min`, `3.2 h`."""
    if seconds < 90:
        return f"{seconds:.0f}{NO_BREAK_SPACE}s"
    return f"{seconds / 60:.1f}{NO_BREAK_SPACE}min" if seconds < 90 * 60 else f"{seconds / 3600:.1f}{NO_BREAK_SPACE}h"


def percent(share: float, digits: int = 0) -> str:
    """A share as people read it."""
    return f"{share:.{digits}%}".replace("%", f"{NO_BREAK_SPACE}%")


def round_floats(value: Any, digits: int = 4) -> Any:
    """The same JSON value with fractions of `digits` significant digits: 0.88532, 12345.678 -> 0.8853, 12346."""
    if isinstance(value, dict):
        return {key: round_floats(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [round_floats(item, digits) for item in value]
    if isinstance(value, float) and value and math.isfinite(value):
        rounded = round(value, max(0, digits - 1 - math.floor(math.log10(abs(value)))))
        return int(rounded) if abs(rounded) >= 10**digits else rounded
    return value
