"""How fast `fer-ray relabel` labels kept crops: the demo photographs' faces, repeated to so many.

PYTHONPATH=.:tests/support python benchmarks/relabel.py [--faces 50000] [--model ferplus]
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from crop_tables import multiply


def main(faces: int, model: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fer_ray = [sys.executable, "-m", "fer_ray"]
        other = "fer2013" if model == "ferplus" else "ferplus"
        labeling = [*fer_ray, "label", "--output", folder, "--keep-crops", "--no-thumbnails", "--run-id", "first", "--model", other]
        labeled = json.loads(subprocess.run(labeling, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        times = math.ceil(faces / labeled["faces_total"])
        multiply(Path(folder), "first", times)
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        relabeling = [*fer_ray, "relabel", "--tables", folder, "--model", model]
        summary = json.loads(subprocess.run(relabeling, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        done = summary["faces_total"]
        print(f"{done:,} faces of {summary['images_total']:,} images in {seconds:.0f} s, {cpu:.0f} s of CPU time")
        print(f"{1e3 * cpu / done:.2f} ms of CPU time a face; a million on two cores: {cpu / done * 1e6 / 2 / 60:.1f} min of CPU time each")
        print(f"largest process {after.ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, default=50_000)
    parser.add_argument("--model", default="ferplus")
    arguments = parser.parse_args()
    main(arguments.faces, arguments.model)
