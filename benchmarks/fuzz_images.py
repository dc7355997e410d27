"""Decodes damaged files of every format that is read, in child processes, and counts what must not happen: deaths, hangs, much memory.

Small files of each format are made, and each mutation, which its number and the seed give again, changes one: bits flipped, bytes
and numbers overwritten in the header, parts cut out, doubled, moved, or taken from another file of the format. A child decodes them
one after the other; when it dies or takes longer than --seconds for one, that one is counted and named and a fresh child goes on.
With --files the files of a folder, up to 100 kB each, are changed too.

    .venv/bin/python benchmarks/fuzz_images.py [--count 70000] [--seed 1] [--processes 1] [--seconds 60] [--keep DIR] [--formats ...]
        [--files DIR]
"""

from __future__ import annotations

import argparse
import json
import random
import selectors
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

from small_images import seeds_of

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
    parser.add_argument("--files", type=Path, help="folder of more files to change")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--range", nargs=2, type=int, default=(0, 0), help=argparse.SUPPRESS)
    return parser.parse_args()


def watch(arguments: argparse.Namespace, start: int, end: int) -> list[dict[str, Any]]:
    """Have children decode the mutations from start to end; one report for each."""
    reports: list[dict[str, Any]] = []
    while start < end:
        command = [sys.executable, __file__, "--child", "--seed", str(arguments.seed), "--range", str(start), str(end)]
        command += ["--formats", *arguments.formats, *(["--files", str(arguments.files)] if arguments.files else [])]
        with subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:  # select sees no buffer
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
                name, _ = mutation(arguments, start)
                reports.append({"mutation": start, "format": name, "outcome": outcome or "death", "exit": child.returncode})
                start += 1
        for report in reports:
            if arguments.keep and report["outcome"] in ("death", "hang", "error"):
                arguments.keep.mkdir(parents=True, exist_ok=True)
                number = report["mutation"]
                (arguments.keep / f"{number}.bin").write_bytes(mutation(arguments, number)[1])
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
    for number in range(*arguments.range):
        name, content = mutation(arguments, number)
        before, started = reset_peak(), time.process_time()
        report: dict[str, Any] = {"mutation": number, "format": name, "outcome": "decoded"}
        try:
            decode(content, MAX_MEGAPIXELS, ENOUGH_PIXELS)
        except ImageError as error:
            report["outcome"] = str(error.status)
        except Exception as error:  # noqa: BLE001 - whatever a decoder lets through is what this script counts
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


def mutation(arguments: argparse.Namespace, number: int) -> tuple[str, bytes]:
    """The format and the bytes of one mutation."""
    generator = random.Random(f"{arguments.seed} {number}")
    seeds = seeds_of(tuple(arguments.formats), arguments.files)
    name = sorted(seeds)[number % len(seeds)]
    content = bytearray(generator.choice(seeds[name]))
    for _ in range(generator.choice((1, 1, 1, 2, 4))):
        generator.choice((flip_bits, flip_bits, set_bytes, set_number, set_number, cut, splice))(content, generator, seeds[name])
    if name == "PNG" and generator.random() < 0.5:
        correct_checksums(content)
    return name, bytes(content)


def correct_checksums(content: bytearray) -> None:
    """Of a PNG's chunks: where these are wrong, no decoder looks at what was changed."""
    at = 8
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        content[end : end + 4] = zlib.crc32(content[at + 4 : end]).to_bytes(4, "big") if end + 4 <= len(content) else content[end : end + 4]
        at = end + 4


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


if __name__ == "__main__":
    main()
