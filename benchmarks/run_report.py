"""How long the report of a large run takes; makes tables of so many rows and writes their report.

PYTHONPATH=.:tests/support python benchmarks/run_report.py [ROWS]
"""

import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

from run_tables import write_run

from fer_ray.label.report.page import write_report
from fer_ray.label.report.summarize import FACE_COLUMNS, IMAGE_COLUMNS, read_batches

SHARES = (0.1, 0.05, 0.05, 0.1, 0.3, 0.25, 0.1, 0.05)


def main(rows: int) -> None:
    folders = [f"{year}/{month:02d}/{day:02d}" for year in range(2016, 2026) for month in range(1, 13) for day in range(1, 29)]
    with tempfile.TemporaryDirectory() as output:
        with multiprocessing.get_context("spawn").Pool(1) as other:  # so that making the tables does not count as memory here
            run, row = other.apply(write_run, (Path(output), "night", 20, SHARES, rows, folders, rows // 20))
        started = time.perf_counter()
        for table, columns in (("images", IMAGE_COLUMNS), ("faces", FACE_COLUMNS)):
            for _ in read_batches(run, table, columns):
                pass
        read, before = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        address = write_report(run, row)
        whole, memory = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        size, beyond = Path(address).stat().st_size / 1e6, (memory - before) >> 10
        print(f"{rows:,} images, {row['faces_total']:,} faces: {whole:.1f} s, {read:.1f} s of them reading; the page has {size:.2f} MB;")
        print(f"peak memory {memory >> 10} MB, {beyond} MB more than reading alone")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000)
