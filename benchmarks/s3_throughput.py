"""How fast the labeling job reads from S3, against the same photographs in a folder.

The store runs on the same cores, unlike a real one, so its CPU time is shown beside. There are two: moto's server, which
is written in Python and takes about as long to answer as a portrait takes to label; and nginx (apt-get install nginx-light),
which answers the same signed requests for next to nothing but cannot list, so the images are named in a CSV. Folder and
store see the same photographs in alternating rounds, N and 2N of them; the rate comes from the difference, so that start-up
drops out. Without --photos, the demo photographs are cut to 250 x 250 pixels (and to two megapixels with --large).

`store_costs.py` prints what a GET and a listed key cost.

    .venv/bin/python benchmarks/s3_throughput.py [--store moto|nginx] [--photos DIR] [--large] [--images N] [--rounds R]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
from label_throughput import PROCESSES, ROOT, Cost, draw_photographs, link_images, measure

sys.path.insert(0, str(ROOT / "tests" / "support"))
from stores import S3Server, free_port, wait_for

BUCKET = "photographs"


class MotoStore:
    """moto's server; the images are found by listing a prefix."""

    def __init__(self, root: Path) -> None:
        self.server = S3Server()
        os.environ.update(self.server.environment)
        self.server.client().create_bucket(Bucket=BUCKET)
        self.endpoint, self.processes = self.server.endpoint, [psutil.Process(self.server.pid)]

    def upload(self, folder: Path) -> str:
        for photograph in sorted(folder.iterdir()):
            self.server.client().put_object(Bucket=BUCKET, Key=f"{folder.name}/{photograph.name}", Body=photograph.read_bytes())
        return f"s3://{BUCKET}/{folder.name}"

    def stop(self) -> None:
        self.server.stop()


class NginxStore:
    """nginx over a folder; the images are named in a list."""

    def __init__(self, root: Path) -> None:
        os.environ.update(AWS_ACCESS_KEY_ID="any", AWS_SECRET_ACCESS_KEY="any", AWS_DEFAULT_REGION="us-east-1")  # nginx asks for none
        self.root, port = root, free_port()
        root.chmod(0o755)
        (root / BUCKET).mkdir()
        (root / "nginx.conf").write_text(
            f"daemon off; user root; pid {root}/pid; error_log {root}/errors; events {{}} http {{ access_log off; "
            f"server {{ listen 127.0.0.1:{port}; root {root}; keepalive_requests 1000000; }} }}"
        )
        self.process = subprocess.Popen(["nginx", "-p", str(root), "-c", str(root / "nginx.conf")])
        wait_for(str(port))
        self.endpoint = f"http://127.0.0.1:{port}"
        self.processes = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children()]

    def upload(self, folder: Path) -> str:
        (self.root / BUCKET / folder.name).symlink_to(folder)
        uris = [f"s3://{BUCKET}/{folder.name}/{photograph.name}" for photograph in sorted(folder.iterdir())]
        named = self.root / f"{folder.name}.csv"
        named.write_text("\n".join(["image_uri", *uris]))
        return str(named)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


Store = MotoStore | NginxStore


def cpu_seconds(store: Store) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in store.processes)


def label(source: str, output: Path, store: Store) -> tuple[Cost, float]:
    """What the job costs, and the CPU seconds of the store meanwhile."""
    command = [sys.executable, "jobs/label.py", "--input", source, "--output", str(output), "--workers", str(PROCESSES)]
    before = cpu_seconds(store)
    cost = measure([*command, "--s3-endpoint", store.endpoint], {})
    return cost, cpu_seconds(store) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=("moto", "nginx"), default="moto")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "store").mkdir()
        root.chmod(0o755)
        store: Store = NginxStore(root / "store") if arguments.store == "nginx" else MotoStore(root / "store")
        try:
            photographs = sorted(p for p in arguments.photos.rglob("*") if p.is_file()) if arguments.photos else None
            photographs = photographs or draw_photographs(root / "photographs", arguments.large)
            folders = [link_images(root / f"photographs{n}", photographs, n) for n in (arguments.images, 2 * arguments.images)]
            sources = {"folder": [str(folder) for folder in folders], "s3": [store.upload(folder) for folder in folders]}
            report(arguments.images, rounds(arguments.rounds, sources, root, store))
        finally:
            store.stop()


def rounds(count: int, sources: dict[str, list[str]], root: Path, store: Store) -> dict[str, list[tuple[float, float, float]]]:
    """Of each place and round: the seconds, CPU seconds and store CPU seconds that N more images take."""
    figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sources}
    for number in range(count):
        for name, (once, twice) in sources.items():
            (first, first_store), (second, second_store) = (
                label(source, root / f"{name}{number}{n}", store) for n, source in enumerate((once, twice))
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
