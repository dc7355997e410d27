"""The directories of TIFF, which RAW files and EXIF blocks have too: what pictures are inside, and how they are turned."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fer_ray.typing import AnyArray, UInt8Array

MAX_DIRECTORIES = 1000  # pages and pictures inside pages
MAX_VALUES = 1 << 20  # numbers in one tag; each takes 36 bytes as a Python object
# The tags that are needed here.
_SUBFILE = 254
_WIDTH = 256
_HEIGHT = 257
_BITS = 258
_COMPRESSION = 259
_PHOTOMETRIC = 262
_ORIENTATION = 274
_SAMPLES = 277
_PLANES = 284
_ROWS_PER_STRIP = 278
_PREDICTOR = 317
_TILE_WIDTH = 322
_TILE_HEIGHT = 323
_SUB_DIRECTORIES = 330
_EXTRA_SAMPLES = 338
_PICTURE = (_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES)
_KEPT = frozenset((*_PICTURE, _PLANES, _ROWS_PER_STRIP, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _SUB_DIRECTORIES, _EXTRA_SAMPLES))
_MASK = 4  # the subfile is a mask for transparency, no picture
_OLD_JPEG = 6
# None, CCITT, LZW, JPEG, Deflate, 16 bits padded, PackBits, LZMA, Zstandard, WebP; the RAWs' own are left out.
_COMPRESSIONS = frozenset((1, 2, 3, 4, 5, 7, 8, 32771, 32773, 32946, 34925, 50000, 50001))
_PHOTOMETRICS = frozenset((0, 1, 2, 3, 5, 6, 8))  # gray, RGB, palette, CMYK, YCbCr, CIELab; not the sensors' 32803 and 34892
_BYTES_OF_TYPE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_FORMAT_OF_TYPE = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_MAX_KEPT_VALUES = 64


@dataclass(frozen=True)
class Directory:
    """One picture of a TIFF: where its tags are, and those of them that are needed here."""

    offset: int
    tags: dict[int, tuple[int, ...]]
    next_offset: int

    def first(self, tag: int, default: int = 0) -> int:
        """The first value of a tag."""
        return self.tags.get(tag, (default,))[0]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as stored."""
        return self.first(_WIDTH), self.first(_HEIGHT)

    @property
    def pixels(self) -> int:
        """How many pixels the picture has."""
        return self.first(_WIDTH) * self.first(_HEIGHT)

    @property
    def orientation(self) -> int:
        """EXIF's orientation, 1 to 8; 0 where there is none."""
        return value if 1 <= (value := self.first(_ORIENTATION)) <= 8 else 0

    @property
    def has_sub_directories(self) -> bool:
        """Whether other pictures belong to this one, as in RAW files."""
        return _SUB_DIRECTORIES in self.tags

    @property
    def is_mask(self) -> bool:
        """Whether it only says which pixels of another picture are transparent."""
        return bool(self.first(_SUBFILE) & _MASK)

    @property
    def is_readable(self) -> bool:
        """Whether these are finished pixels in a compression that libtiff decodes, not what a sensor measured."""
        return self.first(_COMPRESSION, 1) in _COMPRESSIONS and self.first(_PHOTOMETRIC, 1) in _PHOTOMETRICS

    @property
    def is_old_jpeg(self) -> bool:
        """Whether libtiff may decode it as the JPEG of TIFF 6.0, now given up; CR2 says the same of what a sensor measured."""
        return self.first(_COMPRESSION) == _OLD_JPEG and self.first(_PHOTOMETRIC) in _PHOTOMETRICS

    @property
    def is_deep_negative(self) -> bool:
        """Whether it is gray in 16 bits with white as zero, which Pillow shows inverted or not at all."""
        return self.first(_PHOTOMETRIC, 1) == 0 and self.tags.get(_BITS) == (16,)

    @property
    def is_deep_with_alpha(self) -> bool:
        """Whether it is gray in 16 bits with a second sample for each pixel, which Pillow does not know."""
        is_gray = self.first(_PHOTOMETRIC, 1) in (0, 1) and self.first(_SAMPLES) == 2 and self.first(_PLANES, 1) == 1
        return is_gray and set(self.tags.get(_BITS, ())) == {16}

    @property
    def is_negative(self) -> bool:
        """Whether white is zero."""
        return self.first(_PHOTOMETRIC, 1) == 0

    @property
    def has_alpha(self) -> bool:
        """Whether the sample beside the colours says how transparent a pixel is; else it says nothing that is known."""
        return self.first(_EXTRA_SAMPLES, 2) != 0

    @property
    def columns_of_differences(self) -> int:
        """How many columns hold differences to the one before, behind a first one that does not; 0 where none do."""
        return (self.first(_TILE_WIDTH) or self.first(_WIDTH)) if self.first(_PREDICTOR, 1) == 2 else 0

    @property
    def has_deep_planes(self) -> bool:
        """Whether samples of 16 bits lie in a plane for each colour: Pillow reads these right only where they are packed."""
        return self.first(_PLANES) == 2 and self.first(_SAMPLES) > 1 and self.first(_BITS) == 16

    @property
    def is_packed(self) -> bool:
        """Whether its strips or tiles are compressed."""
        return self.first(_COMPRESSION, 1) != 1

    @property
    def buffer_bytes(self) -> int:
        """What libtiff needs beside the pixels: the largest strip or tile, at least as RGBA."""
        width, height = self.size
        strip = width * min(self.first(_ROWS_PER_STRIP, height) or height, height)
        tile = self.first(_TILE_WIDTH) * self.first(_TILE_HEIGHT)
        return max(strip, tile) * max(4, self.first(_SAMPLES, 1) * max(self.tags.get(_BITS, (1,))) // 8)


def directories_of(content: bytes) -> list[Directory]:
    """The pictures of a TIFF or of a RAW file built like one: its pages, and those inside pages.

    Raises:
        struct.error, ValueError: it is broken.
    """
    found: dict[int, Directory] = {}
    is_big = content[2:4] in (b"+\0", b"\0+")
    order = _byte_order(content)
    todo = [struct.unpack_from(order + ("Q" if is_big else "I"), content, 8 if is_big else 4)[0]]
    while todo and len(found) < MAX_DIRECTORIES:
        offset = todo.pop(0)
        if not offset or offset in found:
            continue
        try:
            directory = _read_directory(content, offset, order, is_big)
        except (struct.error, ValueError):
            if not found:
                raise
            continue  # a page behind the end of a file that was cut
        found[offset] = directory
        todo = [*directory.tags.get(_SUB_DIRECTORIES, ()), directory.next_offset, *todo]
    return list(found.values())


def with_first(content: bytes, directory: Directory) -> bytes:
    """The same file with this directory as its first."""
    is_big = content[2:4] in (b"+\0", b"\0+")
    start = struct.pack(_byte_order(content) + ("Q" if is_big else "I"), directory.offset)
    at = 8 if is_big else 4
    return content if content[at : at + len(start)] == start else content[:at] + start + content[at + len(start) :]


def as_positive(content: bytes, directory: Directory) -> bytes:
    """The same file, in which this directory says that black is zero."""
    return _with_values(content, directory, {_PHOTOMETRIC: 1})


def as_four_bytes(content: bytes, directory: Directory) -> bytes:
    """The same file, in which the two samples of 16 bits are four of 8, not turned: their bytes come as they are stored."""
    values = {_BITS: 8, _PHOTOMETRIC: 2, _SAMPLES: 4, _ORIENTATION: 1, _PREDICTOR: 1, _EXTRA_SAMPLES: 2}
    return _with_values(content, directory, values)


def samples_of(pixels: UInt8Array, content: bytes, directory: Directory) -> AnyArray:
    """The samples (h, w, 2) uint16 of four bytes (h, w, 4) that were decoded `as_four_bytes`."""
    samples = pixels.view(f"{_byte_order(content)}u2").astype(np.uint16)
    width = directory.columns_of_differences
    for left in range(0, samples.shape[1] if width else 0, width or 1):
        block = samples[:, left : left + width]
        np.cumsum(block, axis=1, dtype=np.uint16, out=block)
    return samples


def _with_values(content: bytes, directory: Directory, values: Mapping[int, int]) -> bytes:
    """The same file with these numbers in the directory, where it has such tags."""
    changed, order, is_big = bytearray(content), _byte_order(content), content[2:4] in (b"+\0", b"\0+")
    start, entry_bytes = directory.offset + (8 if is_big else 2), 20 if is_big else 12
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), content, directory.offset)
    for entry in range(start, start + count * entry_bytes, entry_bytes):
        (tag,) = struct.unpack_from(order + "H", content, entry)
        if tag in values:
            struct.pack_into(order + ("HHQH6x" if is_big else "HHIH2x"), changed, entry, tag, 3, 1, values[tag])
    return bytes(changed)


def orientation_of(exif: bytes) -> int:
    """The orientation that an EXIF block names, 1 to 8; 0 where it names none or is broken."""
    try:
        order = _byte_order(exif)
        return _read_directory(exif, struct.unpack_from(order + "I", exif, 4)[0], order, is_big=False).orientation
    except (struct.error, ValueError):
        return 0


def orientation_of_raw(content: bytes) -> int:
    """The same of a RAW file, for the previews inside."""
    canon = content.find(b"CMT1", 0, 1 << 20) if content[4:8] == b"ftyp" else -1
    return orientation_of(content[canon + 4 :] if canon >= 0 else content) if canon >= 0 or content[:2] in (b"II", b"MM") else 0


def _byte_order(content: bytes) -> str:
    return "<" if content[:2] == b"II" else ">"


def _read_directory(content: bytes, offset: int, order: str, is_big: bool) -> Directory:
    entry_format, entry_bytes, inline_bytes = (order + "HHQ", 20, 8) if is_big else (order + "HHI", 12, 4)
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), content, offset)
    start = offset + (8 if is_big else 2)
    if count > 0xFFFF or start + count * entry_bytes > len(content):
        raise ValueError("its tags lie behind its end")
    tags: dict[int, tuple[int, ...]] = {}
    for entry in range(start, start + count * entry_bytes, entry_bytes):
        tag, kind, values = struct.unpack_from(entry_format, content, entry)
        size = _BYTES_OF_TYPE.get(kind, 0) * values
        if kind not in (1, 2, 6, 7) and values > MAX_VALUES and size <= len(content):  # what is larger than the file is skipped
            raise ValueError(f"its tag {tag} has {values} values")
        if tag in _KEPT and kind in _FORMAT_OF_TYPE and values:
            at = entry + entry_bytes - inline_bytes
            if size > inline_bytes:
                (at,) = struct.unpack_from(order + ("Q" if is_big else "I"), content, at)
            kept = min(values, _MAX_KEPT_VALUES)
            if at + size <= len(content):
                tags.setdefault(tag, struct.unpack_from(f"{order}{kept}{_FORMAT_OF_TYPE[kind]}", content, at))
    after = start + count * entry_bytes
    next_offset = struct.unpack_from(order + ("Q" if is_big else "I"), content, after)[0] if after + inline_bytes <= len(content) else 0
    return Directory(offset, tags, next_offset)
