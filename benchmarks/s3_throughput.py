"""How fast the labeling job reads from S3, against the same photographs in a folder.

The store is moto's server on loopback, so the machine has to do the store's work too: its CPU time is shown, since a real
store runs elsewhere. Both see the same photographs in alternating rounds, N and 2N of them; the rate comes from the
difference, so that start-up drops out. Without --photos, the demo photographs are cut to 250 x 250 pixels (and to two
megapixels with --large).

    .venv/bin/python benchmarks/s3_throughput.py [--photos DIR] [--large] [--images N] [--rounds R]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import psutil
from label_throughput import PROCESSES, ROOT, Cost, draw_photographs, link_images, measure

sys.path.insert(0, str(ROOT / "tests"))
from stores import S3Server

BUCKET = "photographs"


def upload(server: S3Server, folder: str, photographs: Iterable[Path], count: int) -> str:
    client = server.client()
    for number, photograph in zip(range(count), itertools.cycle(photographs), strict=False):
        client.put_object(Bucket=BUCKET, Key=f"{folder}/{number:06d}{photograph.suffix}", Body=photograph.read_bytes())
    return f"s3://{BUCKET}/{folder}"


def label(source: str, output: Path, server: S3Server) -> tuple[Cost, float]:
    """What the job costs, and the CPU seconds of the store meanwhile."""
    command = [sys.executable, "jobs/label.py", "--input", source, "--output", str(output), "--workers", str(PROCESSES)]
    before = psutil.Process(server.pid).cpu_times()
    cost = measure([*command, "--s3-endpoint", server.endpoint], {})
    after = psutil.Process(server.pid).cpu_times()
    return cost, after.user + after.system - before.user - before.system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    server = S3Server()
    os.environ.update(server.environment)
    server.client().create_bucket(Bucket=BUCKET)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch)
            photographs = sorted(p for p in arguments.photos.rglob("*") if p.is_file()) if arguments.photos else None
            photographs = photographs or draw_photographs(root / "photographs", arguments.large)
            counts = (arguments.images, 2 * arguments.images)
            sources = {
                "folder": [str(link_images(root / f"folder{n}", photographs, n)) for n in counts],
                "s3": [upload(server, f"{n}", photographs, n) for n in counts],
            }
            report(arguments.images, rounds(arguments.rounds, sources, root, server))
    finally:
        server.stop()


def rounds(count: int, sources: dict[str, list[str]], root: Path, server: S3Server) -> dict[str, list[tuple[float, float, float]]]:
    """Of each place and round: the seconds, CPU seconds and store CPU seconds that N more images take."""
    figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sources}
    for number in range(count):
        for name, (once, twice) in sources.items():
            (first, first_store), (second, second_store) = (
                label(source, root / f"{name}{number}{n}", server) for n, source in enumerate((once, twice))
            )
            more = (second.seconds - first.seconds, second.cpu_seconds - first.cpu_seconds, second_store - first_store)
            figures[name].append(more)
            print(f"round {number + 1} {name}: {more[0]:.1f} s more for N more images, the store {more[2]:.1f} CPU-s", flush=True)
    return figures


def report(images: int, figures: dict[str, list[tuple[float, float, float]]]) -> None:
    summary = {}
    for name, runs in figures.items():
        seconds, cpu, store = (sum(column) / len(runs) for column in zip(*runs, strict=True))
        summary[name] = {
            "images_per_second": round(images / seconds, 1),
            "cpu_ms_per_image": round(1000 * cpu / images, 2),
            "store_cpu_ms_per_image": round(1000 * store / images, 2),
        }
        print(f"{name:7s} {summary[name]}")
    ratio = summary["s3"]["images_per_second"] / summary["folder"]["images_per_second"]
    print(f"s3 / folder: {ratio:.2f}")
    print(json.dumps(summary | {"ratio": round(ratio, 3)}))


if __name__ == "__main__":
    main()
