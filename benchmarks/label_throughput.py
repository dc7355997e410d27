"""How fast the labeling job is: against a bare two-process loop over the same code, and against the library `fer`.

All three see the same photographs in alternating rounds. Each says itself how long it labeled, from the moment when its first
process was ready, so that start-up drops out of the rate; a run over 64 images says what start-up costs the processor. Without
--photos, the demo photographs are cut to 250 x 250 pixels (and to two megapixels with --large). `fer` runs in .bench-venv,
which the script makes. The share of the model is what its network alone costs for one crop, in batches of 64 on one thread, of
the CPU time per image of the job.

    .venv/bin/python benchmarks/label_throughput.py [--photos DIR] [--large] [--images N] [--rounds R] [--no-fer]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2

from fer_ray.data import demo_photos

ROOT = Path(__file__).parents[1]
BENCH_PYTHON = ROOT / ".bench-venv" / "bin" / "python"
FER_PACKAGES = ["fer==25.10.3", "setuptools<81"]
PROCESSES = 2
FEW = 64  # images, of a run that is nearly all start-up

LOOP = """
import glob, json, multiprocessing, sys, time
def work(paths, ready):
    from fer_ray import Labeler
    labeler = Labeler(threads=1)
    ready.put(time.time())
    for start in range(0, len(paths), 64):
        labeler.label(paths[start : start + 64])
if __name__ == "__main__":
    paths = sorted(glob.glob(sys.argv[1] + "/*"))
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Queue()
    processes = [spawn.Process(target=work, args=(paths[n::2], ready)) for n in range(2)]
    [process.start() for process in processes]
    began = ready.get()
    [process.join() for process in processes]
    print(json.dumps({"images_per_second": len(paths) / (time.time() - began)}))
    sys.exit(max(process.exitcode for process in processes))
"""
MODEL = """
import time
import numpy as np
from fer_ray import Labeler
labeler = Labeler(threads=1)
model = labeler._model
crops = np.random.default_rng(0).integers(0, 256, (64, model.image_size, model.image_size)).astype(np.uint8)
model.probabilities(crops)
costs = []
for _ in range(30):
    started = time.process_time()
    model.probabilities(crops)
    costs.append(1000 * (time.process_time() - started) / len(crops))
print(sorted(costs)[len(costs) // 2])
"""
FER = """
import glob, json, sys, time
import cv2
from fer.fer import FER
detector = FER()
paths = sorted(glob.glob(sys.argv[1] + "/*"))
began = time.time()
for path in paths:
    detector.detect_emotions(cv2.imread(path))
print(json.dumps({"images_per_second": len(paths) / (time.time() - began)}))
"""


@dataclass
class Cost:
    """Of one run with all its processes: wall seconds, the rate it gives itself, CPU seconds, and the sum of peak memory in MB."""

    seconds: float
    images_per_second: float
    cpu_seconds: float
    peak_mb: float


def measure(command: list[str], environment: dict[str, str]) -> Cost:
    started = time.monotonic()
    with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=log, env=os.environ | environment)
        cpu: dict[int, float] = {}
        peak: dict[int, float] = {}
        done = threading.Event()
        watcher = threading.Thread(target=watch, args=(process.pid, cpu, peak, done))
        watcher.start()
        exit_code = process.wait()
        done.set()
        watcher.join()
        if exit_code:
            log.seek(0)
            sys.exit(f"{command[:3]} failed:\n{log.read().decode(errors='replace')[-3000:]}")
        seconds = time.monotonic() - started
        output.seek(0)
        rate = float(json.loads(output.read().splitlines()[-1])["images_per_second"])
    return Cost(seconds, rate, sum(cpu.values()), sum(peak.values()))


def watch(root: int, cpu: dict[int, float], peak: dict[int, float], done: threading.Event) -> None:
    """Follow a process and its descendants; memory is counted for Python processes that label or drive (Ray's own are left out)."""
    tick = os.sysconf("SC_CLK_TCK")
    while not done.wait(0.2):
        family = {root}
        for pid, parent in sorted(parents().items()):
            if parent in family:
                family.add(pid)
        for pid in family:
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                name = Path(f"/proc/{pid}/cmdline").read_bytes()
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            cpu[pid] = (int(fields[11]) + int(fields[12])) / tick
            if pid == root or any(word in name for word in (b"LabelParts", b"label.local", b"spawn_main")):
                high = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), "0")
                peak[pid] = int(high) / 1024


def parents() -> dict[int, int]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    return found


def commands(images: Path, output: Path, name: str) -> list[str]:
    if name == "job":
        return [sys.executable, "jobs/label.py", "--input", str(images), "--output", str(output)]
    if name == "loop":
        return [sys.executable, write_script(output, LOOP), str(images)]
    return [str(BENCH_PYTHON), write_script(output, FER), str(images)]


def write_script(folder: Path, source: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "script.py"
    script.write_text(source)
    return str(script)


def draw_photographs(folder: Path, large: bool) -> list[Path]:
    """Portraits of 250 x 250, or photographs of 1632 x 1224, from the demo pictures; each a little different."""
    folder.mkdir()
    for entry in demo_photos.images():
        picture = cv2.imread(entry.image_uri)
        if picture is None:
            continue
        for number in range(8):
            height, width = picture.shape[:2]
            side = min(height, width) * (20 - number) // 20
            part = picture[:side, (width - side) // 2 : (width + side) // 2]
            size = (1632, 1224) if large else (250, 250)
            cv2.imwrite(str(folder / f"{Path(entry.image_uri).stem}{number}.jpg"), cv2.resize(part, size, interpolation=cv2.INTER_AREA))
    return sorted(folder.iterdir())


def link_images(folder: Path, photographs: Iterable[Path], count: int) -> Path:
    folder.mkdir()
    for number, photograph in zip(range(count), itertools.cycle(photographs), strict=False):
        (folder / f"{number:06d}{photograph.suffix}").symlink_to(photograph.absolute())
    return folder


def install_fer() -> None:
    if not BENCH_PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", str(BENCH_PYTHON.parents[1])], check=True)
        subprocess.run([str(BENCH_PYTHON), "-m", "pip", "install", "-q", *FER_PACKAGES], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-fer", action="store_true")
    arguments = parser.parse_args()
    names = ["job", "loop"] if arguments.no_fer else ["job", "loop", "fer"]
    if not arguments.no_fer:
        install_fer()
    few, costs = {}, dict[str, list[tuple[int, Cost]]]()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        photographs = sorted(p for p in arguments.photos.rglob("*") if p.is_file()) if arguments.photos else None
        photographs = photographs or draw_photographs(root / "photographs", arguments.large)

        def run(name: str, count: int, number: int) -> Cost:
            images = link_images(root / f"{name}{number}", photographs, count)
            return measure(commands(images, root / f"o{name}{number}", name), {})

        few = {name: run(name, FEW, 0) for name in names}
        for number in range(1, arguments.rounds + 1):
            for name in names:
                count = arguments.images // 4 if name == "fer" else arguments.images  # fer takes that much longer
                cost = run(name, count, number)
                costs.setdefault(name, []).append((count, cost))
                print(f"round {number} {name}: {count} in {cost.seconds:.1f} s, {cost.images_per_second:.1f} images/s", flush=True)
    report(few, costs)


def model_cost() -> float:
    """CPU milliseconds of the default model for one crop, measured in a process of its own."""
    answer = subprocess.run([sys.executable, "-c", MODEL], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(answer.stdout.splitlines()[-1])


def report(few: dict[str, Cost], costs: dict[str, list[tuple[int, Cost]]]) -> None:
    figures = {}
    for name, runs in costs.items():
        figures[name] = {
            "images_per_second": round(statistics.median(cost.images_per_second for _, cost in runs), 1),
            "cpu_ms_per_image": round(
                statistics.median(1000 * (cost.cpu_seconds - few[name].cpu_seconds) / (count - FEW) for count, cost in runs), 2
            ),
            "start_up_s": round(statistics.median(cost.seconds - count / cost.images_per_second for count, cost in runs), 1),
            "peak_mb": round(max(cost.peak_mb for _, cost in runs)),
        }
        print(f"{name:5s} {figures[name]}")
    cost = model_cost()
    figures["job"]["model_ms_per_face"] = round(cost, 2)
    print(f"model: {cost:.2f} CPU ms per face, {cost / figures['job']['cpu_ms_per_image']:.0%} of the job's per image")
    for other in set(figures) - {"job"}:
        pairs = zip(costs["job"], costs[other], strict=True)
        ratio = statistics.median(job.images_per_second / their.images_per_second for (_, job), (_, their) in pairs)
        figures["job"][f"ratio_to_{other}"] = round(ratio, 2)
        print(f"job / {other}: {ratio:.2f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
