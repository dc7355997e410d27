"""Faces marked in a picture: a box and a label each, in the colour of the emotion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from fer_ray.emotions import EMOTION_COLORS, UNKNOWN
from fer_ray.typing import UInt8Array

_TEXT_SHARE = 1 / 34  # height of the letters beside the longer side of the image
_MIN_TEXT = 11  # pixels: smaller letters cannot be read
_MAX_TEXT = 40  # pixels: larger ones look like a poster
_PADDING = 0.3  # heights of the letters around a label
_DARK = "#14181f"

_Area = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Box:
    """A face to mark: `bbox` is x, y, width, height in pixels of the picture."""

    bbox: tuple[int, int, int, int]
    emotion: str
    confidence: float

    @property
    def area(self) -> _Area:
        """Its edges."""
        x, y, width, height = self.bbox
        return x, y, x + width, y + height


@dataclass(frozen=True)
class _Label:
    text: str
    emotion: str
    area: _Area


def draw_faces(pixels: UInt8Array, faces: Sequence[Box]) -> Image.Image:
    """Mark faces in a picture; labels cover no face and no other label.

    Args:
        pixels: the picture, (h, w, 3) uint8 RGB.
        faces: what to mark; where labels compete for a place, the first gets it.

    Returns:
        A new picture. Emotions whose labels had no room are named in a strip below it, so it may be higher.
    """
    height, width = pixels.shape[:2]
    size = min(max(max(height, width) * _TEXT_SHARE, _MIN_TEXT), _MAX_TEXT)
    font = cast("ImageFont.FreeTypeFont", ImageFont.load_default(size))
    labels, homeless = _place_labels(faces, font, (width, height))
    strip = _strip(homeless, font, (width, height))
    canvas = Image.new("RGB", (width, max([height, *(label.area[3] for label in strip)])), "white")
    canvas.paste(Image.fromarray(np.ascontiguousarray(pixels)))
    draw = ImageDraw.Draw(canvas)
    for face in reversed(faces):
        draw.rectangle(face.area, outline=_color(face.emotion), width=max(2, round(size / 7)))
    for label in [*labels, *strip]:
        draw.rounded_rectangle(label.area, radius=size / 4, fill=_color(label.emotion))
        middle = ((label.area[0] + label.area[2]) / 2, (label.area[1] + label.area[3]) / 2)
        draw.text(middle, label.text, font=font, fill=_ink_on(_color(label.emotion)), anchor="mm")
    return canvas


def _place_labels(faces: Sequence[Box], font: ImageFont.FreeTypeFont, size: tuple[int, int]) -> tuple[list[_Label], list[str]]:
    """The labels that find a free place, and the emotions of those that do not."""
    labels: list[_Label] = []
    homeless: dict[str, None] = {}
    for face in faces:
        text = f"{face.emotion} {face.confidence:.0%}"
        taken = [other.area for other in faces] + [label.area for label in labels]
        areas = _places(face.area, _size_of(text, font), size)
        free = next((area for area in areas if not any(_overlap(area, other) for other in taken)), None)
        if free:
            labels.append(_Label(text, face.emotion, free))
        else:
            homeless[face.emotion if len(faces) > 1 else text] = None
    return labels, list(homeless)


def _places(face: _Area, label: tuple[int, int], size: tuple[int, int]) -> Iterator[_Area]:
    """Where a label may go, the best first: above its face, below it, to the right and to the left; always inside the picture."""
    (left, top, right, bottom), (width, height) = face, label
    corners = [(x, y) for y in (top - height - 1, bottom + 1) for x in (left, right - width)]
    corners += [(x, y) for x in (right + 1, left - width - 1) for y in (top, bottom - height)]
    for x, y in corners:
        x = min(max(x, 0), max(size[0] - width, 0))
        if y >= 0 and y + height <= size[1] and x + width <= size[0]:
            yield x, y, x + width, y + height


def _strip(texts: Sequence[str], font: ImageFont.FreeTypeFont, size: tuple[int, int]) -> list[_Label]:
    """Labels side by side below the picture, in as many lines as they need."""
    labels: list[_Label] = []
    x, y = 1, size[1] + 2
    for text in texts:
        width, height = _size_of(text, font)
        if x > 1 and x + width > size[0]:
            x, y = 1, y + height + 2
        labels.append(_Label(text, text.partition(" ")[0], (x, y, x + width, y + height)))
        x += width + 2
    return labels


def _size_of(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    padding = 2 * _PADDING * font.size
    return round(font.getlength(text) + padding), round(font.size + padding)


def _overlap(one: _Area, other: _Area) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _color(emotion: str) -> str:
    return EMOTION_COLORS.get(emotion, EMOTION_COLORS[UNKNOWN])


def _ink_on(color: str) -> str:
    """Dark letters on light colours, white ones on dark: the luminance of ITU-R BT.601 decides."""
    red, green, blue = ImageColor.getrgb(color)[:3]
    return _DARK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
