"""A small file beside each image that holds its label: CK+'s Emotion files, AffectNet's annotations, the members of WebDataset's tars."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import numpy as np

from fer_ray.config.label_names import LEFT_OUT, plain_label
from fer_ray.data.layouts.source import Source, left_out, unlabeled
from fer_ray.data.layouts.tree import File, split_of_path
from fer_ray.data.sample import Layout, Sample
from fer_ray.errors import DatasetError, ImageError
from fer_ray.io.storage import Storage
from fer_ray.text import plural, sanitize

CKPLUS = "_emotion.txt"
AFFECTNET = "_exp.npy"
WEBDATASET = ".cls"
JSON = ".json"
MAX_BYTES = 64 << 10  # of one label
READERS = 24  # threads: a store answers slowly, but many at once
_PRESETS = {CKPLUS: "ckplus", AFFECTNET: "affectnet"}
_KEYS = ("label", "emotion", "expression", "class", "cls")


def read_sidecars(source: Source) -> Layout | None:
    """The samples of files that stand beside their images; None where there are none.

    Of a sequence of CK+ the peak frame has the label, and the first frame, as the data set says, is neutral.

    Raises:
        DatasetError: a label does not read, or is unknown.
    """
    files = list(source.tree.all_files())
    kinds = (CKPLUS, AFFECTNET, WEBDATASET)
    kind = next((kind for kind in kinds if any(file.path.lower().endswith(kind) for file in files)), "")
    return _read_kind(source, files, kind) if kind else None


def read_json_sidecars(source: Source) -> Layout | None:
    """The samples of images with a .json beside them, as others pack WebDataset's tars; None where there are none.

    Raises:
        DatasetError: a label does not read, or is unknown.
    """
    files = list(source.tree.all_files())
    return _read_kind(source, files, JSON) if any(file.path.lower().endswith(JSON) for file in files) else None


def _read_kind(source: Source, files: Sequence[File], kind: str) -> Layout | None:
    images = {_place(file.path, kind, "." + file.path.rpartition(".")[2]): file for file in files if file.is_image}
    sidecars = [file for file in files if file.path.lower().endswith(kind)]
    beside = [(images[place], file) for file in sidecars if (place := _place(file.path, kind, kind)) in images]
    if not beside and kind == JSON:
        return None
    if not beside:
        what = f"{plural(len(sidecars), 'label')} *{kind}"
        raise DatasetError(f"The data set {source.config.dataset} has {what}, but no image of their names: add the images.")
    labels = source.labels.or_preset(_PRESETS[kind]) if kind in _PRESETS else source.labels
    samples, others = [], Counter[str]()
    for (image, sidecar), text in zip(beside, _texts(source.storage, [sidecar for _, sidecar in beside], kind), strict=True):
        emotion = labels.emotion(text)
        if emotion is None:
            raise labels.unknown(f"{sanitize(sidecar.path)} has the unknown label {sanitize(text)[:40]!r}", text)
        if emotion == LEFT_OUT:
            others[plain_label(text)] += 1
        else:
            samples.append(_sample(image, emotion))
    labeled = [image for image, _ in beside]
    findings = left_out(others)
    if kind == CKPLUS:
        first = _first_frames(images.values(), labeled)
        samples += [_sample(image, "neutral") for image in first]
        labeled += first
        findings.append(f"The first frames of sequences count as neutral: {plural(len(first), 'image')}.")
    findings += unlabeled(images.values(), labeled)
    return Layout(tuple(sorted(samples, key=lambda sample: sample.key)), tuple(findings))


def _place(path: str, kind: str, suffix: str) -> tuple[str, str]:
    """Where an image and its label meet: the split and the name, or, in tars and folders of pairs, the folder and the name."""
    folder, _, name = path.rpartition("/")
    by_name = kind in _PRESETS
    return split_of_path(path) if by_name else folder, name[: -len(suffix)]


def _sample(image: File, emotion: str) -> Sample:
    split = split_of_path(image.path)
    person = re.match(r"(S\d{3})_\d{3}_\d+\.", image.name)
    key = f"{split}/{emotion}/{unicodedata.normalize('NFC', image.path)}"
    return Sample(sanitize(image.path), key, split, emotion, image.entry, group=person[1] if person else "")


def _first_frames(images: Iterable[File], labeled: Sequence[File]) -> list[File]:
    """The first frames of the labeled sequences, which lie in a folder each."""
    folders = {file.path.rpartition("/")[0] for file in labeled}
    frames: dict[str, list[File]] = defaultdict(list)
    for file in images:
        frames[file.path.rpartition("/")[0]].append(file)
    taken = {file.path for file in labeled}
    first = [min(frames[folder], key=lambda file: file.path) for folder in sorted(folders)]
    return [file for file in first if file.path not in taken]


def _texts(storage: Storage, files: Sequence[File], kind: str) -> list[str]:
    """The label that each file holds."""
    contents: dict[str, bytes] = {}
    loose = [file for file in files if file.entry.archive_uri is None]
    with ThreadPoolExecutor(READERS) as pool:
        contents.update(zip((file.path for file in loose), pool.map(lambda file: _read(storage, file), loose), strict=True))
    packed = sorted(
        (file for file in files if file.entry.archive_uri is not None),
        key=lambda file: (file.entry.archive_uri or "", file.entry.data_offset or 0),
    )
    for archive, members in groupby(packed, key=lambda file: file.entry.archive_uri or ""):
        with storage.open(archive) as opened:  # from end to end: a request for each label would take hours
            for file in members:
                if file.entry.packed_bytes is not None or (file.entry.size_bytes or 0) > MAX_BYTES or file.entry.error:
                    contents[file.path] = _read(storage, file)
                    continue
                opened.seek(file.entry.data_offset or 0)
                contents[file.path] = opened.read(file.entry.size_bytes or 0)
    return [_text(contents[file.path], file, kind) for file in files]


def _read(storage: Storage, file: File) -> bytes:
    try:
        return storage.read_image(file.entry, MAX_BYTES / 1e6)
    except ImageError as error:
        raise DatasetError(f"The label {sanitize(file.path)} cannot be used ({error}): repair or remove it.") from error


def _text(content: bytes, file: File, kind: str) -> str:
    try:
        if kind == AFFECTNET:
            return str(np.load(io.BytesIO(content), allow_pickle=False).item())
        text = content.decode("utf-8-sig").strip()
        if kind == JSON:
            values = json.loads(text)
            return str(next(values[key] for key in _KEYS if key in values))
    except (ValueError, TypeError, StopIteration, RecursionError, EOFError) as error:
        raise DatasetError(f"The label {sanitize(file.path)} does not read ({str(error)[:80] or 'it has no label'}).") from error
    return text
