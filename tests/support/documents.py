"""The commands and snippets that README and docs print."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_OPERATORS = (">>", "2>&1", "|", "&&", "<")  # of a shell, where they are words of their own
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: `language` is `sh` for lines that run as printed, `python` for snippets, empty for lines with names to fill in."""

    page: Path
    language: str
    text: str

    @property
    def lines(self) -> list[str]:
        """The commands, continuation lines joined, comments left out."""
        joined = self.text.replace("\\\n", " ")
        return [line for line in (re.sub(r"\s+#.*", "", line).strip() for line in joined.splitlines()) if line and not line.startswith("#")]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [Block(page, language, text) for language, text in _FENCE.findall(page.read_text(encoding="utf-8"))]


def section(page: Path, heading: str) -> list[Block]:
    """The fenced blocks below one heading, up to the next of its rank."""
    text = page.read_text(encoding="utf-8")
    below = re.split(rf"^#+ {re.escape(heading)}\n", text, flags=re.MULTILINE)[1]
    return [Block(page, language, found) for language, found in _FENCE.findall(re.split(r"^## ", below, flags=re.MULTILINE)[0])]


def jobs_of(line: str) -> Iterator[tuple[str, list[str]]]:
    """The jobs that a line starts, as `fer-ray NAME` or `python jobs/NAME.py`, with their arguments."""
    for match in re.finditer(r"(?:\bfer-ray |python jobs/)([a-z_]+)(?:\.py)?((?: .*)?)$", line):
        yield match[1], list(itertools.takewhile(lambda word: word not in _OPERATORS, shlex.split(match[2])))


def read_as_documented(output: Path) -> list[dict[str, Any]]:
    """The names that the examples of docs/tables.md for pandas, polars and pyarrow leave: `runs` and `images` among them."""
    from tables_page import tables_document  # benchmarks that read documents have no path to tools

    block = next(code for code in re.findall(r"```python\n(.*?)```", tables_document(), re.DOTALL) if "# polars" in code)
    _, *parts = re.split(r"^# (\w+)\n", block, flags=re.MULTILINE)
    snippets = dict(zip(parts[::2], parts[1::2], strict=True))
    del snippets["Spark"]  # not among the test's packages
    assert len(snippets) == 3
    answers = []
    for code in snippets.values():
        names: dict[str, Any] = {"output": str(output)}
        exec(code, names)
        answers.append(names)
    return answers
