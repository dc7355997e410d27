"""What a data set holds, for people: counts, findings, duplicates, and a sheet of sample faces; nothing is trained."""

from __future__ import annotations

import csv
import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fer_ray.config.inspect import InspectConfig
from fer_ray.config.recipe import RGB
from fer_ray.data.dataset import Gathered, gather
from fer_ray.data.duplicates import leaked
from fer_ray.data.images import read_faces
from fer_ray.data.layouts import find_layout
from fer_ray.data.splits import Labeled, divide_and_label
from fer_ray.io.storage import Storage, absolute, join
from fer_ray.text import plural

SIDE, GAP, CAPTION, MARGIN, HEADING = 96, 8, 16, 120, 36
DUPLICATES, SHEET = "duplicates.csv", "samples.png"
Counts = dict[str, dict[str, int]]


def inspect(config: InspectConfig) -> dict[str, Any]:
    """Print counts and findings, write the list of duplicates and the sample sheet, and give the summary.

    Raises:
        DatasetError, StorageError: as `load_dataset`, or the output cannot be written.
    """
    storage, output = Storage(config.data.s3_endpoint), absolute(config.output, "output")
    storage.check_writable(output)
    gathered = gather(config.data, SIDE, RGB, keep_images=False)
    counts = {split: _counts(labeled, gathered.faces[split].problems, gathered.classes) for split, labeled in gathered.labeled.items()}
    print(f"Images of {config.data.dataset} by split, duplicates included:\n\n{table(counts)}\n")
    if config.data.ferplus and config.data.ferplus_labels == "soft":
        print(f"Of these, with one emotion that has more than half of the votes:\n\n{table(_majority(config, storage))}\n")
    findings = list(gathered.findings)
    left_out = len(leaked(gathered.duplicates))
    if left_out:
        findings.append(
            f"In train and in validation or test too: {plural(left_out, 'image')}; training leaves them out, unless --keep-duplicates."
        )
    print("\n".join(findings) or "Nothing looks wrong.")
    storage.write(join(output, DUPLICATES), _duplicates_csv(gathered))
    storage.write(join(output, SHEET), _sheet(storage, gathered, config.samples))
    print(f"\nSample faces are in {join(output, SHEET)}, duplicates in {join(output, DUPLICATES)}.")
    return {
        "dataset": config.data.dataset,
        "output": output,
        "classes": list(gathered.classes),
        "counts": counts,
        "images": sum(sum(per_class.values()) for per_class in counts.values()),
        "unreadable": sum(len(faces.problems) for faces in gathered.faces.values()),
        "duplicated_pictures": len(gathered.duplicates),
        "train_images_in_validation_or_test": left_out,
        "findings": findings,
    }


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


def _counts(labeled: Labeled, problems: dict[int, str], classes: tuple[str, ...]) -> dict[str, int]:
    read = np.delete(labeled.labels, sorted(problems))
    return {name: int(count) for name, count in zip(classes, np.bincount(read, minlength=len(classes)), strict=True)}


def _majority(config: InspectConfig, storage: Storage) -> Counts:
    data = dataclasses.replace(config.data, ferplus_labels="majority")
    classes, parts, _ = divide_and_label(find_layout(data.dataset, storage).samples, data, storage)
    return {split: _counts(labeled, {}, classes) for split, labeled in parts.items()}


def _duplicates_csv(gathered: Gathered) -> bytes:
    """One row for each place of an image that has several; images with one number in `picture` are the same."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["picture", "split", "emotion", "image"])
    for number, copies in enumerate(gathered.duplicates):
        for copy in copies:
            name = gathered.labeled[copy.split].samples[copy.position].name
            rows.writerow([number, copy.split, gathered.classes[copy.label], name])
    return text.getvalue().encode()


def _sheet(storage: Storage, gathered: Gathered, samples: int) -> bytes:
    """A PNG: a block for each split, a row for each class, and `samples` faces spread over its images, with their names."""
    row_height, block = SIDE + CAPTION + GAP, HEADING + (SIDE + CAPTION + GAP) * len(gathered.classes)
    size = (MARGIN + samples * (SIDE + GAP) + GAP, block * len(gathered.labeled) + GAP)
    sheet = Image.new("RGB", size, "white")
    pen, small, large = ImageDraw.Draw(sheet), ImageFont.load_default(10), ImageFont.load_default(16)
    for number, (split, labeled) in enumerate(gathered.labeled.items()):
        pen.text((GAP, number * block + GAP), f"{split}: {len(labeled.labels):,} images", "black", large)
        for label, name in enumerate(gathered.classes):
            top = number * block + HEADING + label * row_height
            pen.text((GAP, top + SIDE // 2 - 8), name, "black", large)
            chosen = _spread(labeled, gathered.faces[split].problems, label, samples)
            faces = read_faces(storage, [labeled.samples[position] for position in chosen], SIDE, RGB)
            for place, position in enumerate(chosen):
                left = MARGIN + place * (SIDE + GAP)
                if faces.images is not None:
                    sheet.paste(Image.fromarray(faces.images[place]), (left, top))
                pen.text((left, top + SIDE + 2), _caption(labeled.samples[position].name), "dimgray", small)
    png = io.BytesIO()
    sheet.save(png, "PNG")
    return png.getvalue()


def _spread(labeled: Labeled, problems: dict[int, str], label: int, samples: int) -> list[int]:
    members = [int(position) for position in np.flatnonzero(labeled.labels == label) if int(position) not in problems]
    places = np.unique(np.linspace(0, len(members) - 1, min(samples, len(members))).round().astype(int)) if members else ()
    return [members[place] for place in places]


def _caption(path: str) -> str:
    """The end of the name, which tells files apart, in characters that the built-in font has."""
    name = path.rpartition("/")[2].encode("ascii", "replace").decode()
    return name if len(name) <= 17 else "..." + name[-15:]
