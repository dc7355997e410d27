"""The page's sections about parts of the faces: degraded ones, and those of each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fer_ray.evaluate import plots
from fer_ray.evaluate.breakdown import gap_sentence
from fer_ray.reporting.html import NOTHING
from fer_ray.text import percent

NEUTRAL = "neutral"  # what a model says of faces in which it sees little


def of_parts(one: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sections about parts of the faces: degraded ones, and those of each group."""
    found = []
    if one["degraded"]:
        rows = [(row["condition"], row) for row in one["degraded"]]
        found.append({"heading": "On poorer pictures", "condition": True, "gap": None, **_section("the faces are", rows)})
    for column, parts in one["groups"].items():
        rows = [(row["group"], row) for row in parts["groups"]]
        found.append({"heading": f"By {column}", "condition": False, "gap": gap_sentence(parts["largest_gap"]), **_section(column, rows)})
    return found


def _section(what: str, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """A table of figures, a chart of accuracies, and a table of the recall of each class."""
    classes = [row["class"] for row in rows[0][1]["per_class"]]
    places = [place for place in range(len(classes)) if any(row["per_class"][place]["images"] for _, row in rows)]
    followed = [place for place in places if classes[place] == NEUTRAL]
    columns = [what, "faces", "accuracy", "interval", "mean recall", "mean confidence", "ECE"]
    table = []
    for name, row in rows:
        figures, (low, high) = row["figures"], row["intervals"]["accuracy"]
        counts = [row["per_class"][place] for place in followed]
        table.append(
            (
                name,
                f"{row['samples']:,}",
                percent(figures["accuracy"], 1),
                f"{100 * low:.1f}\N{EN DASH}{100 * high:.1f}",
                percent(figures["mean_recall"], 1),
                percent(figures["confidence"], 1),
                f"{figures['ece']:.3f}",
                *(percent(count[key] / row["samples"]) for count in counts for key in ("images", "predicted")),
            )
        )
    recall = [(name, *(_recall(row["per_class"][place]) for place in places)) for name, row in rows]
    return {
        "columns": [*columns, *(["neutral", "called neutral"] if followed else [])],
        "rows": table,
        "recall_columns": [what, *(classes[place] for place in places)],
        "recall": recall,
        "chart": plots.parts("Accuracy with its 95 % interval, and mean confidence", rows),
    }


def _recall(row: Mapping[str, Any]) -> str:
    return NOTHING if row["recall"] is None else percent(row["recall"])
