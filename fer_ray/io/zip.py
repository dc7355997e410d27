"""The files inside zip archives, each to be read by itself: by hand, since zipfile holds all names and opens no member by its place."""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any

from fer_ray.errors import ImageError
from fer_ray.schema import ImageEntry, Status

if TYPE_CHECKING:
    from fer_ray.io.storage import Storage

_END = struct.Struct("<4s4H2LH")
_LOCATOR64 = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_IN_EXTRA = 0xFFFFFFFF  # a size or place that is in the extra field instead
_MAX_COMMENT = 0xFFFF
_ENCRYPTED, _SIZES_FOLLOW, _IS_UTF8 = 0x1, 0x8, 0x800
_STORED, _DEFLATED = 0, 8


class BrokenArchiveError(Exception):
    """An archive that ends or does not read before its end; the text says what is wrong."""


@dataclass(frozen=True)
class _Member:
    name: str
    flags: int
    method: int
    packed: int
    size: int
    start: int
    mode: int = 0

    @property
    def problem(self) -> str | None:
        if self.flags & _ENCRYPTED:
            return "It is encrypted in its archive: pack it again without a password."
        if stat.S_ISLNK(self.mode):
            return "It is a link in its archive, and not read: what it leads to has a row of its own where it lies in the archive."
        if self.method not in (_STORED, _DEFLATED):
            return f"It is compressed by a method of zip that is not read ({self.method}): pack it again by the usual one."
        return None


def zip_members(storage: Storage, archive: ImageEntry) -> Iterator[ImageEntry]:
    """Every file in a zip, as `<archive>#<name>`; those of a zip that breaks off as far as they are whole.

    Raises:
        BrokenArchiveError: it breaks off; what is whole came before.
    """
    with storage.open(archive.image_uri) as listed, storage.open(archive.image_uri) as file:
        size = file.seek(0, 2)
        directory = _directory(listed, size)
        end = 0
        for member in _listed(listed, *directory) if directory else _found(file, size):
            if member.name.endswith("/"):
                continue
            entry = ImageEntry(f"{archive.image_uri}#{member.name}", member.size, archive.modified_at, archive.etag)
            start = None if member.start < end else _data_start(file, member.start)
            end = max(end, member.start)
            if start is None or start + member.packed > size:
                problem: str | None = "Its archive does not hold it whole: pack it again."
            else:
                problem, end = member.problem, start + member.packed
            if problem:
                yield replace(entry, size_bytes=None, status=Status.UNDECODABLE, error=problem)
            else:
                packed = None if member.method == _STORED else member.packed
                yield replace(entry, archive_uri=archive.image_uri, data_offset=start, packed_bytes=packed)
        if not directory:
            raise BrokenArchiveError("it breaks off, or is no zip")


def inflate(content: bytes, size: int) -> bytes:
    """What was deflated to `content`, which must come to `size` bytes; no more are made.

    Raises:
        ImageError: it does not.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        unpacked = inflater.decompress(content, size + 1)
    except zlib.error as error:
        raise ImageError(Status.UNDECODABLE, f"Its archive does not hold it whole ({error}): pack it again.") from error
    if len(unpacked) != size:
        raise ImageError(Status.UNDECODABLE, "Its archive does not hold it whole: pack it again.")
    return unpacked


def _directory(file: IO[bytes], size: int) -> tuple[int, int, int] | None:
    """Where the directory begins and ends, and by how much all is moved by what stands before the zip; None without one."""
    tail_start = max(0, size - _MAX_COMMENT - _END.size)
    file.seek(tail_start)
    tail = file.read()
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) < place + _END.size:
        return None
    length, offset = _END.unpack_from(tail, place)[5:7]
    end = tail_start + place
    if end >= _LOCATOR64.size:
        file.seek(end - _LOCATOR64.size)
        magic, _, place64, _ = _LOCATOR64.unpack(file.read(_LOCATOR64.size))
        if magic == b"PK\x06\x07":
            end -= _LOCATOR64.size + _END64.size
            for candidate in (place64, end):  # where it says, or where it is when something was put before the zip
                if 0 <= candidate <= size - _END64.size:
                    file.seek(candidate)
                    record = _END64.unpack(file.read(_END64.size))
                    if record[0] == b"PK\x06\x06":
                        length, offset, end = record[8], record[9], candidate
                        break
    start = end - length
    return (start, end, start - offset) if 0 <= offset <= start else None


def _listed(file: IO[bytes], start: int, end: int, shift: int) -> Iterator[_Member]:
    """The members that the directory lists."""
    file.seek(start)
    while file.tell() < end:
        header = _read(file, _CENTRAL)
        if header is None or header[0] != b"PK\x01\x02":
            raise BrokenArchiveError("its directory is broken")
        flags, method = header[3:5]
        packed, size, name_length, extra_length, comment_length = header[8:13]
        name, extra = file.read(name_length), file.read(extra_length)
        file.seek(comment_length, 1)
        size, packed, place = _widened(extra, (size, packed, header[16]))
        yield _Member(_decoded(name, flags), flags, method, packed, size, place + shift, header[15] >> 16)


def _found(file: IO[bytes], size: int) -> Iterator[_Member]:
    """The members of a zip without a directory that are whole, by their own headers."""
    place = 0
    while True:
        file.seek(place)
        header = _read(file, _LOCAL)
        if header is None or header[0] != b"PK\x03\x04" or header[2] & _SIZES_FOLLOW:
            return
        flags, method = header[2:4]
        name, extra = file.read(header[9]), file.read(header[10])
        unpacked, packed = _widened(extra, (header[8], header[7]))
        end = place + _LOCAL.size + len(name) + len(extra) + packed
        if end > size:
            return
        yield _Member(_decoded(name, flags), flags, method, packed, unpacked, place)
        place = end


def _data_start(file: IO[bytes], place: int) -> int | None:
    """Where the bytes of a member begin whose header is at a place; None where there is no header."""
    file.seek(place)
    header = _read(file, _LOCAL)
    return None if header is None or header[0] != b"PK\x03\x04" else place + _LOCAL.size + int(header[9]) + int(header[10])


def _read(file: IO[bytes], kind: struct.Struct) -> tuple[Any, ...] | None:
    content = file.read(kind.size)
    return kind.unpack(content) if len(content) == kind.size else None


def _widened(extra: bytes, values: tuple[int, ...]) -> list[int]:
    """The values, those too large for 4 bytes from the extra field."""
    wide: list[int] = []
    place = 0
    while _IN_EXTRA in values and not wide and place <= len(extra) - 4:
        kind, length = struct.unpack_from("<2H", extra, place)
        place += 4
        if kind == 1:
            wide = list(struct.unpack_from(f"<{min(length, len(extra) - place) // 8}Q", extra, place))
        place += length
    return [wide.pop(0) if value == _IN_EXTRA and wide else value for value in values]


def _decoded(name: bytes, flags: int) -> str:
    """Some that say nothing of UTF-8 use it all the same."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode(errors="backslashreplace") if flags & _IS_UTF8 else name.decode("cp437")
