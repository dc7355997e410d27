"""Small files of every format that is read, in the ways that each can be written: what `fuzz_images.py` damages."""

from __future__ import annotations

import io
import sys
import zlib
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pillow_heif
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from tiffs import LONG, SHORT, page, tiff

from fer_ray.errors import ImageError
from fer_ray.vision.formats import format_of

MAX_FILE_BYTES = 100_000


@cache
def seeds_of(formats: tuple[str, ...], folder: Path | None) -> dict[str, list[bytes]]:
    """Small files of each format, in the ways that it can be written."""
    pillow_heif.register_heif_opener()
    x, y = np.meshgrid(np.arange(48), np.arange(36))
    photo = Image.fromarray(np.stack([5 * x, 7 * y, (x * y) % 256], axis=2).astype(np.uint8))
    alpha = photo.convert("RGBA")
    alpha.putalpha(photo.convert("L"))
    deep = np.asarray(photo, np.uint16) * 257
    gray_alpha = deep[..., :2].tobytes()
    more = {258: (SHORT, (16, 16)), 277: (SHORT, (2,)), 279: (LONG, (len(gray_alpha),)), 317: (SHORT, (2,)), 338: (SHORT, (2,))}
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [photo.transpose(Image.Transpose.ROTATE_180)]}
    seeds = {
        "JPEG": [
            encode(photo, "JPEG", exif=exif),
            encode(photo, "JPEG", progressive=True, subsampling=0),
            encode(photo.convert("CMYK"), "JPEG"),
            encode(photo.convert("L"), "JPEG", restart_marker_blocks=2),
        ],
        "PNG": [
            encode(photo, "PNG", exif=exif),
            encode(photo, "PNG", **frames),
            encode(alpha, "PNG"),
            encode(photo.quantize(16), "PNG"),
            *(encode_by_opencv(".png", deep[..., :channels] >> shift) for channels in (1, 3) for shift in (0, 6)),
        ],
        "WEBP": [
            encode(photo, "WEBP", exif=exif),
            encode(photo, "WEBP", lossless=True),
            encode(alpha, "WEBP"),
            encode(photo, "WEBP", **frames),
        ],
        "TIFF": [
            *(
                encode(photo, "TIFF", compression=compression)
                for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "lzma", "zstd")
            ),
            *(encode(photo.convert("1"), "TIFF", compression=compression) for compression in ("group3", "group4", "tiff_ccitt")),
            encode(photo.resize((12, 9)), "TIFF", save_all=True, append_images=[photo]),
            encode(photo, "TIFF", big_tiff=True),
            encode(photo.convert("F"), "TIFF"),
            encode(photo.convert("CMYK"), "TIFF"),
            encode(photo.quantize(16), "TIFF", compression="tiff_lzw", tiffinfo={274: 6}),
            encode_by_opencv(".tiff", deep >> 6),
            *(
                tiff(page(48, 36, more, photometric=1, compression=n), data=data)
                for n, data in ((1, gray_alpha), (8, zlib.compress(gray_alpha)))
            ),
        ],
        "HEIF": [
            encode(photo, "HEIF"),
            encode(alpha, "HEIF", chroma=444),
            encode(photo.resize((128, 96)), "HEIF", tile_size=64),
            encode(photo, "HEIF", **frames),
            encode_deep_heif(deep),
        ],
        "AVIF": [
            encode(photo, "AVIF", exif=exif),
            encode(alpha, "AVIF", subsampling="4:4:4"),
            encode(photo, "AVIF", **frames),
        ],
        "GIF": [encode(photo, "GIF"), encode(photo, "GIF", **frames), encode(photo.quantize(4), "GIF", transparency=1, interlace=1)],
        "BMP": [encode(photo, "BMP"), encode(photo.convert("L"), "BMP"), encode(photo.convert("1"), "BMP"), encode(alpha, "BMP")],
        "JPEG2000": [
            encode(photo, "JPEG2000"),
            encode(photo, "JPEG2000", no_jp2=True, irreversible=True),
            encode(photo, "JPEG2000", tile_size=(16, 16)),
            encode(photo, "JPEG2000", codeblock_size=(4, 4)),
            encode(alpha, "JPEG2000"),
            encode(Image.fromarray(deep[..., 0]), "JPEG2000"),
        ],
        "PPM": [
            encode(photo, "PPM"),
            encode(photo.convert("L"), "PPM"),
            encode(photo.convert("1"), "PPM"),
            encode(Image.fromarray(deep[..., 0]), "PPM"),
            b"P3\n# plain\n3 2\n255\n" + b"250 0 9 " * 6,
            b"P5 4 2 1023\n" + bytes(range(16)),
        ],
        "RAW": raw_files(photo),
    }
    for path in sorted(folder.rglob("*")) if folder else ():
        if path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
            content = path.read_bytes()
            with suppress(ImageError):  # of no format that is read
                seeds[format_of(content)].append(content)
    return {name: files for name, files in seeds.items() if not formats or name in formats}


def raw_files(photo: Image.Image) -> list[bytes]:
    """What a sensor measured, with a preview in JPEG beside it: as DNG and NEF have it, and inside another container."""
    preview = encode(photo.resize((640, 480)), "JPEG", quality=20)
    sensor = np.asarray(photo.convert("L"), np.uint16)
    dng = encode(Image.fromarray(sensor), "TIFF", tiffinfo={262: 32803, 274: 6}) + preview
    return [dng, b"FUJIFILMCCD-RAW 0201" + bytes(64) + preview, b"IIU\0" + dng[4:]]


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def encode_by_opencv(suffix: str, image: np.ndarray) -> bytes:
    return bytes(cv2.imencode(suffix, image)[1])


def encode_deep_heif(deep: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.encode("RGB;16", (deep.shape[1], deep.shape[0]), deep.tobytes(), buffer)
    return buffer.getvalue()
