"""Which group each face belongs to, from a CSV of the user's: age bands, skin tones, cameras, anything."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Sequence

from fer_ray.config.jobs.evaluate import EvaluateConfig
from fer_ray.errors import AccessError, DatasetError, TooLargeError
from fer_ray.io.storage import Storage, absolute
from fer_ray.text import first_few, plural, sanitize

MAX_BYTES = 256 << 20
MAX_GROUPS = 50  # of a column: more are values, not groups
MAX_NAME = 80  # characters of a group's name
_IMAGE_COLUMNS = ("image", "image_uri", "name", "file", "file_name", "filename", "path")


def read_groups(storage: Storage, config: EvaluateConfig, names: Sequence[str]) -> dict[str, list[str]]:
    """The group of every image, by column.

    An image is found by its path below the data set, by a later part of that path, or by its file's name without the suffix,
    whichever the CSV has; other images of the CSV do not matter.

    Args:
        storage: Where the CSV lies.
        config: `groups` names the CSV, `group_by` its columns, `data` the data set.
        names: The images' names, as the data set has them.

    Raises:
        DatasetError: the CSV cannot be read, lacks a column or images, or its groups cannot be told apart.
    """
    if not config.group_by:
        return {}
    header, rows = _read(storage, config.groups)
    image = next((column for column in _IMAGE_COLUMNS if column in header), None)
    if image is None:
        raise DatasetError(f"The CSV {config.groups} names no images: call the column of their names image.")
    missing = [column for column in config.group_by if column not in header]
    if missing:
        raise DatasetError(f"The CSV {config.groups} has no column {', '.join(missing)}, only {', '.join(map(sanitize, header))}.")
    root = config.data.dataset.rstrip("/") + "/"
    found = _match(config.groups, [_keys(row[image], root) for row in rows], names)
    return {column: _of_column(config, column, rows, found, names) for column in config.group_by}


def _read(storage: Storage, place: str) -> tuple[list[str], list[dict[str, str]]]:
    """The columns' names and the rows; commas, semicolons and tabs divide."""
    try:
        text = storage.read(absolute(place, "CSV of groups"), MAX_BYTES).decode("utf-8-sig")
        first = text.partition("\n")[0]
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), restval="")
        header = [name.strip() for name in rows.fieldnames or []]
        rows.fieldnames = header
        return header, [{name: (row[name] or "").strip() for name in header} for row in rows]
    except FileNotFoundError as error:
        raise DatasetError(f"The CSV of groups {place} is not there: check --groups.") from error
    except (AccessError, TooLargeError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"The CSV of groups {place} cannot be read ({' '.join(str(error).split())[:200]}): check --groups.") from error


def _keys(cell: str, root: str) -> set[str]:
    """What an image may be called by its cell: as it stands there, or as Windows writes paths."""
    return {_normalized(path.removeprefix(root).removeprefix("./")) for path in (cell, cell.replace("\\", "/")) if path}


def _match(place: str, keys: Sequence[set[str]], names: Sequence[str]) -> list[int | None]:
    """The row of each image, None where there is none.

    Raises:
        DatasetError: two rows are about one image, or one row about two.
    """
    rows: dict[str, int] = {}
    for number, key in ((number, key) for number, spellings in enumerate(keys) for key in spellings):
        if rows.setdefault(key, number) != number:
            raise DatasetError(f"The CSV {place} names {key} twice: leave one of the rows.")
    owners: dict[int, str] = {}
    found = []
    for name in names:
        row = next((rows[key] for key in _spellings(_normalized(name)) if key in rows), None)
        if row is not None and owners.setdefault(row, name) != name:
            both = f"{owners[row]} and {name}"
            raise DatasetError(f"The CSV {place} does not tell {both} apart: name images by their path below the data set.")
        found.append(row)
    return found


def _normalized(name: str) -> str:
    """As data sets show names, and in one of the two ways in which systems write accents."""
    return unicodedata.normalize("NFC", sanitize(name))


def _spellings(name: str) -> list[str]:
    """`test/happy/1.png`, `happy/1.png`, `1.png`, `1`."""
    parts = name.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))] + [parts[-1].rpartition(".")[0]]


def _of_column(
    config: EvaluateConfig, column: str, rows: Sequence[dict[str, str]], found: Sequence[int | None], names: Sequence[str]
) -> list[str]:
    groups = ["" if row is None else rows[row][column][:MAX_NAME] for row in found]
    without = [name for name, group in zip(names, groups, strict=True) if not group]
    if without:
        lacking = f"{plural(len(without), 'image')} of the {config.split} split ({first_few(without)})"
        raise DatasetError(f"The column {column} of {config.groups} lacks {lacking}: add them, as unknown where nobody knows.")
    different = len(set(groups))
    if different > MAX_GROUPS:
        raise DatasetError(f"The column {column} of {config.groups} has {different:,} values: make at most {MAX_GROUPS} groups of them.")
    return groups
