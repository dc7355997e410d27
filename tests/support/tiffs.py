"""TIFF files of any tags, as cameras, scanners and people with bad intentions write them."""

import struct

SHORT = 3
LONG = 4
Tags = dict[int, tuple[int, tuple[int, ...]]]


def _directory(start: int, tags: Tags, next_offset: int = 0) -> bytes:
    """A directory that lies at `start`, with its values behind it."""
    values, entries = b"", b""
    behind = start + 2 + 12 * len(tags) + 4
    for tag, (kind, numbers) in sorted(tags.items()):
        packed = struct.pack(f"<{len(numbers)}{'H' if kind == SHORT else 'I'}", *numbers)
        where = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", behind + len(values))
        values += packed if len(packed) > 4 else b""
        entries += struct.pack("<HHI", tag, kind, len(numbers)) + where
    return struct.pack("<H", len(tags)) + entries + struct.pack("<I", next_offset) + values


def page(width: int, height: int, more: Tags | None = None, photometric: int = 2, compression: int = 1) -> Tags:
    """A picture whose pixels are the first bytes of the data: RGB (2), gray (1), or what a sensor measured (32803)."""
    samples = 3 if photometric == 2 else 1
    return {
        256: (LONG, (width,)),
        257: (LONG, (height,)),
        258: (SHORT, (8,) * samples),
        259: (SHORT, (compression,)),
        262: (SHORT, (photometric,)),
        273: (LONG, (8,)),
        277: (SHORT, (samples,)),
        278: (LONG, (height,)),
        279: (LONG, (width * height * samples,)),
        **(more or {}),
    }


def tiff(*pages: Tags, data: bytes = b"", inside: bool = False) -> bytes:
    """Several pages one behind the other, or all but the first inside the first, as RAW files have them."""
    content, next_offset, others = b"II*\0" + bytes(4) + data, 0, []
    for tags in reversed(pages[1:]):
        others.append(len(content))
        content += _directory(len(content), tags, 0 if inside else next_offset)
        next_offset = others[-1]
    start = len(content)
    first = {**pages[0], 330: (LONG, tuple(others))} if inside else pages[0]
    content += _directory(start, first, 0 if inside else next_offset)
    return content[:4] + struct.pack("<I", start) + content[8:]
