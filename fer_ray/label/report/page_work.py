"""How a labeling run went, as sections of the page about it: images a minute, and what it was told."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

from fer_ray.label.report.page_parts import ADDRESS_LENGTH, NOTHING, short, table_row, upright_bars, utc
from fer_ray.label.report.summary import RunFigures
from fer_ray.reporting.html import text
from fer_ray.text import duration

MOST_BARS, LEAST_BARS = 120, 4
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)


def throughput(figures: RunFigures) -> str:
    """Images a minute over the time of the run; nothing where it was too short for a picture."""
    if not figures.times:
        return ""
    first, last = min(figures.times), max(figures.times)
    step = next(
        (step for step in _STEPS if step >= figures.time_step and (last - first) / step < MOST_BARS), (last - first) // MOST_BARS + 1
    )
    counts = [0] * ((last - first) // step + 1)
    for second, n in figures.times.items():
        counts[(second - first) // step] += n
    if len(counts) < LEAST_BARS:
        return ""
    bars = []
    for number, n in enumerate(counts):
        moment = datetime.datetime.fromtimestamp(first + number * step, datetime.UTC)
        bars.append((n * 60 / step, f"{moment:%Y-%m-%d %H:%M:%S}", "images a minute"))
    start, end = (f"{datetime.datetime.fromtimestamp(second, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC" for second in (first, last))
    return (
        f'<h2>Throughput</h2>\n<p class="muted">Images a minute, in steps of {duration(step)}; the highest bar is '
        f"{max(counts) * 60 / step:,.0f}. Images count when the part of up to 512 that they belong to was done.</p>\n"
        f'<div id="throughput">{upright_bars(bars)}<div class="scale"><span>{start}</span><span>{end}</span></div></div>\n'
    )


def details(row: Mapping[str, Any]) -> str:
    """The run's row in `runs`: places, times, versions and settings."""
    facts = {
        "run": row["run_id"],
        "run date": row["run_date"],
        "status": row["status"],
        "input": short(row["input_uri"], 4 * ADDRESS_LENGTH),
        "started": utc(row["started_at"]),
        "finished": utc(row["finished_at"]),
        "model": row["model_version"],
        "detector": row["detector_version"],
        "fer_ray": row["fer_ray_version"],
        "Ray": row["ray_version"],
        "commit": row["git_commit"] or NOTHING,
        "CPUs, GPUs": f"{row['cpu_count']}, {row['gpu_count']}",
    }
    rows = [table_row({}, [f"<td>{name}</td>", f"<td>{text(value)}</td>"]) for name, value in facts.items()]
    lines = json.dumps(json.loads(row["config_json"])["config"], indent=2).splitlines()
    settings = "\n".join(text(line) for line in lines)
    listed = f'<div class="scroll details"><table><tbody>\n{"".join(rows)}</tbody></table></div>\n'
    return f"<h2>The run</h2>\n{listed}<details><summary>All settings</summary><pre>{settings}</pre></details>\n"
