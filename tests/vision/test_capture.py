"""When, where and with what a picture was taken: what every decoder finds, and what strangers' bytes do not do."""

import datetime
import io
import random
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fer_ray.vision.capture import NOTHING_RECORDED, Capture, read_capture, read_capture_of_raw
from fer_ray.vision.decode import decode
from fer_ray.vision.formats import Format

TAKEN = datetime.datetime(2019, 7, 1, 23, 34, 56, 780_000)
RECORDED = Capture(TAKEN, 120, "Canon", "EOS 5D", 48.5125, -1.5)
PLACE = {1: "N", 2: (48.0, 30.0, 45.0), 3: "W", 4: (1.0, 30.0, 0.0)}
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description photoshop:DateCreated="2019-07-01T23:34:56.78+02:00"
 exif:GPSLatitude="48,30.75N" exif:GPSLongitude='1,30,0W' tiff:Make="Canon"><tiff:Model>EOS 5D</tiff:Model></rdf:Description></x:xmpmeta>"""


def exif_block(taken: str = "2019:07:01 23:34:56", offset: str = "+02:00", place: Mapping[int, object] = PLACE) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0132] = "Canon", "EOS 5D \0rest", "2024:01:01 00:00:00"
    exif.get_ifd(0x8769).update({0x9003: taken, 0x9011: offset, 0x9291: "78"} if taken else {})
    exif.get_ifd(0x8825).update(place)
    return exif


def encoded(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), 128, np.uint8)).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "HEIF", "AVIF"])
def test_what_the_camera_recorded_is_found_in_every_format(kind: str) -> None:
    decoded = decode(encoded(kind, exif=exif_block().tobytes()), 1, 480)
    assert (decoded.format, decoded.capture) == (Format(kind), RECORDED)
    assert decode(encoded(kind), 1, 480).capture == NOTHING_RECORDED


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_xmp_says_what_exif_does_not(kind: str) -> None:
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    own: dict[str, dict[str, Any]] = {"PNG": {"pnginfo": text}, "TIFF": {"tiffinfo": {700: XMP}}}
    options = own.get(kind, {"xmp": XMP})
    assert decode(encoded(kind, **options), 1, 480).capture == RECORDED


def test_raw_files_record_it_in_their_own_directory_or_boxes() -> None:
    preview = encoded("JPEG")
    tiff = exif_block().tobytes().removeprefix(b"Exif\0\0")
    assert read_capture_of_raw(tiff + preview) == RECORDED
    assert read_capture_of_raw(tiff[:2] + b"RO" + tiff[4:]).camera_make == "Canon"  # Olympus has a number of its own there

    def block(*entries: tuple[int, int, int, bytes]) -> bytes:
        packed = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
        return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4)

    taken = block((0x9003, 2, 20, struct.pack("<I", 26)))[:-4] + bytes(4) + b"2019:07:01 23:34:56\0"
    boxes = b"\0\0\0\x18ftypcrx " + b"CMT1" + block((0x010F, 2, 3, b"Own\0")) + b"CMT2" + taken
    assert read_capture_of_raw(boxes) == Capture(TAKEN.replace(microsecond=0), camera_make="Own")


def test_a_time_that_is_none_is_null_and_never_that_of_an_edit_or_of_the_file() -> None:
    for taken in ("0000:00:00 00:00:00", "2019:02:30 10:00:00", "    :  :     :  :  ", "1600:01:01 00:00:00", "yesterday", ""):
        assert read_capture(exif_block(taken).tobytes()).taken_at is None
    offsets = {"+02:00": 120, "-09:30": -570, "Z": 0, "+99:00": None, "": None, "\xe9": None}
    for offset, minutes in offsets.items():
        assert read_capture(exif_block(offset=offset).tobytes()).taken_offset_minutes == minutes


def test_a_place_that_is_none_on_earth_is_null() -> None:
    for place in (
        {},
        {**PLACE, 1: "X"},
        {**PLACE, 2: (91.0, 0.0, 0.0)},
        {**PLACE, 4: (181.0, 0.0, 0.0)},
        {1: "N", 2: (0.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)},
        {1: "N", 2: (1.0, 0.0, 0.0)},
    ):
        found = read_capture(exif_block(place=place).tobytes())
        assert (found.latitude, found.longitude, found.taken_at) == (None, None, TAKEN)


def test_bytes_of_strangers_raise_nothing_and_take_nothing() -> None:
    chance = random.Random(0)
    blocks = [exif_block().tobytes().removeprefix(b"Exif\0\0"), XMP]
    for turn in range(3000):
        broken = [bytearray(block[: chance.randrange(len(block))] if turn % 3 else block) for block in blocks]
        for block in broken:
            for _ in range(chance.randrange(1, 12)):
                if block:
                    block[chance.randrange(len(block))] = chance.choice((0, 255, 58, 65, chance.randrange(256)))
        found = read_capture(bytes(broken[0]), bytes(broken[1]))
        read_capture_of_raw(b"\0\0\0\x18ftypcrx CMT1" + bytes(broken[0]))
        assert len(found.camera_make or "") <= 128
        assert found.latitude is None or -90 <= found.latitude <= 90
    endless = b"II*\0\x08\0\0\0" + struct.pack("<H", 65535) + struct.pack("<HHII", 0x010F, 2, 2**32 - 1, 8) * 65535
    assert len(read_capture(endless).camera_make or "") <= 128
    assert read_capture(b"", b'tiff:Make="' + b"x" * 10_000_000) == NOTHING_RECORDED
