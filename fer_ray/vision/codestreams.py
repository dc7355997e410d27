"""What JPEG 2000, AV1 and grids of tiles will take, from the data themselves: the boxes around them may say less."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

_SIZ = b"\xff\x4f\xff\x51"  # how the codestream of JPEG 2000 begins
_COD = 0xFF52  # how it is coded
_COC = 0xFF53  # the same, of one component
_SOT = 0xFF90  # a tile's header
_SOD = 0xFF93  # a tile's data
_BYTES_OF_BLOCK = 700  # what OpenJPEG keeps for each code block, 420 of them measured where they are smallest
_MAX_MARKERS = 200_000
_ILOC = b"iloc"  # the box that says where pictures are
_OVERLAY = b"iovl"  # a picture made of others
_MAX_BOXES = 100
_MAX_ITEMS = 10_000
_MAX_UNITS = 64  # in front of an AV1 sequence header
_MAX_UNIT_BYTES = 1 << 20
_SEQUENCE_HEADER = 1


def jpeg2000_bytes(content: bytes) -> int:
    """What OpenJPEG takes for the largest tile: four bytes for each sample, a copy in one or two, and its book on code blocks.

    Raises:
        struct.error, IndexError: the file is broken.
    """
    needed, start = 0, content.find(_SIZ)
    while start >= 0:
        width, height, left, top, tile_width, tile_height, _, _, components = struct.unpack_from(">8IH", content, start + 8)
        samples = min(width - left, tile_width) * min(height - top, tile_height) * components
        bits = max(content[start + 42 : start + 42 + 3 * components : 3], default=0) & 0x7F  # one less than there are
        blocks = max(_blocks_per_sample(content, start + 2, components), default=1)
        needed = max(needed, round(samples * ((5 if bits < 8 else 6) + blocks * _BYTES_OF_BLOCK)))
        start = content.find(_SIZ, start + 1)
    return needed


def _blocks_per_sample(content: bytes, at: int, components: int) -> Iterator[float]:
    """How many code blocks a sample has, for each way of coding that the headers of the picture and of its tiles name."""
    tile_end = 0
    for _ in range(_MAX_MARKERS):
        if at + 4 > len(content):
            return
        marker, length = struct.unpack_from(">HH", content, at)
        if marker == _SOT:
            tile_end = at + (struct.unpack_from(">I", content, at + 6)[0] or len(content))
        elif marker == _SOD:
            if tile_end <= at:
                return
            at = tile_end
            continue
        elif marker == _COD:
            yield _blocks_in(content[at + 9 : at + 2 + length], bool(content[at + 4] & 1))
        elif marker == _COC:
            index_bytes = 1 if components < 257 else 2
            yield _blocks_in(content[at + 5 + index_bytes : at + 2 + length], bool(content[at + 4 + index_bytes] & 1))
        elif marker < 0xFF00 or marker == 0xFFD9:
            return
        at += 2 + length


def _blocks_in(parameters: bytes, has_precincts: bool) -> float:
    """Code blocks for each sample: each resolution has a quarter of the next one's samples, and its precincts may make blocks smaller."""
    levels, blocks = parameters[0], 0.0
    for resolution in range(levels + 1):
        precinct, halved = parameters[5 + resolution] if has_precincts else 0xFF, 1 if resolution else 0
        across = min((parameters[1] & 15) + 2, max((precinct & 15) - halved, 0))
        down = min((parameters[2] & 15) + 2, max((precinct >> 4) - halved, 0))
        blocks += 4.0 ** (resolution - levels) * (0.75 if resolution else 1) / (1 << (across + down))
    return blocks


def item_pixels(content: bytes) -> int:
    """The most pixels that a picture inside an AVIF or HEIF file has, whatever its boxes say; 0 where none is found.

    The sequence headers of AV1 and the canvas of a grid are read; libheif compares those of HEVC itself, before it takes memory.

    Raises:
        ValueError: more places are named `iloc` than a file has, or pictures are laid over each other.
    """
    if _OVERLAY in content[: max(content.find(b"mdat"), 0)]:
        raise ValueError("pictures that are laid over each other are not read")
    most, at = 0, content.find(_ILOC)
    for _ in range(_MAX_BOXES):
        if at < 0:
            return most
        with suppress(struct.error, IndexError):  # the name may stand anywhere; the decoder cannot read a broken box either
            for item in _items(content, at + len(_ILOC)):
                most = max(most, _pixels_of_grid(item) or _pixels_of_units(item))
        at = content.find(_ILOC, at + 1)
    raise ValueError("its boxes are broken")


def _pixels_of_grid(item: bytes) -> int:
    """Width times height of a canvas of tiles, 0 where the item is none: a version, flags, rows, columns, and the size."""
    if item[:2] in (b"\0\0", b"\0\1") and len(item) == (12 if item[1] else 8):
        half = (len(item) - 4) // 2
        return int.from_bytes(item[4 : 4 + half], "big") * int.from_bytes(item[4 + half :], "big")
    return 0


def _items(content: bytes, at: int) -> Iterator[bytes]:
    """The bytes of each item, up to a limit: the box `iloc` says in which extents of the file, or of the box `idat`, they are."""
    version, sizes = content[at], struct.unpack_from(">H", content, at + 4)[0]
    offset_bytes, length_bytes, base_bytes, index_bytes = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15, sizes & 15 if version else 0
    at += 6

    def number(size: int) -> int:
        nonlocal at
        at += size
        return int.from_bytes(content[at - size : at], "big")

    for _ in range(min(number(4 if version == 2 else 2), _MAX_ITEMS)):
        number(4 if version == 2 else 2)  # the item
        is_inside = bool(version) and number(2) & 15 == 1
        number(2)  # the file, which is this one
        start = number(base_bytes) + (content.find(b"idat") + 4 if is_inside else 0)
        data = b""
        for _ in range(number(2)):
            number(index_bytes)
            offset, length = start + number(offset_bytes), number(length_bytes)
            if len(data) < _MAX_UNIT_BYTES:
                data += content[offset : offset + min(length or len(content), _MAX_UNIT_BYTES)]
            if at > len(content):
                return
        yield data


def _pixels_of_units(data: bytes) -> int:
    """Width times height of the sequence header among the first units of AV1, 0 where there is none."""
    with suppress(IndexError):  # other items are no AV1
        return _find_sequence(data)
    return 0


def _find_sequence(data: bytes) -> int:
    at = 0
    for _ in range(_MAX_UNITS):
        if at >= len(data):
            return 0
        header = data[at]
        at += 2 if header & 4 else 1
        size, shift = len(data) - at, 0
        if header & 2:
            size = 0
            while True:
                size |= (data[at] & 0x7F) << shift
                at, shift = at + 1, shift + 7
                if not data[at - 1] & 0x80 or shift > 56:
                    break
        if header >> 3 & 15 == _SEQUENCE_HEADER:
            return _pixels_of_sequence(data[at : at + size])
        at += size
    return 0


def _pixels_of_sequence(header: bytes) -> int:
    """By section 5.5 of the AV1 bitstream specification, as far as the size."""
    bits = int.from_bytes(header[:256], "big")
    left = 8 * len(header[:256])

    def read(count: int) -> int:
        nonlocal left
        left -= count
        if left < 0:
            raise IndexError("the sequence header of AV1 ends early")
        return bits >> left & ((1 << count) - 1)

    read(4)
    if read(1):  # a still picture, in short
        read(5)
    else:
        _skip_operating_points(read)
    width_bits, height_bits = read(4) + 1, read(4) + 1
    return (read(width_bits) + 1) * (read(height_bits) + 1)


def _skip_operating_points(read: Callable[[int], int]) -> None:
    delay_bits = 0
    if read(1):  # timing
        read(64)
        if read(1):  # a length in a variable code
            zeros = 0
            while not read(1):
                zeros += 1
            read(zeros)
        if read(1):  # the model of a decoder
            delay_bits = read(5) + 1
            read(42)
    has_delay = read(1)
    for _ in range(read(5) + 1):
        read(12)
        if read(5) > 7:  # the level
            read(1)
        if delay_bits and read(1):
            read(2 * delay_bits + 1)
        if has_delay and read(1):
            read(4)
