"""Films: how fast they are labeled, what a long one costs, whether each frame comes once, and what broken ones do.

    python benchmarks/video.py [--hours 3] [--seconds 60]

prints one line of JSON. The film is 1280 x 720 at 30 frames a second, H.264 as x264's `medium` makes it: a walk over the photographs
that come with matplotlib and scikit-image. Rates are of processor time, so that other work on the machine does not count, and are
given for two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.dataset as ds
from films import broken_films, times_of, write_film

from fer_ray.data import demo_photos
from fer_ray.errors import ImageError
from fer_ray.io.outages import PatientReader
from fer_ray.io.storage import Storage
from fer_ray.typing import UInt8Array
from fer_ray.video.file import FilmFile
from fer_ray.video.frames import ALL_FRAMES, Film
from fer_ray.video.worker import FilmSettings, FilmWorker

WIDTH, HEIGHT, RATE, CORES = 1280, 720, 30, 2
READ = """
import resource, sys
sys.path.insert(0, "benchmarks")
from fractions import Fraction
from pathlib import Path
from video import open_film
count = sum(1 for _ in open_film(Path(sys.argv[1])).frames(0, None, Fraction(1)))
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def open_film(path: Path) -> Film:
    entry = Storage().stat(str(path))
    if entry is None:
        raise SystemExit(f"There is no {path}.")
    return Film(FilmFile(entry, PatientReader(Storage(), 256).read), 100, 720)


def walk(seconds: int) -> Any:
    """Frames of a slow pan and zoom over photographs, five seconds each."""
    photographs = [np.asarray(cv2.imread(entry.image_uri))[..., ::-1] for entry in demo_photos.images()]
    for number in range(seconds * RATE):
        picture, share = photographs[number // (5 * RATE) % len(photographs)], number % (5 * RATE) / (5 * RATE)
        height, width = picture.shape[:2]
        part = min(width / WIDTH, height / HEIGHT) * (1 - 0.3 * share)
        w, h = int(WIDTH * part), int(HEIGHT * part)
        left, top = int((width - w) * share), int((height - h) * share)
        yield np.asarray(cv2.resize(picture[top : top + h, left : left + w], (WIDTH, HEIGHT)), np.uint8)


def lengthen(film: Path, target: Path, times: int) -> Path:
    """The same film so often, one after the other, without encoding it again."""
    import av

    with av.open(str(target), "w") as output:
        added: Any = None
        for number in range(times):
            with av.open(str(film)) as source:
                stream: Any = source.streams.video[0]
                added = added or output.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is not None:
                        packet.pts, packet.dts = packet.pts + number * stream.duration, packet.dts + number * stream.duration
                        packet.stream = added
                        output.mux(packet)
    return target


def label(folder: Path, output: Path, *options: str) -> float:
    """Label as a user does; gives the seconds of processor time of all processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "fer_ray", "label", "--input", str(folder), "--output", str(output), "--no-thumbnails", *options]
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure_speed(folder: Path, seconds: int, whole: int) -> dict[str, float]:
    """At one frame a second and at all, beyond what a run of the first ten seconds costs."""
    film = write_film(folder / "film.mp4", walk(seconds), rate=RATE, options={"preset": "medium"}, gop=250)
    long = lengthen(film, folder / "long.mp4", whole)
    start_up = folder / "start_up"
    start_up.mkdir()
    write_film(start_up / "film.mp4", walk(2), rate=RATE, options={"preset": "ultrafast"})
    found: dict[str, float] = {}
    for name, source, length, options in (("1", long, seconds * whole, []), ("all", film, seconds, ["--video-fps", "all"])):
        base = label(start_up, folder / f"tables of start {name}")
        taken = label(source, folder / f"tables of {name}", *options) - base
        found[f"times_real_time_at_{name}"] = round(CORES * length / taken, 1)
        found[f"frames_per_second_at_{name}"] = round(CORES * length * (1 if name == "1" else RATE) / taken, 1)
    return found


def measure_memory(folder: Path, seconds: int, hours: float) -> dict[str, float]:
    """The peak of a process that reads one frame a second of three minutes and of hours."""
    film, found = folder / "film.mp4", dict[str, float]()
    for name, length in (("3_minutes", 180.0), ("hours", hours * 3600)):
        long = lengthen(film, folder / f"{name}.mp4", max(1, round(length / seconds)))
        answer = subprocess.run([sys.executable, "-c", READ, str(long)], check=True, capture_output=True, text=True).stdout.split()
        found[f"frames_in_{name}"], found[f"peak_megabytes_{name}"] = int(answer[0]), round(float(answer[1]), 1)
        long.unlink()
    return found


def count_wrong_times(folder: Path, drawn: list[UInt8Array]) -> int:
    """Frames that are missing, doubled or more than 1 ms off FFmpeg's times, over rates and containers, read whole and in stretches."""
    uneven = np.cumsum(np.random.default_rng(0).integers(5, 400, len(drawn))).tolist()
    wrong = 0
    for name, codec, times_ms, rate in (
        ("constant.mp4", "libx264", None, 25),
        ("thirty.mkv", "libx264", None, 30),
        ("uneven.mp4", "libx264", uneven, 25),
        ("uneven.mkv", "libx264", uneven, 25),
        ("old.avi", "mpeg4", None, 25),
        ("old.mpg", "mpeg2video", None, 25),
        ("camera.mts", "libx264", None, 25),
    ):
        path = write_film(folder / name, drawn, times_ms=times_ms, codec=codec, rate=rate, options={"bf": "2"})
        truth = times_of(path)
        for step in (10**9, 1700):
            starts = range(0, truth[-1] + 1, step)
            found = [f.time_ms for start in starts for f in open_film(path).frames(start, start + step, ALL_FRAMES)]
            wrong += abs(len(found) - len(truth)) + sum(abs(a - b) > 1 for a, b in zip(found, truth, strict=False))
    return wrong


def kill_five_times(folder: Path) -> int:
    """Rows lost or doubled of a film whose run is killed five times."""
    film = folder / "film.mp4"
    long = lengthen(film, folder / "killed.mp4", 10)
    command = [sys.executable, "-m", "fer_ray", "label", "--input", str(long), "--output", str(folder / "killed")]
    for _ in range(5):
        staged = len(list((folder / "killed").glob("_staging/*/*/*.parquet")))
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(list((folder / "killed").glob("_staging/*/*/*.parquet"))) == staged and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    rows = ds.dataset(folder / "killed" / "images").to_table()["frame_time_ms"].to_pylist()
    expected = [frame.time_ms for frame in open_film(long).frames(0, None, Fraction(1))]
    return len(set(expected) ^ set(rows)) + len(rows) - len(set(rows))


def look_at_broken(folder: Path) -> dict[str, Any]:
    """Broken films in a process of their own: how many, what ended it, the slowest, and answers that are wrong."""
    folder.mkdir()
    expected = broken_films(folder, Path(next(iter(demo_photos.images())).image_uri).read_bytes())
    worker = FilmWorker(FilmSettings(Storage(), (), 5.0, 100, 720, 24, Fraction(1)))
    ended = wrong = 0
    slowest = 0.0
    for name, what in expected.items():
        entry, began = Storage().stat(str(folder / name)), time.monotonic()
        until, trouble = 0, None
        try:
            if entry is not None:
                worker.probe(entry)
                until, trouble = worker.good_until(entry, 0, None)
        except ImageError as error:
            trouble = error
        slowest = max(slowest, time.monotonic() - began)
        ended += trouble is not None and "ended the process" in str(trouble)
        wrong += what not in ("any", "reason" if not until else "frames" if trouble is None else "both")
    worker.close()
    return {"broken_films": len(expected), "crashes": ended, "wrong": wrong, "slowest_s": round(slowest, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--minutes", type=int, default=5, help="of the film at one frame a second")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found: dict[str, Any] = measure_speed(folder, options.seconds, options.minutes * 60 // options.seconds)
        found |= measure_memory(folder, options.seconds, options.hours)
        found["frames_with_wrong_times"] = count_wrong_times(folder, [np.full((64, 96, 3), n % 256, np.uint8) for n in range(150)])
        found["rows_lost_or_doubled_of_five_kills"] = kill_five_times(folder)
        found |= look_at_broken(folder / "broken")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
