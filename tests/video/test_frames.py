"""Frames of films: each that is asked for, once, at FFmpeg's own times, wherever a film is cut into stretches."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import pytest
from films import CARPHONE, drawn, times_of, write_film

from fer_ray.errors import ImageError
from fer_ray.io.outages import PatientReader
from fer_ray.io.storage import Storage
from fer_ray.video.file import FilmFile
from fer_ray.video.frames import ALL_FRAMES, Film

STORAGE = Storage()
UNEVEN = [0, 40, 80, 95, 110, 400, 420, 1000, 1033, 1066, 1100, 2500, 2540, 2580, 3999, 4000, 4001, 4500, 6000, 6040, 6080, 9000]
KINDS = {
    "film.mp4": ("libx264", {"preset": "fast", "bf": "3"}, {}),
    "open_gop.mp4": ("libx264", {"preset": "fast", "bf": "3", "x264-params": "open-gop=1"}, {}),
    "fragments.mp4": ("libx264", {"preset": "ultrafast"}, {"movflags": "frag_keyframe+empty_moov"}),
    "film.mkv": ("libx264", {"preset": "ultrafast"}, {}),
    "live.webm": ("libvpx", {"deadline": "realtime", "cpu-used": "8"}, {"live": "1"}),
    "film.avi": ("mpeg4", {"bf": "2"}, {}),
    "film.mpg": ("mpeg2video", {"bf": "2"}, {}),
    "film.mts": ("libx264", {"preset": "fast"}, {}),
}


def open_film(path: Path) -> Film:
    entry = STORAGE.stat(str(path))
    assert entry is not None
    return Film(FilmFile(entry, PatientReader(STORAGE, 256).read), 100, 720)


def times(film: Film, start: int = 0, end: int | None = None, rate: Fraction = ALL_FRAMES) -> list[int]:
    return [frame.time_ms for frame in film.frames(start, end, rate)]


def in_stretches(path: Path, starts: Iterable[int], step: int, rate: Fraction, is_one_pass: bool) -> list[int]:
    film, found = open_film(path), list[int]()
    last = max(starts)
    for start in starts:
        film = film if is_one_pass else open_film(path)
        found += times(film, start, None if start == last else start + step, rate)
    return found


@pytest.mark.parametrize("name", KINDS)
def test_no_frame_is_missing_doubled_or_off_ffmpegs_times_however_a_film_is_cut(tmp_path: Path, name: str) -> None:
    codec, options, container = KINDS[name]
    path = write_film(tmp_path / name, drawn(130), codec=codec, options=options, container=container)
    truth = times_of(path)
    assert len(truth) == 130
    assert times(open_film(path)) == truth
    seconds = [next(time for time in truth if time >= second * 1000) for second in range(truth[-1] // 1000 + 1)]
    assert times(open_film(path), rate=Fraction(1)) == seconds
    for is_one_pass in (True, False):
        assert in_stretches(path, range(0, truth[-1] + 1, 1300), 1300, ALL_FRAMES, is_one_pass) == truth
        assert in_stretches(path, range(0, truth[-1] + 1, 2000), 2000, Fraction(1), is_one_pass) == seconds


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
def test_a_film_of_a_changing_rate_is_read_by_its_times_and_never_by_counting(tmp_path: Path, name: str) -> None:
    path = write_film(tmp_path / name, drawn(len(UNEVEN)), times_ms=UNEVEN, options={"preset": "fast"})
    assert times(open_film(path)) == times_of(path) == UNEVEN
    assert times(open_film(path), rate=Fraction(1)) == [0, 1000, 2500, 3999, 4000, 6000, 9000]
    assert in_stretches(path, range(0, 9001, 1500), 1500, Fraction(2), is_one_pass=False) == times(open_film(path), rate=Fraction(2))


def test_a_film_of_thirty_frames_a_second_gives_all_of_them_at_thirty(tmp_path: Path) -> None:
    path = write_film(tmp_path / "film.mp4", drawn(90), rate=30)
    assert times(open_film(path), rate=Fraction(30)) == times_of(path)
    assert times(open_film(path), rate=Fraction(3)) == [0, 333, 667, 1000, 1333, 1667, 2000, 2333, 2667]


def test_a_real_film_gives_its_frames_in_its_colours_and_size() -> None:
    film = open_film(CARPHONE)
    frames = list(film.frames(0, None, Fraction(1)))
    assert [frame.time_ms for frame in frames] == [0, 1001, 2002, 3003]
    assert {frame.image.pixels.shape for frame in frames} == {(144, 176, 3)}
    blue, _, red = frames[0].image.pixels[40:80, 60:100].reshape(-1, 3).mean(0)
    assert red > blue + 10  # a face


def test_a_film_opens_no_address_and_no_other_file(tmp_path: Path) -> None:
    whole = write_film(tmp_path / "whole.mp4", drawn(30))
    lists = {
        "playlist.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{whole}\n#EXT-X-ENDLIST\n",
        "concat.mkv": f"ffconcat version 1.0\nfile {whole}\n",
        "dash.mov": f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{whole}</BaseURL></MPD>',
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ImageError, match="cannot be decoded"):
            open_film(tmp_path / name)
