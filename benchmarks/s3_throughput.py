"""How fast the labeling job reads from S3, against the same photographs in a folder.

The store runs on the same cores, unlike a real one, so its CPU time is shown beside. There are two: moto's server, which
is written in Python and takes about as long to answer as a portrait takes to label; and nginx (apt-get install nginx-light),
which answers the same signed requests for next to nothing but cannot list, so the images are named in a CSV. Folder and
store see the same photographs in alternating rounds; the rate is the job's own, which leaves start-up out. Without --photos, the
demo photographs are cut to 250 x 250 pixels (and to two megapixels with --large).

First one process fetches and labels the photographs from both places in turn, and prints its processor time, which says the same
on a machine that others use too. `store_costs.py` prints what a GET and a listed key cost.

    .venv/bin/python benchmarks/s3_throughput.py [--store moto|nginx] [--photos DIR] [--large] [--images N] [--rounds R]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
from label_throughput import PROCESSES, ROOT, draw_photographs, link_images, measure

sys.path.insert(0, str(ROOT / "tests" / "support"))
from stores import S3Server, free_port, wait_for

from fer_ray import Labeler
from fer_ray.io.inputs import list_images
from fer_ray.io.outages import PatientReader
from fer_ray.io.prefetch import Fetcher
from fer_ray.io.storage import Storage

BUCKET = "photographs"
BATCH = 64


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


def label(source: str, output: Path, store: Store) -> tuple[float, float]:
    """Images/s by the job's own count, which leaves start-up out, and the CPU milliseconds of the store for an image."""
    command = [sys.executable, "jobs/label.py", "--input", source, "--output", str(output), "--workers", str(PROCESSES), "--no-thumbnails"]
    before = cpu_seconds(store)
    measure([*command, "--s3-endpoint", store.endpoint], {})
    (run,) = pq.read_table(output / "runs").to_pylist()
    if run["images_failed"]:
        sys.exit(f"{run['images_failed']} images failed")
    return run["images_per_second"], 1000 * (cpu_seconds(store) - before) / run["images_total"]


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
            folder = link_images(root / "linked", photographs, arguments.images)
            sources = {"folder": str(folder), "s3": store.upload(folder)}
            compare_in_process(arguments.rounds, sources, store)
            compare(arguments.rounds, sources, root, store)
        finally:
            store.stop()


def compare_in_process(rounds: int, sources: dict[str, str], store: Store) -> None:
    """CPU milliseconds of one process for an image, fetched and labeled."""
    labeler, fetcher = Labeler(threads=1), Fetcher(PatientReader(Storage(store.endpoint), 256))
    entries = {name: list(list_images(fetcher.reader.storage, [source], "")) for name, source in sources.items()}
    costs: dict[str, list[float]] = {name: [] for name in sources}
    for number in range(rounds + 1):  # the first warms up
        for name in sorted(sources, reverse=bool(number % 2)):
            started = time.process_time()
            for start in range(0, len(entries[name]), BATCH):
                labeler.label([found for found in fetcher.fetch(entries[name][start : start + BATCH]) if isinstance(found, bytes)])
            costs[name].append(1000 * (time.process_time() - started) / len(entries[name]))
    for name, spent in costs.items():
        print(
            f"{name} in one process: {statistics.median(spent[1:]):.3f} CPU-ms an image ({', '.join(f'{cost:.3f}' for cost in spent[1:])})"
        )
    ratio = statistics.median(folder / s3 for folder, s3 in zip(costs["folder"][1:], costs["s3"][1:], strict=True))
    print(f"folder / s3: {ratio:.2f}", flush=True)


def compare(rounds: int, sources: dict[str, str], root: Path, store: Store) -> None:
    """One run of each place a round, the other first each time; the ratio is the median of the rounds' own."""
    ratios = []
    for number in range(rounds):
        rates = {}
        for name in sorted(sources, reverse=bool(number % 2)):
            rates[name], store_ms = label(sources[name], root / f"{name}{number}", store)
            print(f"round {number + 1} {name}: {rates[name]:.1f} images/s, of the store {store_ms:.2f} CPU-ms an image", flush=True)
        ratios.append(rates["s3"] / rates["folder"])
    print(f"s3 / folder: {statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")


if __name__ == "__main__":
    main()
