"""What the pictures have in common: their look, text that cannot be markup, and a figure that ends as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1f2933"
MUTED = "#6b7785"
GRID = "#e4e7eb"
BLUE = "#2b6cb0"
ORANGE = "#dd7a1d"
RED = "#c0392b"
MODEL_COLORS = (BLUE, ORANGE, "#2f855a", "#805ad5", "#b7791f", "#319795")
DPI = 110  # dots per inch: sharp on a page, small as a file
NAME_LENGTH = 18  # letters that fit below a face
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "legend.frameon": False,
}


@contextmanager
def figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Iterator[tuple[Figure, io.BytesIO]]:
    """A figure of so many inches that is a PNG when the block ends; no window and no shared state of pyplot is involved."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    png = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        sheet = Figure(figsize=(width, height), layout=layout, facecolor="white")
        FigureCanvasAgg(sheet)
        yield sheet, png
        sheet.savefig(png, format="png", dpi=DPI, metadata={"Software": None})


def shorten(name: str, length: int = NAME_LENGTH) -> str:
    """The last part of a name as a picture can show it, as `fit` does."""
    return fit(PurePosixPath(name).name or name, length)


def fit(words: str, length: int = NAME_LENGTH) -> str:
    """Words as a picture can show them: without control characters or letters that the font lacks, and not too long."""
    shown = "".join(char if char.isprintable() and ord(char) in _letters() else "?" for char in words)
    return shown if len(shown) <= length else f"{shown[: length // 2 - 1]}\N{HORIZONTAL ELLIPSIS}{shown[-(length // 2) :]}"


@cache
def _letters() -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())


def percent_axis(axis: Any) -> None:
    """Show the shares along an axis in percent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1, decimals=None))
