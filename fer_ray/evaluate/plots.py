"""Pictures about a model's answers as PNG bytes. Names in them come from strangers: nothing in them is markup."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fer_ray.evaluate.history import History
from fer_ray.models.metrics import Bins
from fer_ray.reporting.plotting import BLUE, GRID, INK, MODEL_COLORS, MUTED, ORANGE, RED, figure, percent_axis, shorten
from fer_ray.text import percent
from fer_ray.typing import Float32Array, Float64Array, Int64Array, UInt8Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes


SHEET_WIDTH = 11.4
GRID_COLUMNS = 10  # faces side by side
FACE_COLUMNS = 10  # faces with their heat maps side by side
FILTER_COLUMNS = 11  # feature maps side by side


@dataclass(frozen=True)
class Answer:
    """One face as it is shown: pixels (s, s) gray or (s, s, 3) RGB uint8, what it is, and what the model said."""

    pixels: UInt8Array
    name: str
    label: str
    predicted: str
    confidence: float

    @property
    def correct(self) -> bool:
        """Whether the model said what the label says."""
        return self.label == self.predicted


def draw_confusion(counts: Int64Array, rows: Sequence[str], columns: Sequence[str]) -> bytes:
    """Counts (rows, columns) and their shares of the true class, one row per true class."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with figure(1.6 + 0.82 * len(columns), 1.3 + 0.66 * len(rows)) as (sheet, png):
        axes = sheet.add_subplot()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
            color = "white" if share > 0.55 else INK
            axes.text(column, row - 0.12, percent(share), ha="center", va="center", color=color, fontsize=10)
            axes.text(column, row + 0.24, f"{counts[row, column]:,}", ha="center", va="center", color=color, fontsize=7, alpha=0.8)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")
        axes.set_title("Share of each label's faces, and their number", loc="left")
    return png.getvalue()


def draw_reliability(bins: Bins, before: Bins) -> bytes:
    """Accuracy over confidence in bins, after and before calibration, with how many faces each bin holds."""
    edges = np.linspace(0, 1, len(bins.count) + 1)
    middle, width = (edges[1:] + edges[:-1]) / 2, edges[1] * 0.92
    filled, filled_before = bins.count > 0, before.count > 0
    with figure(5.4, 5.6) as (sheet, png):
        upper, lower = sheet.subplots(2, 1, sharex=True, height_ratios=(4, 1.1))
        upper.bar(middle[filled], bins.accuracy[filled], width, color=BLUE, alpha=0.85, label=_ece("accuracy", bins))
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--", label="perfectly calibrated")
        upper.plot(
            before.confidence[filled_before],
            before.accuracy[filled_before],
            "o-",
            color=ORANGE,
            markersize=4,
            linewidth=1,
            label=_ece("before calibration", before),
        )
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        upper.legend(loc="upper left", fontsize=8)
        lower.bar(middle, bins.count, width, color=MUTED)
        lower.set(xlabel="confidence", ylabel="faces")
        percent_axis(upper.yaxis)
        percent_axis(lower.xaxis)
    return png.getvalue()


def _ece(name: str, bins: Bins) -> str:
    return f"{name} (ECE {bins.expected_calibration_error:.3f})"


def draw_curves(history: History) -> bytes:
    """Losses, validation figures and the learning rate over the epochs; dashed lines where the learning rate fell to half or less."""
    panels: tuple[tuple[str, tuple[tuple[str, str, Float64Array], ...]], ...] = (
        ("loss", (("training loss", ORANGE, history.train_loss), ("validation NLL", BLUE, history.nll))),
        ("validation", (("accuracy", BLUE, history.accuracy), ("macro F1", "#2f855a", history.macro_f1))),
        ("learning rate", (("learning rate", MUTED, history.learning_rate),)),
    )
    marker = "o" if len(history.epoch) < 3 else None
    with figure(10.5, 3.1) as (sheet, png):
        for axes, (title, lines) in zip(sheet.subplots(1, 3), panels, strict=True):
            for name, color, values in lines:
                axes.plot(history.epoch, values, color=color, marker=marker, markersize=3, label=name)
            for index, epoch in enumerate(history.drops):
                axes.axvline(epoch, color=RED, linewidth=0.8, linestyle="--", label="learning rate fell" if index == 0 else None)
            axes.set_title(title, loc="left")
            axes.set_xlabel("epoch")
            axes.grid(axis="y")
            axes.legend(fontsize=7)
        percent_axis(sheet.axes[1].yaxis)
        _learning_rate(sheet.axes[2], history.learning_rate)
    return png.getvalue()


def _learning_rate(axes: Axes, rate: Float64Array) -> None:
    """Steps of several powers of ten need a logarithmic axis; a cosine, which ends at nothing, does not."""
    from matplotlib.ticker import NullFormatter

    if rate.min() > 0 and 10 < rate.max() / rate.min() < 1e5:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter("{x:g}")


def draw_answers(answers: Sequence[Answer]) -> bytes:
    """A sheet of faces with label, answer, confidence and file name; wrong answers are framed in red and have a cross."""
    with _sheet(len(answers), GRID_COLUMNS, above=0.2, below=0.34) as (grid, png):
        for axes, answer in zip(grid, answers, strict=False):
            _show(axes, answer.pixels)
            _frame(axes, MUTED if answer.correct else RED, 0.6 if answer.correct else 2.4)
            said = f"{answer.predicted} {percent(answer.confidence)}"
            axes.set_title(said if answer.correct else f"\N{BALLOT X} {said}", fontsize=8.5, color=INK if answer.correct else RED, pad=3)
            axes.set_xlabel(f"label: {answer.label}\n{shorten(answer.name)}", fontsize=6.8, color=MUTED, labelpad=2)
    return png.getvalue()


def draw_heat_maps(answers: Sequence[Answer], heat: Float32Array) -> bytes:
    """Faces, and below each the same with its Grad-CAM heat map (n, s, s) 0..1 of the predicted class."""
    with _sheet(2 * len(answers), len(answers), above=0.2, below=0.2) as (grid, png):
        for index, (answer, evidence) in enumerate(zip(answers, heat, strict=True)):
            upper, lower = grid[index], grid[len(answers) + index]
            for axes in (upper, lower):
                _show(axes, answer.pixels)
                _frame(axes, MUTED if answer.correct else RED, 0.6 if answer.correct else 2.4)
            lower.imshow(evidence, cmap="jet", alpha=0.45, vmin=0, vmax=1)
            upper.set_title(f"label: {answer.label}", fontsize=8, pad=3)
            said = f"{answer.predicted} {percent(answer.confidence)}"
            lower.set_xlabel(said, fontsize=8, color=INK if answer.correct else RED, labelpad=3)
    return png.getvalue()


def draw_activations(face: UInt8Array, maps: Float32Array, most: int = 6 * FILTER_COLUMNS - 1) -> bytes:
    """A face, and what each filter (filters, height, width) of the first convolution makes of it, each in its own range of values."""
    with _sheet(1 + len(maps[:most]), FILTER_COLUMNS, above=0.16, below=0.0) as (grid, png):
        for index, axes in enumerate(grid):
            if index == 0:
                _show(axes, face)
            else:
                axes.imshow(maps[index - 1], cmap="viridis")
            _frame(axes, BLUE if index == 0 else GRID, 2.0 if index == 0 else 0.6)
            axes.set_title("face" if index == 0 else f"filter {index}", fontsize=6.5, color=MUTED, pad=2)
    return png.getvalue()


def draw_comparison(
    accuracy: Mapping[str, tuple[float, float, float]], f1: Mapping[str, Mapping[str, float]], classes: Sequence[str]
) -> bytes:
    """Models side by side: accuracy with its interval (value, low, high), and the F1 of each class, by the model's name."""
    names = list(accuracy)
    with figure(10.5, max(3.0, 0.45 * len(names) + 1.2, 0.42 * len(classes) + 1.2)) as (sheet, png):
        left, right = sheet.subplots(1, 2, width_ratios=(1, 1.3))
        offsets = np.linspace(-0.22, 0.22, len(names)) if len(names) > 1 else [0.0]
        for index, name in enumerate(names):
            color, (value, low, high) = MODEL_COLORS[index % len(MODEL_COLORS)], accuracy[name]
            left.errorbar(value, index, xerr=[[max(0, value - low)], [max(0, high - value)]], fmt="o", color=color, capsize=4)
            positions = np.arange(len(classes)) + offsets[index]
            right.plot([f1[name].get(one, np.nan) for one in classes], positions, "o", color=color, label=shorten(name, 40))
        left.set_yticks(range(len(names)), [shorten(name) for name in names])
        left.set_title("Accuracy with its 95 % interval", loc="left")
        left.locator_params(axis="x", nbins=5)
        percent_axis(left.xaxis)
        right.set_yticks(range(len(classes)), classes)
        right.set_title("F1 of each class", loc="left")
        right.set_xlim(0, 1)
        for axes, count in ((left, len(names)), (right, len(classes))):
            axes.set_ylim(count - 0.5, -0.5)
            axes.grid(axis="x")
        right.legend(fontsize=7.5, loc="lower center", bbox_to_anchor=(0.5, 1.06), ncols=3)
    return png.getvalue()


@contextmanager
def _sheet(tiles: int, columns: int, above: float, below: float) -> Iterator[tuple[list[Axes], io.BytesIO]]:
    """So many square axes in columns with room above and below each, in inches; placed by hand, which is far quicker than a layout."""
    rows, margin = -(-tiles // columns), 0.06
    width = SHEET_WIDTH / max(columns, GRID_COLUMNS)
    side, row = width - margin, width - margin + above + below + margin
    with figure(width * columns, row * rows + margin, layout=None) as (sheet, png):
        full_width, full_height = sheet.get_size_inches()
        grid = []
        for index in range(tiles):
            left, bottom = index % columns * width + margin / 2, (rows - 1 - index // columns) * row + margin + below
            grid.append(sheet.add_axes((left / full_width, bottom / full_height, side / full_width, side / full_height)))
        yield grid, png


def _show(axes: Axes, pixels: UInt8Array) -> None:
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)


def _frame(axes: Axes, color: str, width: float) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(visible=True, color=color, linewidth=width)
