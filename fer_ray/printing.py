"""Words for people: names that come from strangers, numbers and lists in sentences."""

from __future__ import annotations

from collections.abc import Iterable


def printable(text: str) -> str:
    """Names and errors come from strangers: what a terminal would obey is shown escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode() for char in text)


def some(names: Iterable[str], limit: int = 3) -> str:
    """The first few names, for a sentence."""
    listed = list(names)
    return ", ".join(listed[:limit]) + (" ..." if len(listed) > limit else "")


def counted(number: int, noun: str) -> str:
    """`1 image`, `1,200 images`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
