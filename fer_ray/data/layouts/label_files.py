"""Files that say the label of each image by its name: CSV or text, with a header or as a published data set writes them."""

from __future__ import annotations

import csv
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fer_ray.config.dataset import ALL
from fer_ray.config.label_names import LEFT_OUT, plain_label
from fer_ray.data.layouts.source import Labels, Source, left_out, unlabeled
from fer_ray.data.layouts.tree import File, split_of, split_of_path
from fer_ray.data.sample import Layout, Sample
from fer_ray.errors import AccessError, DatasetError, TooLargeError
from fer_ray.io.storage import Storage
from fer_ray.text import first_few, plural, sanitize

# Label files with names of their own: the preset of their labels, and their columns, since they have no header.
_KNOWN = {
    "list_patition_label.txt": ("rafdb", ("image", "label")),
    "list_partition_label.txt": ("rafdb", ("image", "label")),
    "label.lst": ("expw", ("image", "face", "top", "left", "right", "bottom", "confidence", "label")),
}
# What columns are called, in small letters and digits alone; the first that is there counts.
_IMAGE = (
    "image",
    "imagename",
    "imagepath",
    "file",
    "filename",
    "filepath",
    "subdirectoryfilepath",
    "path",
    "pth",
    "name",
    "img",
    "imageuri",
)
_LABEL = ("label", "emotion", "expression", "class", "labels", "emotions", "target", "classname", "labelname")
_SPLIT = ("split", "usage", "set", "subset", "partition")
_BOXES = (("x", "y", "width", "height"), ("facex", "facey", "facewidth", "faceheight"), ("x", "y", "w", "h"))
_CORNERS = (("left", "top", "right", "bottom"), ("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"))
_NO_VALUE = ("", "null", "none", "nan")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class _Row:
    """A line of a label file; `number` counts the file's rows from 1."""

    file: str
    number: int
    image: str
    label: str
    split: str = ""
    box: Box | None = None
    group: str = ""


def read_known_label_files(source: Source) -> Layout | None:
    """The samples of a published data set whose label file is known by its name; None where there is no such file."""
    known = [file for file in source.tree.all_files() if file.name.lower() in _KNOWN]
    if not known:
        return None
    preset, columns = _KNOWN[known[0].name.lower()]
    rows = [row for file in known for row in _read_rows(source, file.entry.image_uri, columns)]
    return _layout(source, rows, source.labels.or_preset(preset))


def read_label_files(source: Source) -> Layout:
    """The samples that the files of --labels name.

    Raises:
        DatasetError: a file does not read, or most images that it names are not there, or a label is unknown.
    """
    rows: list[_Row] = []
    labels = source.labels
    for uri in source.config.labels:
        preset, columns = _KNOWN.get(uri.rpartition("/")[2].lower(), ("", ()))
        labels = labels.or_preset(preset) if preset else labels
        rows += _read_rows(source, uri, columns)
    return _layout(source, rows, labels)


def _layout(source: Source, rows: Sequence[_Row], labels: Labels) -> Layout:
    images = _Images(source.tree.images())
    found = {row: images.find(row.image) for row in rows}
    missing = [sanitize(row.image) for row, file in found.items() if file is None]
    files = ", ".join(dict.fromkeys(sanitize(row.file) for row in rows))
    named = f"{plural(len(missing), 'image')} that {files} names ({first_few(missing)})"
    if 2 * len(missing) > len(rows):
        raise DatasetError(f"The data set {source.config.dataset} lacks {named}: give --dataset the folder that holds them.")
    findings = [f"Left out, since they are not there: {named}."] if missing else []
    samples, others = [], Counter[str]()
    seen: dict[tuple[str, Box | None], _Row] = {}
    times = Counter[str]()
    for row, file in found.items():
        emotion = labels.emotion(row.label)
        if emotion is None:
            raise labels.unknown(f"Row {row.number} of {sanitize(row.file)} has the unknown label {row.label[:40]!r}", row.label)
        if file is None:
            continue
        if emotion == LEFT_OUT:
            others[plain_label(row.label)] += 1
            continue
        before = seen.setdefault((file.path, row.box), row)
        if before is not row:
            if labels.emotion(before.label) != emotion:
                raise DatasetError(
                    f"{sanitize(row.file)} gives {sanitize(file.path)} two labels, {before.label} and {row.label}: keep one."
                )
            continue
        times[file.path] += 1
        samples.append(_sample(row, file, emotion, times[file.path]))
    findings += left_out(others) + unlabeled(source.tree.images(), (file for file in found.values() if file))
    return Layout(tuple(sorted(samples, key=lambda sample: sample.key)), tuple(findings))


def _sample(row: _Row, file: File, emotion: str, time: int) -> Sample:
    own = split_of_path(file.path)
    split = row.split or (own if own != ALL else split_of_path(row.file))
    place = file.path if time == 1 else f"{file.path}#{time}"
    key = f"{split}/{emotion}/{unicodedata.normalize('NFC', place)}"
    return Sample(sanitize(place), key, split, emotion, file.entry, box=row.box, group=row.group)


class _Images:
    """The images of a data set, by the names that label files give them."""

    def __init__(self, files: Iterable[File]) -> None:
        self._by_stem: dict[str, list[File]] = defaultdict(list)
        for file in files:
            self._by_stem[_stem(file.path)].append(file)

    def find(self, listed: str) -> File | None:
        """The image whose path ends as the listed one, or the other way round; RAF-DB's `_aligned` comes before the photograph.

        Raises:
            DatasetError: it is one of several.
        """
        path = unicodedata.normalize("NFC", listed.strip().replace("\\", "/")).removeprefix("./")
        aligned = self._by_stem.get(f"{_stem(path)}_aligned", ())
        found = list(aligned) or [file for file in self._by_stem.get(_stem(path), ()) if _is_at(file.path, path)]
        whole = [file for file in found if file.path == path]
        found = whole or found
        if len(found) > 1:
            both = f"{sanitize(found[0].path)} and {sanitize(found[1].path)}"
            raise DatasetError(f"A label file names {sanitize(path)}, which may be {both}: name images by their paths in it.")
        return found[0] if found else None


def _stem(path: str) -> str:
    return unicodedata.normalize("NFC", path.rpartition("/")[2].rpartition(".")[0] or path.rpartition("/")[2])


def _is_at(path: str, listed: str) -> bool:
    """Whether a file is the one listed: the end of one path is the other, whole; a name without a suffix takes any."""
    path = unicodedata.normalize("NFC", path)
    if "." not in listed.rpartition("/")[2]:
        path = path.rpartition(".")[0]
    return f"/{path}".endswith(f"/{listed}") or f"/{listed}".endswith(f"/{path}")


def _read_rows(source: Source, uri: str, columns: Sequence[str]) -> Iterator[_Row]:
    name = uri.rpartition("/")[2]
    rows = _cells(source.storage, uri, len(columns))
    first = next(rows, None)
    if first is None:
        raise DatasetError(f"The label file {uri} is empty: each row must name an image and its label.")
    header = [re.sub("[^a-z0-9]", "", cell.lower()) for cell in first[1]]
    if not columns and _first(header, _IMAGE) is not None and _first(header, _LABEL) is not None:
        columns = header
        group = next((place for place, cell in enumerate(first[1]) if cell.strip() == source.config.split_by), None)
    else:
        group = None
        columns = columns or ("image", "label")
        rows = (row for part in ([first], rows) for row in part)
    for number, cells in rows:
        if len(cells) < len(columns):
            raise DatasetError(
                f"Row {number} of the label file {uri} has {plural(len(cells), 'column')}, not {len(columns)}: it needs image and label."
            )
        if len(cells) > len(columns) == 2:
            raise DatasetError(f"The label file {uri} has {len(cells)} columns and no header: name image and label in its first row.")
        yield _row(name, number, cells, columns, group)


def _row(file: str, number: int, cells: Sequence[str], columns: Sequence[str], group: int | None) -> _Row:
    image, label, split = (_first(columns, names) for names in (_IMAGE, _LABEL, _SPLIT))
    usage = cells[split].strip() if split is not None else ""
    known = split_of(usage) if usage else ""
    if known is None:
        raise DatasetError(f"Row {number} of {sanitize(file)} has the split {usage[:40]!r}: it must be train, validation or test.")
    box = _box(file, number, cells, columns)
    kept = cells[group].strip() if group is not None else ""
    return _Row(file, number, cells[image or 0], cells[1 if label is None else label].strip(), known, box, kept)


def _box(file: str, number: int, cells: Sequence[str], columns: Sequence[str]) -> Box | None:
    """The face's place in pixels: x, y, width, height; None where the file gives none."""
    names = next((names for names in (*_BOXES, *_CORNERS) if set(names) <= set(columns)), None)
    if names is None or (texts := [cells[columns.index(name)].strip() for name in names])[0].lower() in _NO_VALUE:
        return None
    try:
        x, y, width, height = map(float, texts)
    except ValueError:
        x, y, width, height = (math.nan,) * 4
    if names in _CORNERS:
        width, height = width - x, height - y
    if not (math.isfinite(x + y) and 0 < width < math.inf and 0 < height < math.inf):
        raise DatasetError(f"Row {number} of {sanitize(file)} has a box that is none ({', '.join(texts)[:80]}): repair or remove it.")
    return x, y, width, height


def _cells(storage: Storage, uri: str, width: int) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, counted from 1; between commas, semicolons or tabs, else between spaces."""
    try:
        lines = storage.read(uri).decode("utf-8-sig").splitlines()
        mark = next((mark for mark in "\t,;|" if lines and mark in lines[0]), None)
        rows = csv.reader(lines, delimiter=mark) if mark else (line.rsplit(None, max(width, 2) - 1) for line in lines)
        yield from ((number, row) for number, row in enumerate(rows, 1) if row)
    except FileNotFoundError as error:
        raise DatasetError(f"There is no label file {uri}: give --labels a file with images and labels.") from error
    except (AccessError, TooLargeError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"The label file {uri} cannot be read ({' '.join(str(error).split())[:200]}): check --labels.") from error


def _first(columns: Sequence[str], names: Sequence[str]) -> int | None:
    return next((columns.index(name) for name in names if name in columns), None)
