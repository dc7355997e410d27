"""JPEG by OpenCV (libjpeg-turbo): upright, at reduced scale where that is enough, within known memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from fer_ray.typing import UInt8Array
from fer_ray.vision.tiff import orientation_of

START = b"\xff\xd8\xff"
_FLAGS = {
    1: cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION,
    2: cv2.IMREAD_REDUCED_COLOR_2 | cv2.IMREAD_IGNORE_ORIENTATION,
    4: cv2.IMREAD_REDUCED_COLOR_4 | cv2.IMREAD_IGNORE_ORIENTATION,
    8: cv2.IMREAD_REDUCED_COLOR_8 | cv2.IMREAD_IGNORE_ORIENTATION,
}
_FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xC9, 0xCA))  # baseline, extended and progressive, with Huffman or arithmetic coding
_PROGRESSIVE = frozenset((0xC2, 0xCA))
_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xD8)))  # stuffed bytes, TEM, restarts
_SCAN = 0xDA
_APP1 = 0xE1
_END = b"\xff\xd9"
MAX_SCANS = 100  # encoders write about ten; of the smallest, a file of 2 MB may have 30,000, which take minutes
_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_NOWHERE = (0, 0)
MAX_SEGMENTS = 2_000  # before the picture; a profile of 16 MB has 256
MAX_PREVIEWS = 5_000  # JPEGs that are looked at inside another file; RAW pixels can lie in hundreds of them


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """What a JPEG says of itself before its picture begins.

    Attributes:
        width: as stored, before it is turned.
        height: the same.
        orientation: EXIF's, 1 to 8; 0 where there is none.
        kept_samples: coefficients that the decoder must keep until the last scan: none where there is only one.
        scans_at: where the first scan begins.
        exif: where its EXIF block begins and ends; nowhere where there is none.
        xmp: the same of its XMP packet.
    """

    width: int
    height: int
    orientation: int
    kept_samples: int
    scans_at: int
    exif: tuple[int, int] = _NOWHERE
    xmp: tuple[int, int] = _NOWHERE

    def working_bytes(self, reduction: int) -> int:
        """The memory that decoding takes: two bytes for each kept coefficient, the pixels, and a copy of them that is turned."""
        return 2 * self.kept_samples + (6 if self.orientation > 1 else 3) * self.width * self.height // reduction**2


def read_header(content: bytes, start: int = 0) -> JpegHeader:
    """Read a JPEG's segments up to its picture, as libjpeg does.

    Raises:
        ValueError, IndexError: it is broken, or of a kind that libjpeg does not decode to eight bits.
    """
    at, orientation, frame, progressive = start + 2, 0, b"", False
    exif = xmp = _NOWHERE
    for _ in range(MAX_SEGMENTS):
        at = content.index(b"\xff", at) + 1
        while content[at] == 0xFF:
            at += 1
        marker = content[at]
        at += 1
        if marker in _WITHOUT_LENGTH:
            continue
        length = content[at] << 8 | content[at + 1]
        if marker == _SCAN:
            header = _header(frame, orientation, progressive, content[at + 2], scans_at=at - 2)
            return replace(header, exif=exif, xmp=xmp)
        if marker in _FRAMES and not frame:
            frame, progressive = content[at + 2 : at + length], marker in _PROGRESSIVE
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            raise ValueError("the kind of JPEG is not supported")
        elif marker == _APP1 and not orientation and content.startswith(_EXIF, at + 2):
            orientation = orientation_of(content[at + 8 : at + length])
            exif = (at + 8, at + length) if exif == _NOWHERE else exif
        elif marker == _APP1 and xmp == _NOWHERE and content.startswith(_XMP, at + 2):
            xmp = at + 2 + len(_XMP), at + length
        at += max(length, 2)
    raise ValueError("the JPEG has too many segments")


def _header(frame: bytes, orientation: int, progressive: bool, scan_components: int, scans_at: int) -> JpegHeader:
    if len(frame) < 6 or frame[0] != 8:
        raise ValueError("the JPEG has no picture of eight bits")
    height, width, components = frame[1] << 8 | frame[2], frame[3] << 8 | frame[4], frame[5]
    if not (height and width):
        raise ValueError("the JPEG has no size")
    kept = 0
    if progressive or scan_components < components:
        factors = [(byte >> 4, byte & 15) for byte in frame[7::3]]
        widest, highest = max(f[0] for f in factors) or 1, max(f[1] for f in factors) or 1
        kept = sum(width * height * across * down // (widest * highest) for across, down in factors)
    return JpegHeader(width, height, orientation, kept, scans_at)


def count_scans(content: bytes, header: JpegHeader) -> int:
    """How many scans there are up to the end of the picture: films and RAW pixels may lie behind it, with any bytes."""
    end = content.find(_END, header.scans_at)
    return content.count(bytes((0xFF, _SCAN)), header.scans_at, end if end >= 0 else len(content))


def decode_jpeg(content: bytes, header: JpegHeader, reduction: int, start: int = 0) -> UInt8Array:
    """Upright pixels (h, w, 3) BGR, at one over `reduction` of their size.

    Raises:
        ValueError, cv2.error: it cannot be decoded, or is not what its header says.
    """
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8, offset=start), _FLAGS[reduction])
    if pixels is None:
        raise ValueError("OpenCV cannot decode it")
    if pixels.shape[:2] != (-(-header.height // reduction), -(-header.width // reduction)):
        raise ValueError("the picture has another size than the header says")
    return turn_upright(np.asarray(pixels, np.uint8), header.orientation)


def turn_upright(pixels: UInt8Array, orientation: int) -> UInt8Array:
    """Undo what EXIF's orientation says was done to the pixels."""
    if orientation in (5, 7):
        pixels = np.asarray(cv2.transpose(pixels), np.uint8)
    flips = {2: 1, 4: 0, 7: -1}
    turns = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}
    if orientation in flips:
        pixels = np.asarray(cv2.flip(pixels, flips[orientation]), np.uint8)
    if orientation in turns:
        pixels = np.asarray(cv2.rotate(pixels, turns[orientation]), np.uint8)
    return pixels


def largest_jpeg(content: bytes) -> tuple[int, JpegHeader] | None:
    """Where the largest JPEG inside another file starts, as RAW files have them for preview."""
    best: tuple[int, JpegHeader] | None = None
    start = -1
    for _ in range(MAX_PREVIEWS):
        start = content.find(START, start + 1)
        if start < 0:
            break
        try:
            header = read_header(content, start)
        except (ValueError, IndexError):
            continue
        if best is None or header.width * header.height > best[1].width * best[1].height:
            best = start, header
    return best
