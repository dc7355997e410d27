"""The page about a labeling run: one HTML file with everything in it, of a size that does not grow with the run."""

from __future__ import annotations

import base64
import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from fer_ray.io.storage import join
from fer_ray.label.plan import Run
from fer_ray.label.report.drift import (
    LARGE,
    LEAST_FACES,
    MOVED,
    NOTABLE,
    Drift,
    RunRecord,
    drift_of,
    earlier_runs,
    emotions_by_folder,
    pooled,
    record_of,
    write_record,
)
from fer_ray.label.report.page_parts import (
    ADDRESS_LENGTH,
    NOTHING,
    plain_cells,
    points,
    rows_table,
    share_of,
    short,
    table_row,
    tinted_shares,
    upright_bars,
    utc,
    value_cells,
)
from fer_ray.label.report.page_work import details, throughput
from fer_ray.label.report.samples import FaceSample, read_samples
from fer_ray.label.report.summary import BINS, LABELS, OTHERS, STATUSES, FolderFigures, RunFigures, measure
from fer_ray.reporting.html import data, document, text
from fer_ray.reporting.responsible_use import RESPONSIBLE_USE
from fer_ray.text import NO_BREAK_SPACE as SPACE
from fer_ray.text import duration, percent, plural

PAGE_FILE = "report.html"
MOST_FOLDERS, MOST_DAYS, MOST_ERROR_ROWS = 50, 40, 200
SAMPLES_PER_EMOTION, DOUBTFUL_SAMPLES, NAMED_PARTS = 6, 12, 6
NAME_LENGTH, SENTENCE_LENGTH = 40, 300
_MEANINGS = {
    "ok": "with faces",
    "no_face": "no face found",
    "unreadable": "could not be fetched",
    "undecodable": "not an image, or a broken one",
    "too_large": "over the limits of the run",
}
_RESPONSIBLE = " ".join(RESPONSIBLE_USE)
_PSI = (
    "PSI, the population stability index, says how far the shares of the emotions have moved: the sum over the emotions of "
    "(p \N{MINUS SIGN} q) ln(p / q), where p is an emotion's share of the faces here and q its share among those it is compared with, "
    "after half a face is added to every count. It is 0 for equal shares; below "
    f"{NOTABLE} counts as stable, above {LARGE} as moved. It takes {LEAST_FACES} faces on both sides, and is "
    "marked only where chance alone would give as much less than once in a thousand times."
)


@dataclass(frozen=True)
class RunReport:
    """What the page shows: the run's row in `runs`, its figures, the earlier runs of the same model, and pictures of faces.

    `samples` holds those of each emotion, and under an empty name the least certain ones; None where none were wanted.
    """

    row: Mapping[str, Any]
    figures: RunFigures
    earlier: Sequence[RunRecord] = ()
    samples: Mapping[str, Sequence[FaceSample]] | None = field(default_factory=dict)


def write_report(run: Run, row: Mapping[str, Any]) -> str:
    """Sum up a committed run, compare it with earlier ones and write the page; gives its address.

    Raises:
        StorageError: the store cannot be read or written.
    """
    earlier = earlier_runs(run, row)
    figures = measure(run, [one.base for one in earlier if one.input_uri == row["input_uri"] and one.base])
    write_record(run, record_of(run, row, figures))
    wanted = {group: SAMPLES_PER_EMOTION if group else DOUBTFUL_SAMPLES for group in figures.candidates}
    samples = read_samples(run, figures.candidates, wanted) if run.config.thumbnails else None
    address = join(run.output, "reports", run.run_id, PAGE_FILE)
    run.storage.write(address, run_page(RunReport(row, figures, earlier, samples)).encode("utf-8", "replace"))
    return address


def run_page(report: RunReport) -> str:
    """The page; that of a run without images is short, and nothing in it runs."""
    shown = _Shown.of(report)
    labeled = bool(shown.total.images)
    found = [_filters(shown), _emotions(shown), _samples(shown), _folders(shown)] if labeled else []
    work = [_failures(shown), throughput(shown.figures), data("data", _for_script(shown))] if labeled else []
    footer = f'<footer class="muted"><p>{_PSI}</p></footer>\n'
    sections = [_head(report), _drift(shown), _cards(report), *found, _days(shown), *work, details(report.row), footer]
    pages = resources.files("fer_ray.label.report")
    style, script = (pages.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return document(f"Labeling run {report.row['run_id']}", "".join(sections), style, script if labeled else "")


@dataclass(frozen=True)
class _Shown:
    """What several sections need, worked out once."""

    report: RunReport
    figures: RunFigures
    total: FolderFigures
    emotions: list[str]
    before: Counter[str]
    folders_before: Mapping[str, Counter[str]]
    drift: Drift

    @classmethod
    def of(cls, report: RunReport) -> _Shown:
        figures = report.figures.reduced(MOST_FOLDERS)
        total, before = figures.total, pooled(report.earlier)
        emotions = [name for name in LABELS if total.emotions.get(name) or before.get(name)]
        by_folder = emotions_by_folder(report.earlier, figures)
        return cls(report, figures, total, emotions, before, by_folder, drift_of(total.emotions, before))

    def drift_of(self, folder: str) -> Drift:
        return drift_of(self.figures.folders[folder].emotions, self.folders_before.get(folder, Counter()))

    def name_of(self, folder: str) -> str:
        """The folder as HTML."""
        if folder == OTHERS:
            return "<em>all others</em>"
        return text(short(folder.rstrip("/"), ADDRESS_LENGTH)) if folder else "<em>no folder below</em>"


def _head(report: RunReport) -> str:
    row = report.row
    took = (row["finished_at"] - row["started_at"]).total_seconds()
    return (
        f'<p class="facts">{text(short(row["input_uri"], 2 * ADDRESS_LENGTH))}; model {text(row["model_version"])}; '
        f"{utc(row['started_at'])} to {utc(row['finished_at'])} ({duration(took)})</p>\n"
        f'<p class="note">{text(_RESPONSIBLE)}</p>\n'
    )


def _drift(shown: _Shown) -> str:
    """What moved against the earlier runs; nothing where nothing did."""
    whole = [("all folders together", shown.drift, shown.total, shown.before)]
    folders = [
        (shown.name_of(name), shown.drift_of(name), one, shown.folders_before.get(name, Counter()))
        for name, one in shown.figures.folders.items()
    ]
    folders.sort(key=lambda part: -(part[1].index or 0.0))
    moved = [part for part in whole + folders if part[1].level]
    if not moved:
        return ""
    lines = [f"{name}, PSI {drift.index:.2f}: {_largest_moves(one.emotions, before)}" for name, drift, one, before in moved[:NAMED_PARTS]]
    lines += [f"{plural(len(moved) - NAMED_PARTS, 'more folder')}, see the table of folders"] if len(moved) > NAMED_PARTS else []
    certain = any(drift.level == MOVED for _, drift, *_ in moved)
    kind, words = ("warning", "have moved") if certain else ("warning watch", "may be moving")
    since = plural(len(shown.report.earlier), "earlier run")
    cause = (
        "Other pictures, a change of cameras or of the people in them, or trouble with the input: look at samples before you rely on it."
    )
    items = "".join(f"<li>{line}</li>" for line in lines)
    return f'<div class="{kind}" id="drift"><b>The emotions {words}</b> since {since} of this model. {cause}<ul>{items}</ul></div>\n'


def _largest_moves(now: Mapping[str, int], before: Mapping[str, int]) -> str:
    """`happy 40 % to 61 %, sad 20 % to 8 %`."""
    total, total_before = sum(now.values()), sum(before.values())
    moves = sorted(LABELS, key=lambda name: -abs(now.get(name, 0) / total - before.get(name, 0) / total_before))
    return ", ".join(
        f"{name} {share_of(total_before, before.get(name, 0), 0)} to {share_of(total, now.get(name, 0), 0)}" for name in moves[:3]
    )


def _cards(report: RunReport) -> str:
    row = report.row
    images, faces = row["images_total"], row["faces_total"]
    cards = (
        ("Images labeled", f"{images:,}", f"{row['images_skipped']:,} more were labeled before"),
        ("With faces", f"{row['images_ok']:,}", f"{share_of(images, row['images_ok'])} of the images"),
        ("Without a face", f"{row['images_no_face']:,}", f"{share_of(images, row['images_no_face'])} of the images"),
        ("Failed", f"{row['images_failed']:,}", f"{share_of(images, row['images_failed'])} of the images"),
        ("Faces", f"{faces:,}", f"{row['faces_left_out']:,} more too small or too doubtful"),
        ("Images a second", f"{row['images_per_second']:,.1f}", f"{plural(row['cpu_count'], 'CPU')}, {plural(row['gpu_count'], 'GPU')}"),
    )
    shown = "".join(
        f'<div class="card"><span class="name">{name}</span><b>{value}</b><span>{note}</span></div>\n' for name, value, note in cards
    )
    empty = "<p>There was nothing to label: no image of the input was new or changed.</p>\n" if not images else ""
    return f'<div class="cards">\n{shown}</div>\n{empty}'


def _filters(shown: _Shown) -> str:
    folders = [(str(number), _option_name(name)) for number, name in enumerate(shown.figures.folders)]
    choices = (
        ("folder", "all folders", folders),
        ("emotion", "all emotions", [(name, name) for name in shown.emotions]),
        ("status", "all statuses", [(name, name) for name in STATUSES]),
    )
    selects = ""
    for name, everything, options in choices:
        listed = "".join(f'<option value="{text(value)}">{text(label)}</option>' for value, label in options)
        selects += f'<label>{name}<select name="{name}"><option value="">{everything}</option>{listed}</select></label>\n'
    return f'<div class="filters" hidden>{selects}<button type="button">show all</button></div>\n'


def _option_name(folder: str) -> str:
    return short(folder.rstrip("/"), 2 * NAME_LENGTH) if folder not in ("", OTHERS) else "(all others)" if folder else "(no folder below)"


def _emotions(shown: _Shown) -> str:
    if not shown.total.emotions:
        return "<h2>Emotions</h2>\n<p>No face was labeled.</p>\n"
    counts, faces, before = shown.total.emotions, sum(shown.total.emotions.values()), sum(shown.before.values())
    most = max([*counts.values(), 1])
    rows = []
    for name in shown.emotions:
        n, earlier = counts.get(name, 0), shown.before.get(name, 0)
        change = points(n / faces - earlier / before) if faces and before else NOTHING
        values = {"count": f"{n:,}", "share": share_of(faces, n), "before": share_of(before, earlier), "change": change}
        bar = f'<td class="measure"><span class="bar" style="width:{100 * n / most:.4g}%"></span></td>'
        rows.append(table_row({"emotion": name}, [f"<td>{name}</td>", *value_cells(values), bar]))
    header = ("emotion", "faces", "share", "earlier runs", "points", '<th class="measure"></th>')
    listed = rows_table(header, rows, "emotions")
    return f'<h2>Emotions</h2>\n{_compared(shown)}<div class="columns"><div>\n<h3>Shares</h3>\n{listed}</div>\n{_confidence(shown)}</div>\n'


def _compared(shown: _Shown) -> str:
    earlier = shown.report.earlier
    if not earlier:
        return '<p class="muted">There are no earlier runs of this model to compare with.</p>\n'
    first, last = min(one.run_date for one in earlier), max(one.run_date for one in earlier)
    dates = f"of {first}" if first == last else f"from {first} to {last}"
    index = (
        f"PSI {shown.drift.index:.3f}"
        if shown.drift.index is not None
        else f"too few faces for a PSI, which takes {LEAST_FACES} on both sides"
    )
    detectors = {one.detector_version for one in earlier} - {shown.report.row["detector_version"]}
    other = " Some of them looked for faces with other settings." if detectors else ""
    return (
        f'<p class="muted">Compared with {plural(len(earlier), "earlier run")} of this model {dates} and their '
        f"{plural(sum(shown.before.values()), 'face')}: {index}.{other}</p>\n"
    )


def _confidence(shown: _Shown) -> str:
    bins = shown.total.faces.sum(axis=0)
    bars = [(int(n), f"{100 * number / BINS:.0f} to {100 * (number + 1) / BINS:.0f}{SPACE}%", "faces") for number, n in enumerate(bins)]
    return (
        f'<div id="confidence"><h3>Confidence</h3>\n{upright_bars(bars)}<div class="scale"><span>0{SPACE}%</span><span>50{SPACE}%</span>'
        f'<span>100{SPACE}%</span></div>\n<p class="muted">Calibrated probability of the emotion that was given, of '
        f'<span id="confidence-faces">{int(bins.sum()):,}</span> faces; the highest bar is '
        f'<span id="confidence-most">{int(bins.max()):,}</span>.</p></div>\n'
    )


def _samples(shown: _Shown) -> str:
    samples = shown.report.samples
    if samples is None:
        return "<h2>Sample faces</h2>\n<p>The run was told to show no faces (<code>--no-thumbnails</code>).</p>\n"
    groups = [(name, f"{name[0].upper()}{name[1:]}", samples[name]) for name in LABELS if samples.get(name)]
    groups += [("", "The least certain", samples[""])] if samples.get("") else []
    if not groups:
        return ""
    sections = ""
    for name, title, faces in groups:
        figures = "".join(_sample(shown, face, "" if name else f"{text(face.emotion)} ") for face in faces)
        sections += f'<section><h3>{title}</h3>\n<div class="faces">\n{figures}</div></section>\n'
    note = '<p class="muted">Of each emotion some at random, cut again from the images as far as these are there and unchanged.</p>\n'
    none = '<p data-none-of=".faces figure" hidden>None of these fits the choice.</p>\n'
    return f'<h2>Sample faces</h2>\n{note}<div class="samples">\n{sections}</div>\n{none}'


def _sample(shown: _Shown, face: FaceSample, label: str) -> str:
    folder = list(shown.figures.folders).index(shown.figures.folder_of(face.image_uri))
    name = face.image_uri.rpartition("/")[2]
    confidence = percent(face.confidence)
    return (
        f'<figure data-folder="{folder}" data-emotion="{text(face.emotion)}" title="{text(short(face.image_uri, ADDRESS_LENGTH))}">'
        f'<img src="data:image/jpeg;base64,{base64.b64encode(face.jpeg).decode()}" alt="{text(face.emotion)}, {confidence}">'
        f"<figcaption><b>{label}{confidence}</b>{text(short(name, NAME_LENGTH))}</figcaption></figure>\n"
    )


def _folders(shown: _Shown) -> str:
    folders = shown.figures.folders
    if not folders:
        return ""
    header = ["folder", "images", "failed", "faces", *shown.emotions, "PSI", "earlier faces"]
    rows = []
    for number, (name, one) in enumerate(folders.items()):
        failed, before = one.failed, sum(shown.folders_before.get(name, Counter()).values())
        cells = [shown.name_of(name), f"{one.images:,}", f"{failed:,}" if failed else NOTHING, f"{int(one.faces.sum()):,}"]
        cells += [*tinted_shares(one.emotions, shown.emotions), _index(shown.drift_of(name)), f"{before:,}" if before else NOTHING]
        rows.append(table_row({"folder": number}, plain_cells(cells)))
    base = text(short(shown.figures.base, ADDRESS_LENGTH))
    below = f"Below {base}, {'one level' if shown.figures.levels == 1 else 'up to two levels'} deep" if shown.figures.base else "By folder"
    more = f"; the {MOST_FOLDERS} with the most images" if OTHERS in folders else ""
    note = f'<p class="muted">{below}{more}. Shares are of the folder\'s faces.</p>\n'
    return f"<h2>Folders</h2>\n{note}{rows_table(header, rows, 'folders', 'shares')}"


def _index(drift: Drift) -> str:
    if drift.index is None:
        return NOTHING
    return f'<span class="{drift.level}">{drift.index:.2f}</span>' if drift.level else f"{drift.index:.2f}"


def _days(shown: _Shown) -> str:
    """Emotions by run date; each day against all those before it."""
    row = shown.report.row
    days: dict[datetime.date, list[Mapping[str, int]]] = {}
    for date, counts in [*((one.run_date, one.emotions) for one in shown.report.earlier), (row["run_date"], shown.total.emotions)]:
        days.setdefault(date, []).append(counts)
    before: Counter[str] = Counter()
    rows = []
    for date in sorted(days):
        counts = Counter[str]()
        for one in days[date]:
            counts.update(one)
        this = date == row["run_date"]
        cells = [f"{date}{' (this run)' if this else ''}", f"{len(days[date]):,}", f"{sum(counts.values()):,}"]
        rows.append(table_row({}, plain_cells([*cells, *tinted_shares(counts, shown.emotions), _index(drift_of(counts, before))])))
        before.update(counts)
    if not shown.emotions:
        return ""
    header = ["run date", "runs", "faces", *shown.emotions, "PSI"]
    left_out = len(rows) - MOST_DAYS
    more = f" {plural(left_out, 'earlier day')} left out here." if left_out > 0 else ""
    note = f'<p class="muted">Runs of this model; PSI of each day against all the days before it.{more}</p>\n'
    return f"<h2>Days</h2>\n{note}{rows_table(header, rows[::-1][:MOST_DAYS], 'days', 'shares')}"


def _failures(shown: _Shown) -> str:
    total, before = shown.total, pooled(shown.report.earlier, "statuses")
    rows = []
    for name, n in zip(STATUSES, total.statuses.tolist(), strict=True):
        values = {"count": f"{n:,}", "share": share_of(total.images, n)}
        earlier = f"<td>{share_of(sum(before.values()), before.get(name, 0))}</td>"
        bar = f'<td class="measure"><span class="bar" style="width:{100 * n / max(total.images, 1):.4g}%"></span></td>'
        rows.append(table_row({"status": name}, [f"<td>{name}<small>{_MEANINGS[name]}</small></td>", *value_cells(values), earlier, bar]))
    statuses = rows_table(("status", "images", "share", "earlier runs", '<th class="measure"></th>'), rows, "statuses")
    return f"<h2>Images and failures</h2>\n{statuses}{_errors(shown)}"


def _errors(shown: _Shown) -> str:
    errors = shown.figures.errors
    if not errors:
        return "<p>No image failed.</p>\n"
    numbers = {name: number for number, name in enumerate(shown.figures.folders)}
    rows = []
    for one in errors[:MOST_ERROR_ROWS]:
        cells = [
            f'<td class="text">{text(short(one.sentence, SENTENCE_LENGTH))}</td>',
            f"<td>{one.images:,}</td>",
            f'<td class="text">{text(one.status)}</td>',
            f'<td class="text folder">{shown.name_of(one.folder)}</td>',
            f'<td class="text">{text(short(one.example[len(shown.figures.base) :], ADDRESS_LENGTH))}</td>',
        ]
        rows.append(table_row({"status": one.status, "folder": numbers.get(one.folder, "")}, cells))
    header = ("reason", "images", *(f'<th class="text">{name}</th>' for name in ("status", "folder", "for example")))
    left_out = len(errors) - len(rows)
    more = f" {plural(left_out, 'rarer one')} left out here: the table images has them all." if left_out else ""
    note = f'<p class="muted">The commonest reasons by folder; numbers in them are shown as #.{more}</p>\n'
    none = '<p data-none-of=".errors tbody tr" hidden>No image that fits the choice failed.</p>\n'
    return f"<h3>Reasons</h3>\n{note}{rows_table(header, rows, kind='wide errors')}{none}"


def _for_script(shown: _Shown) -> dict[str, Any]:
    places = [LABELS.index(name) for name in shown.emotions]
    return {
        "emotions": shown.emotions,
        "statuses": STATUSES,
        "edges": list(range(BINS)),
        "earlier": [shown.before.get(name, 0) for name in shown.emotions],
        "folders": [
            {
                "statuses": one.statuses.tolist(),
                "faces": [one.faces[place].tolist() for place in places],
                "earlier": [shown.folders_before.get(folder, Counter()).get(name, 0) for name in shown.emotions],
            }
            for folder, one in shown.figures.folders.items()
        ],
    }
