"""Which format a file has, by its first bytes: those that are decoded, and what the others are called in the reason of a row."""

from __future__ import annotations

from enum import StrEnum

from fer_ray.errors import ImageError
from fer_ray.schema import Status


class Format(StrEnum):
    """The formats that are decoded, each by one decoder; the values are the names of Pillow's, which decodes all but JPEG and RAW."""

    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WEBP"
    TIFF = "TIFF"
    HEIF = "HEIF"
    AVIF = "AVIF"
    GIF = "GIF"
    BMP = "BMP"
    JPEG2000 = "JPEG2000"
    PPM = "PPM"
    RAW = "RAW"


_READ = "JPEG, PNG, WebP, TIFF, HEIC, AVIF, GIF, BMP, JPEG 2000, PBM, PGM, PPM and the previews of RAW files"
_READ_MAGIC = (
    (b"\xff\xd8\xff", Format.JPEG),
    (b"\x89PNG\r\n\x1a\n", Format.PNG),
    (b"II*\0", Format.TIFF),
    (b"MM\0*", Format.TIFF),
    (b"II+\0", Format.TIFF),
    (b"MM\0+", Format.TIFF),
    (b"GIF87a", Format.GIF),
    (b"GIF89a", Format.GIF),
    (b"BM", Format.BMP),
    (b"\0\0\0\x0cjP  \r\n\x87\n", Format.JPEG2000),
    (b"\xff\x4f\xff\x51", Format.JPEG2000),
    (b"FUJIFILMCCD-RAW", Format.RAW),
    (b"IIRO", Format.RAW),  # Olympus
    (b"IIRS", Format.RAW),
    (b"MMOR", Format.RAW),
    (b"IIU\0", Format.RAW),  # Panasonic
)
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), Format.AVIF),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"), Format.HEIF),
    b"crx ": Format.RAW,  # Canon's CR3
}
_OTHER_MAGIC = (
    (b"%!", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "PDF"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"P7\n", "PAM"),
    (b"PF\n", "PFM"),
    (b"Pf\n", "PFM"),
    (b"v/1\x01", "OpenEXR"),
    (b"8BPS", "Photoshop"),
    (b"\x59\xa6\x6a\x95", "Sun raster"),
    (b"\0\0\1\0", "an icon"),
    (b"\0\0\2\0", "a cursor"),
    (b"icns", "an icon"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"DDS ", "DirectDraw"),
    (b"qoif", "QOI"),
    (b"\x01\xda", "SGI"),
    (b"\x0a\x05\x01", "PCX"),
    (b"\x8aMNG", "MNG"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile"),
    (b"\x01\0\0\0", "a Windows metafile"),
    (b"SIMPLE  =", "FITS"),
    (b"FOVb", "a Sigma RAW"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"PK\x03\x04", "a zip archive"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML or SVG"),
    (b"<html", "an HTML page"),
    (b"<!doctype html", "an HTML page"),
)


def format_of(content: bytes) -> Format:
    """The format of a file, whatever it is named.

    Raises:
        ImageError: `undecodable`, with the name of the format where it is known.
    """
    for magic, known in _READ_MAGIC:
        if content.startswith(magic):
            return known
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return Format.WEBP
    if content[:1] == b"P" and content[1:2] in b"123456" and content[2:3].isspace():
        return Format.PPM
    if content[4:8] == b"ftyp":
        return _format_of_boxes(content)
    start = content[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, name in _OTHER_MAGIC:
        if content.startswith(magic) or start.startswith(magic.lower()):
            raise _refused(f"The file is {name}, which is not read")
    raise _refused("The file has none of the image formats that are read")


def _format_of_boxes(content: bytes) -> Format:
    """Pictures and films share this container; its brands tell them apart, the major one first."""
    end = min(max(int.from_bytes(content[:4], "big"), 12), 256)
    brands = [content[8:12], *(content[at : at + 4] for at in range(16, end, 4))]
    if brands[0] in (b"mif1", b"msf1") and b"avif" in brands:
        return Format.AVIF
    if brands[0] in _BRANDS:
        return _BRANDS[brands[0]]
    raise _refused("The file is a film (MP4 or QuickTime), which is not read")


def _refused(reason: str) -> ImageError:
    return ImageError(Status.UNDECODABLE, f"{reason}; these are: {_READ}.")
