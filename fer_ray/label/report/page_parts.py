"""What the page about a labeling run is made of: shares and times in words, rows and tables, bars."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fer_ray.reporting.html import text
from fer_ray.text import percent

NOTHING, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
ADDRESS_LENGTH = 160


def short(words: str, length: int) -> str:
    """Words with their middle left out where they are longer."""
    return words if len(words) <= length else f"{words[: length // 2]}\N{HORIZONTAL ELLIPSIS}{words[-length // 2 + 1 :]}"


def share_of(total: float, part: float, digits: int = 1) -> str:
    """The share of a part in percent; a dash where there is nothing to have a share of."""
    return percent(part / total, digits) if total else NOTHING


def points(difference: float) -> str:
    """A difference of shares in percentage points."""
    rounded = f"{100 * difference:+.1f}"
    return "0.0" if float(rounded) == 0 else rounded.replace("-", MINUS)


def utc(moment: datetime.datetime) -> str:
    """A moment to the second."""
    return f"{moment.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def table_row(attributes: Mapping[str, Any], cells: Iterable[str]) -> str:
    """A row of cells (HTML); the attributes are what the filters of the page go by."""
    given = "".join(f' data-{name}="{text(value)}"' for name, value in attributes.items())
    return f"<tr{given}>{''.join(cells)}</tr>\n"


def rows_table(header: Sequence[str], rows: Iterable[str], name: str = "", kind: str = "wide") -> str:
    """A table that scrolls by itself; `header` has words, or whole cells."""
    head = "".join(cell if cell.startswith("<th") else f"<th>{cell}</th>" for cell in header)
    identity = f' id="{name}"' if name else ""
    return (
        f'<div class="scroll {kind}"{identity}><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{"".join(rows)}</tbody>\n</table></div>\n'
    )


def value_cells(values: Mapping[str, str]) -> list[str]:
    """Cells that the page's script fills anew when something is chosen."""
    return [f'<td data-cell="{name}">{value}</td>' for name, value in values.items()]


def plain_cells(cells: Iterable[str]) -> list[str]:
    """Cells of HTML that may be whole cells already."""
    return [cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in cells]


def tinted_shares(counts: Mapping[str, int], emotions: Sequence[str]) -> list[str]:
    """Shares, the larger the darker."""
    total = sum(counts.values())
    return [
        f'<i style="--share:{counts.get(name, 0) / total:.3f}">{share_of(total, counts.get(name, 0), 0)}</i>' if total else NOTHING
        for name in emotions
    ]


def upright_bars(bars: Sequence[tuple[float, str, str]]) -> str:
    """Upright bars of a value, what it is for (HTML), and its unit."""
    most = max([value for value, *_ in bars] + [1e-9])
    spans = ""
    for value, label, unit in bars:
        kind, height = "" if value else ' class="none"', f"{100 * value / most:.4g}%"
        title = f"{label}: {value:,.6g} {unit}"
        spans += f'<span{kind} style="height:{height}" data-range="{label}" title="{title}"></span>'
    return f'<div class="bars">{spans}</div>\n'
