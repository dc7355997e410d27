"""One labeled face before it is read, and what a data set holds of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fer_ray.schema import ImageEntry
from fer_ray.typing import UInt8Array


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a CSV of pixels, counted from 0 after the header; `pixels` (side, side) uint8, None where they do not read."""

    number: int
    emotion: str
    usage: str | None
    pixels: UInt8Array | None


@dataclass(frozen=True)
class Sample:
    """One labeled face before it is read: a file (`entry`), a row of fer2013.csv (`row`), or bytes that `load` fetches.

    Attributes:
        name: where a person finds it, below the data set.
        key: the same for the same image wherever and however the data set lies: it orders the images and draws the validation share.
        split: one of SPLITS, or `all` where the data set has none.
        emotion: one of EMOTIONS; empty where only votes say it.
        entry: the file.
        row: the pixels.
        load: what fetches the bytes of a file that lies inside of another.
        box: where the face is in the image: x, y, width, height in its pixels; None for the whole image.
        group: whose picture it is, or of which sequence; all of a group stay on one side of a split that is drawn.
    """

    name: str
    key: str
    split: str
    emotion: str
    entry: ImageEntry | None = None
    row: Row | None = None
    load: Callable[[], bytes] | None = None
    box: tuple[float, float, float, float] | None = None
    group: str = ""

    @property
    def stem(self) -> str:
        """The file's name without folders and suffix, which FER+ calls it by."""
        return self.key.rpartition("/")[2].rpartition(".")[0]


@dataclass(frozen=True)
class Layout:
    """What a data set holds.

    Attributes:
        samples: in the order of their keys.
        findings: what was left out, in sentences.
        votes: files of FER+ votes that lie in the data set and are all that labels it.
    """

    samples: tuple[Sample, ...]
    findings: tuple[str, ...] = ()
    votes: tuple[str, ...] = ()
