"""What a data set holds, for people: counts, findings, duplicates, and a sheet of sample faces; nothing is trained."""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fer_ray.config.jobs.inspect import InspectConfig
from fer_ray.config.recipe import RGB
from fer_ray.data.dataset import RawDataset, read_raw
from fer_ray.data.duplicates import leaked
from fer_ray.data.images import FaceCrops, read_images
from fer_ray.data.layouts.find import find_layout
from fer_ray.data.splits import LabeledSamples, split_and_label
from fer_ray.io.storage import Storage, absolute, join
from fer_ray.text import plural, sanitize

SIDE = 96  # of a face on the sheet, in pixels, as are all of these
GAP = 8
CAPTION = 16
MARGIN = 120
HEADING = 36
DUPLICATES = "duplicates.csv"
SHEET = "samples.png"
Counts = dict[str, dict[str, int]]  # images by split and class

logger = logging.getLogger(__name__)


def inspect(config: InspectConfig) -> dict[str, Any]:
    """The inspection job: log counts and findings, write the list of duplicates and the sample sheet, and return the summary.

    Raises:
        DatasetError, StorageError: as `load_dataset`, or the output cannot be written.
    """
    storage, output = Storage.of(config.data), absolute(config.output, "output")
    storage.check_writable(output)
    raw = read_raw(config.data, FaceCrops(SIDE, RGB, config.data.find_faces), keep_images=False)
    counts = {split: _counts(labeled, raw.faces[split].problems, raw.classes) for split, labeled in raw.labeled.items()}
    _log_table(f"Images of {config.data.dataset} by split, duplicates included:", counts)
    if config.data.ferplus and config.data.ferplus_labels == "soft":
        _log_table("Of these, with one emotion that has more than half of the votes:", _majority(config, storage))
    findings = list(raw.findings)
    equal = set(leaked(raw.duplicates))
    near = set(leaked(raw.near_copies)) - equal
    for where, positions in (("In train", equal), ("Mirrored, re-encoded or slightly changed in train", near)):
        if positions:
            images = plural(len(positions), "image")
            findings.append(f"{where} and in validation or test too: {images}; training leaves them out, unless --keep-duplicates.")
    for finding in findings or ["Nothing looks wrong."]:
        logger.info("%s", finding)
    storage.write(join(output, DUPLICATES), _duplicates_csv(raw))
    storage.write(join(output, SHEET), _sheet(storage, raw, FaceCrops(SIDE, RGB, config.data.find_faces), config.samples))
    logger.info(
        "Look at the sample faces in %s and at the duplicates in %s.", *(sanitize(join(output, name)) for name in (SHEET, DUPLICATES))
    )
    return {
        "dataset": config.data.dataset,
        "output": output,
        "classes": list(raw.classes),
        "counts": counts,
        "images": sum(sum(per_class.values()) for per_class in counts.values()),
        "unreadable": sum(len(faces.problems) for faces in raw.faces.values()),
        "duplicated_pictures": len(raw.duplicates),
        "near_copies": len(raw.near_copies),
        "train_images_in_validation_or_test": len(equal | near),
        "findings": findings,
    }


def _log_table(title: str, counts: Counts) -> None:
    for line in (title, *table(counts).splitlines()):
        logger.info("%s", line)


def table(counts: Counts) -> str:
    """Counts by class and split, with totals, in aligned columns."""
    classes = list(next(iter(counts.values())))
    columns = {**counts, "total": {name: sum(per_class[name] for per_class in counts.values()) for name in classes}}
    rows = [["", *columns], *([name, *(f"{column[name]:,}" for column in columns.values())] for name in classes)]
    rows.append(["total", *(f"{sum(column.values()):,}" for column in columns.values())])
    widths = [max(len(row[position]) for row in rows) for position in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) for row in rows
    )


def _counts(labeled: LabeledSamples, problems: dict[int, str], classes: tuple[str, ...]) -> dict[str, int]:
    read = np.delete(labeled.labels, sorted(problems))
    return {name: int(count) for name, count in zip(classes, np.bincount(read, minlength=len(classes)), strict=True)}


def _majority(config: InspectConfig, storage: Storage) -> Counts:
    data = dataclasses.replace(config.data, ferplus_labels="majority")
    classes, parts, _ = split_and_label(find_layout(data, storage), data, storage)
    return {split: _counts(labeled, {}, classes) for split, labeled in parts.items()}


def _duplicates_csv(raw: RawDataset) -> bytes:
    """One row for each place of an image that has several; images with one number in `picture` are the same, or nearly."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["picture", "split", "emotion", "image", "copies"])
    for number, copies in enumerate((*raw.duplicates, *raw.near_copies)):
        kind = "equal" if number < len(raw.duplicates) else "near"
        for copy in copies:
            name = raw.labeled[copy.split].samples[copy.position].name
            rows.writerow([number, copy.split, raw.classes[copy.label], name, kind])
    return text.getvalue().encode()


def _sheet(storage: Storage, raw: RawDataset, crops: FaceCrops, samples: int) -> bytes:
    """A PNG: a block for each split, a row for each class, and `samples` faces spread over its images, with their names."""
    row_height, block = SIDE + CAPTION + GAP, HEADING + (SIDE + CAPTION + GAP) * len(raw.classes)
    size = (MARGIN + samples * (SIDE + GAP) + GAP, block * len(raw.labeled) + GAP)
    sheet = Image.new("RGB", size, "white")
    pen, small, large = ImageDraw.Draw(sheet), ImageFont.load_default(10), ImageFont.load_default(16)
    for number, (split, labeled) in enumerate(raw.labeled.items()):
        pen.text((GAP, number * block + GAP), f"{split}: {len(labeled.labels):,} images", "black", large)
        for label, name in enumerate(raw.classes):
            top = number * block + HEADING + label * row_height
            pen.text((GAP, top + SIDE // 2 - 8), name, "black", large)
            chosen = _spread(labeled, raw.faces[split].problems, label, samples)
            faces = read_images(storage, [labeled.samples[position] for position in chosen], crops)
            for place, position in enumerate(chosen):
                left = MARGIN + place * (SIDE + GAP)
                if faces.images is not None:
                    sheet.paste(Image.fromarray(faces.images[place]), (left, top))
                pen.text((left, top + SIDE + 2), _caption(labeled.samples[position].name), "dimgray", small)
    png = io.BytesIO()
    sheet.save(png, "PNG")
    return png.getvalue()


def _spread(labeled: LabeledSamples, problems: dict[int, str], label: int, samples: int) -> list[int]:
    members = [int(position) for position in np.flatnonzero(labeled.labels == label) if int(position) not in problems]
    places = np.unique(np.linspace(0, len(members) - 1, min(samples, len(members))).round().astype(int)) if members else ()
    return [members[place] for place in places]


def _caption(path: str) -> str:
    """The end of the name, which tells files apart, in characters that the built-in font has."""
    name = path.rpartition("/")[2].encode("ascii", "replace").decode()
    return name if len(name) <= 17 else "..." + name[-15:]
