"""When, where and with which camera a picture was taken, as its EXIF (3.0) or XMP says: bytes of strangers, read within bounds.

Only what the camera recorded of the moment counts: DateTimeOriginal, or what XMP calls so, never when a file was scanned, edited
or copied.
"""

from __future__ import annotations

import datetime
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from fer_ray.schema import FIRST_YEAR, LAST_YEAR

MAX_ENTRIES = 1000  # of a directory; cameras write about a hundred
MAX_TEXT_BYTES = 128  # of one value
MAX_XMP_BYTES = 1 << 20
MAX_OFFSET_MINUTES = 14 * 60  # Kiribati is the farthest ahead of UTC
_EXIF_START = b"Exif\0\0"
_BYTE_ORDERS = {b"II": "<", b"MM": ">"}
_MAKE = 0x010F
_MODEL = 0x0110
_XMP = 0x02BC
_EXIF_DIRECTORY = 0x8769
_GPS_DIRECTORY = 0x8825
_TAKEN = 0x9003
_TAKEN_OFFSET = 0x9011
_TAKEN_FRACTION = 0x9291
_LATITUDE = (1, 2)  # N or S, and degrees, minutes, seconds
_LONGITUDE = (3, 4)
_WANTED = frozenset((_MAKE, _MODEL, _XMP, _EXIF_DIRECTORY, _GPS_DIRECTORY))
_WANTED_OF_EXIF = frozenset((_TAKEN, _TAKEN_OFFSET, _TAKEN_FRACTION))
_WANTED_OF_GPS = frozenset((*_LATITUDE, *_LONGITUDE))
_BYTES_OF_TYPE = {1: 1, 2: 1, 4: 4, 5: 8, 7: 1, 13: 4, 129: 1}  # bytes, texts, offsets and fractions
_TIME = re.compile(r"(\d{4})[:-](\d\d)[:-](\d\d)[ T](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,6})\d*)?)?\s*(Z|[+-]\d\d:?\d\d)?")
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)")
_XMP_PLACE = re.compile(r"(\d{1,3}),(\d{1,2}(?:\.\d+)?)(?:,(\d{1,2}(?:\.\d+)?))?([NSEW])")
_XMP_TAKEN = ("exif:DateTimeOriginal", "photoshop:DateCreated")

Directory = Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class Capture:
    """What is recorded of the moment; None where nothing is, or nothing that can be.

    Attributes:
        taken_at: by the clock of the camera, without a time zone.
        taken_offset_minutes: how far that clock was ahead of UTC.
        camera_make: the maker.
        camera_model: the model.
        latitude: degrees north.
        longitude: degrees east.
    """

    taken_at: datetime.datetime | None = None
    taken_offset_minutes: int | None = None
    camera_make: str | None = None
    camera_model: str | None = None
    latitude: float | None = None
    longitude: float | None = None


NOTHING_RECORDED = Capture()


def read_capture(exif: bytes, xmp: bytes = b"") -> Capture:
    """Read an EXIF block, with or without its `Exif` in front, or a whole TIFF; XMP says what that does not.

    Whatever cannot be read is None: a picture can be seen without it.
    """
    exif = exif.removeprefix(_EXIF_START)
    order = _BYTE_ORDERS.get(exif[:2], "")
    if not order or len(exif) < 8:
        return _with_xmp({}, {}, {}, order, xmp)
    main = _directory(exif, order, struct.unpack_from(order + "I", exif, 4)[0], _WANTED)
    inner = _directory(exif, order, _pointer(main.get(_EXIF_DIRECTORY), order), _WANTED_OF_EXIF)
    place = _directory(exif, order, _pointer(main.get(_GPS_DIRECTORY), order), _WANTED_OF_GPS)
    return _with_xmp(main, inner, place, order, xmp or main.get(_XMP, b""))


def read_capture_of_raw(content: bytes) -> Capture:
    """The same of a RAW file that is built like a TIFF, or of Canon's CR3, which has each directory in a box of its own."""
    if content[4:8] != b"ftyp":
        return read_capture(content)
    boxes = [content.find(name, 0, 1 << 20) + len(name) for name in (b"CMT1", b"CMT2", b"CMT4")]
    blocks = [content[at : at + (1 << 16)] if at > 4 else b"" for at in boxes]
    orders = [_BYTE_ORDERS.get(block[:2], "") for block in blocks]
    found = zip(blocks, orders, (_WANTED, _WANTED_OF_EXIF, _WANTED_OF_GPS), strict=True)
    main, inner, place = (_directory(block, order, 8, tags) if order else {} for block, order, tags in found)
    return _with_xmp(main, inner, place, orders[2], b"")


def _directory(block: bytes, order: str, offset: int, wanted: frozenset[int]) -> Directory:
    """The values of the wanted tags as they are stored, each up to the most that is looked at."""
    if not 8 <= offset <= len(block) - 2:
        return {}
    (count,) = struct.unpack_from(order + "H", block, offset)
    entries = block[offset + 2 : offset + 2 + 12 * min(count, MAX_ENTRIES)]
    found: dict[int, bytes] = {}
    for tag, kind, values, inline in struct.iter_unpack(order + "HHI4s", entries[: len(entries) // 12 * 12]):
        if tag in wanted and tag not in found and kind in _BYTES_OF_TYPE:
            size = _BYTES_OF_TYPE[kind] * values
            at = struct.unpack(order + "I", inline)[0]
            found[tag] = inline[:size] if size <= 4 else block[at : at + min(size, MAX_XMP_BYTES if tag == _XMP else MAX_TEXT_BYTES)]
    return found


def _pointer(value: bytes | None, order: str) -> int:
    return int(struct.unpack(order + "I", value)[0]) if value and len(value) == 4 else 0


def _with_xmp(main: Directory, inner: Directory, place: Directory, order: str, xmp: bytes) -> Capture:
    taken, offset = _time(_text(inner.get(_TAKEN)), _text(inner.get(_TAKEN_FRACTION)), _text(inner.get(_TAKEN_OFFSET)))
    make, model = _text(main.get(_MAKE)), _text(main.get(_MODEL))
    latitude, longitude = (_degrees(place, tags, order, most) for tags, most in ((_LATITUDE, 90), (_LONGITUDE, 180)))
    if xmp and (not taken or latitude is None):
        packet = xmp[:MAX_XMP_BYTES]
        if not taken:
            taken, offset = next((found for name in _XMP_TAKEN if (found := _time(_property(packet, name)))[0]), (None, None))
        make, model = make or _property(packet, "tiff:Make"), model or _property(packet, "tiff:Model")
        if latitude is None:
            latitude = _degrees_of_xmp(_property(packet, "exif:GPSLatitude"), 90)
            longitude = _degrees_of_xmp(_property(packet, "exif:GPSLongitude"), 180)
    if latitude is None or longitude is None or not (latitude or longitude):  # where both are 0 a place was erased, or not found yet
        latitude = longitude = None
    return Capture(taken, offset, make, model, latitude, longitude)


def _text(value: bytes | None) -> str | None:
    """A text up to its first zero byte, without what does not print; None for none."""
    shown = (value or b"").partition(b"\0")[0][:MAX_TEXT_BYTES].decode(errors="replace")
    return "".join(letter for letter in shown if letter.isprintable()).strip() or None


def _time(text: str | None, fraction: str | None = None, offset: str | None = None) -> tuple[datetime.datetime | None, int | None]:
    found = _TIME.match(text or "")
    if not found:
        return None, None
    *parts, seconds, own_fraction, own_offset = found.groups()
    digits = own_fraction or (fraction if fraction and fraction.isascii() and fraction.isdigit() else "0")
    try:
        year, month, day, hour, minute = map(int, parts)
        taken = datetime.datetime(year, month, day, hour, minute, int(seconds or 0), int(digits[:6].ljust(6, "0")))
    except ValueError:
        return None, None
    return (taken, _minutes(offset or own_offset)) if FIRST_YEAR <= taken.year <= LAST_YEAR else (None, None)


def _minutes(offset: str | None) -> int | None:
    if offset == "Z":
        return 0
    found = _OFFSET.fullmatch(offset or "")
    if not found:
        return None
    minutes = (int(found[2]) * 60 + int(found[3])) * (-1 if found[1] == "-" else 1)
    return minutes if abs(minutes) <= MAX_OFFSET_MINUTES else None


def _degrees(place: Directory, tags: tuple[int, int], order: str, most: int) -> float | None:
    direction, value = place.get(tags[0], b"")[:1], place.get(tags[1], b"")
    if direction not in (b"N", b"S", b"E", b"W") or len(value) != 24:
        return None
    numbers = struct.unpack(order + "6I", value)
    fractions = zip(numbers[::2], numbers[1::2], strict=True)
    parts = [above / below if below else math.inf * above if above else 0.0 for above, below in fractions]
    return _signed(parts, direction in (b"S", b"W"), most)


def _degrees_of_xmp(text: str | None, most: int) -> float | None:
    found = _XMP_PLACE.fullmatch(text or "")
    return _signed([float(part or 0) for part in found.groups()[:3]], found[4] in "SW", most) if found else None


def _signed(parts: list[float], is_negative: bool, most: int) -> float | None:
    degrees = parts[0] + parts[1] / 60 + parts[2] / 3600
    return (-degrees if is_negative else degrees) if degrees <= most else None


def _property(packet: bytes, name: str) -> str | None:
    """A simple property of an XMP packet, an attribute or an element: no XML is parsed, so none can be made to grow."""
    found = re.search(name.encode() + rb"\s{0,9}(?:=\s{0,9}[\"']|>)([^\"'<]{1,%d})[\"'<]" % MAX_TEXT_BYTES, packet)
    return _text(found[1]) if found else None
