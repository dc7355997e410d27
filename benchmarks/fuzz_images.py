"""Decodes damaged files of every format that is read, in child processes, and counts what must not happen: deaths, hangs, much memory.

Small files of each format are made, and each mutation, which its number and the seed give again, changes one: bits flipped, bytes
and numbers overwritten in the header, parts cut out, doubled, moved, or taken from another file of the format. A child decodes them
one after the other; when it dies or takes longer than --seconds for one, that one is counted and named and a fresh child goes on.

    .venv/bin/python benchmarks/fuzz_images.py [--count 70000] [--seed 1] [--processes 1] [--seconds 60] [--keep DIR] [--formats ...]
"""

from __future__ import annotations

import argparse
import io
import json
import random
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

import cv2
import numpy as np
import pillow_heif
from PIL import Image

from fer_ray.errors import ImageError
from fer_ray.vision.decode import decode

MAX_MEGAPIXELS = 100.0  # as labeling has it
ENOUGH_PIXELS = 720
NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 4096, 9999, 16384, 32767, 32768, 65535, 65536, 1 << 20, 1 << 24, (1 << 31) - 1, (1 << 32) - 1)
HEADER_BYTES = 400


def main() -> None:
    arguments = parse_arguments()
    if arguments.child:
        serve(arguments)
        return
    started = time.monotonic()
    starts = [arguments.count * process // arguments.processes for process in range(arguments.processes + 1)]
    with ThreadPoolExecutor(arguments.processes) as pool:
        reports = [
            report
            for part in pool.map(lambda at: watch(arguments, starts[at], starts[at + 1]), range(arguments.processes))
            for report in part
        ]
    by_format: dict[str, Counter[str]] = {}
    for report in reports:
        by_format.setdefault(report["format"], Counter())[report["outcome"]] += 1
    for name, outcomes in sorted(by_format.items()):
        peak = max(report.get("peak", 0) for report in reports if report["format"] == name)
        longest = max(report.get("seconds", 0) for report in reports if report["format"] == name)
        print(f"{name:9}", dict(sorted(outcomes.items())), f"at most {peak / 1e6:.0f} MB, {longest:.1f} s of CPU")
    for report in reports:
        if report["outcome"] in ("death", "hang", "error"):
            print(json.dumps(report))
    totals = Counter(report["outcome"] for report in reports)
    summary = {
        "mutations": len(reports),
        **{outcome: totals[outcome] for outcome in ("death", "hang", "error", "decoded", "undecodable", "too_large")},
        "peak_megabytes": round(max(report.get("peak", 0) for report in reports) / 1e6),
        "longest_cpu_seconds": round(max(report.get("seconds", 0) for report in reports), 2),
        "wall_seconds": round(time.monotonic() - started),
    }
    print(json.dumps(summary))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=70_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="what takes longer is a hang")
    parser.add_argument("--keep", type=Path, help="folder for the files that end, hold up or trip a child")
    parser.add_argument("--formats", nargs="*", default=[], help="only these, such as TIFF (default: all)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--range", nargs=2, type=int, default=(0, 0), help=argparse.SUPPRESS)
    return parser.parse_args()


def watch(arguments: argparse.Namespace, start: int, end: int) -> list[dict[str, Any]]:
    """Have children decode the mutations from start to end; one report for each."""
    reports: list[dict[str, Any]] = []
    while start < end:
        command = [sys.executable, __file__, "--child", "--seed", str(arguments.seed), "--range", str(start), str(end)]
        command += ["--formats", *arguments.formats]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            outcome = None
            for line in lines_of(cast("IO[bytes]", child.stdout), arguments.seconds):
                if line is None:
                    outcome = "hang"
                    break
                reports.append(json.loads(line))
                start += 1
            if start < end:
                child.kill()
                child.wait()
                name, _ = mutation(arguments.seed, start, tuple(arguments.formats))
                reports.append({"mutation": start, "format": name, "outcome": outcome or "death", "exit": child.returncode})
                start += 1
        for report in reports:
            if arguments.keep and report["outcome"] in ("death", "hang", "error"):
                arguments.keep.mkdir(parents=True, exist_ok=True)
                number = report["mutation"]
                (arguments.keep / f"{number}.bin").write_bytes(mutation(arguments.seed, number, tuple(arguments.formats))[1])
    return reports


def lines_of(stream: IO[bytes], seconds: float) -> Iterator[bytes | None]:
    """Its lines; None when one does not come in time. The first may take a while more, since the child starts."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        patience = seconds + 60
        while True:
            if not selector.select(patience):
                yield None
                return
            line = stream.readline()
            if not line.endswith(b"\n"):
                return
            yield line
            patience = seconds


def serve(arguments: argparse.Namespace) -> None:
    seeds_of(tuple(arguments.formats))
    for number in range(*arguments.range):
        name, content = mutation(arguments.seed, number, tuple(arguments.formats))
        before, started = reset_peak(), time.process_time()
        report: dict[str, Any] = {"mutation": number, "format": name, "outcome": "decoded"}
        try:
            decode(content, MAX_MEGAPIXELS, ENOUGH_PIXELS)
        except ImageError as error:
            report["outcome"] = str(error.status)
        except Exception as error:  # noqa: BLE001 - what is counted
            report |= {"outcome": "error", "reason": repr(error)[:200]}
        report |= {"seconds": round(time.process_time() - started, 3), "peak": peak_bytes() - before}
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()


def reset_peak() -> int:
    """Start the kernel's count of the most memory anew, and say how much there is."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def mutation(seed: int, number: int, formats: tuple[str, ...]) -> tuple[str, bytes]:
    """The format and the bytes of one mutation."""
    generator = random.Random(f"{seed} {number}")
    seeds = seeds_of(formats)
    name = sorted(seeds)[number % len(seeds)]
    content = bytearray(generator.choice(seeds[name]))
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        generator.choice((flip_bits, flip_bits, set_bytes, set_number, set_number, cut, splice))(content, generator, seeds[name])
    return name, bytes(content)


def place(content: bytearray, generator: random.Random) -> int:
    """Mostly in the header, where the sizes are."""
    return generator.randrange(max(1, min(len(content), HEADER_BYTES) if generator.random() < 0.6 else len(content)))


def flip_bits(content: bytearray, generator: random.Random, others: list[bytes]) -> None:
    for _ in range(generator.choice((1, 1, 2, 4, 8, 32))):
        if content:
            content[place(content, generator)] ^= 1 << generator.randrange(8)


def set_bytes(content: bytearray, generator: random.Random, others: list[bytes]) -> None:
    for _ in range(generator.choice((1, 1, 2, 4, 8))):
        if content:
            content[place(content, generator)] = generator.choice((0, 1, 127, 128, 254, 255, generator.randrange(256)))


def set_number(content: bytearray, generator: random.Random, others: list[bytes]) -> None:
    size = generator.choice((2, 4))
    value = (generator.choice(NUMBERS) + generator.choice((-1, 0, 0, 1))) % (1 << 8 * size)
    at = place(content, generator)
    content[at : at + size] = value.to_bytes(size, generator.choice(("little", "big")))


def cut(content: bytearray, generator: random.Random, others: list[bytes]) -> None:
    start = place(content, generator)
    if generator.random() < 0.5:
        del content[start:]
    else:
        del content[start : start + generator.choice((1, 2, 4, 16, 64, 512))]


def splice(content: bytearray, generator: random.Random, others: list[bytes]) -> None:
    other = generator.choice([*others, bytes(content)])
    start = generator.randrange(max(1, len(other)))
    part = other[start : start + generator.choice((4, 16, 64, 256, 4096))]
    at = place(content, generator)
    content[at : at + (len(part) if generator.random() < 0.5 else 0)] = part


@cache
def seeds_of(formats: tuple[str, ...]) -> dict[str, list[bytes]]:
    """Small files of each format, in the ways that it can be written."""
    pillow_heif.register_heif_opener()
    x, y = np.meshgrid(np.arange(48), np.arange(36))
    photo = Image.fromarray(np.stack([5 * x, 7 * y, (x * y) % 256], axis=2).astype(np.uint8))
    alpha = photo.convert("RGBA")
    alpha.putalpha(photo.convert("L"))
    deep = np.asarray(photo, np.uint16) * 257
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


if __name__ == "__main__":
    main()
