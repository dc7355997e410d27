"""Films that are cut, patched, or none: a sentence for each, and what can be decoded of them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from films import broken_films, drawn, write_film

from fer_ray.errors import ImageError
from fer_ray.io.storage import Storage
from fer_ray.schema import Status
from fer_ray.video.worker import FilmSettings, FilmWorker


@pytest.fixture(scope="module")
def worker() -> FilmWorker:
    return FilmWorker(FilmSettings(Storage(), (), 5.0, 100, 720, 24, Fraction(1)))


def what_comes_of(worker: FilmWorker, film: Path) -> str:
    entry = Storage().stat(str(film))
    assert entry is not None
    try:
        worker.probe(entry)
        good_until, trouble = worker.good_until(entry, 0, None)
    except ImageError as error:
        good_until, trouble = 0, error
    if trouble is not None:
        assert trouble.status == Status.UNDECODABLE
        assert str(trouble).startswith("The film ")
        assert "ended the process" not in str(trouble)
    return "reason" if good_until == 0 else "frames" if trouble is None else "both"


def test_no_broken_film_ends_or_holds_its_process_and_none_that_gives_nothing_is_taken_for_whole(
    worker: FilmWorker, photographs: dict[str, Path], tmp_path: Path
) -> None:
    expected = broken_films(tmp_path, photographs["grace_hopper"].read_bytes())
    assert len(expected) > 40
    found = {name: what_comes_of(worker, tmp_path / name) for name in expected}
    assert {name: what for name, what in found.items() if expected[name] not in (what, "any")} == {}
    cut = {name: what for name, what in found.items() if "_cut_0.4" in name}
    assert cut["a_cut_0.4.mp4"] == cut["c_cut_0.4.mkv"] == cut["d_cut_0.4.avi"] == "both"
    worker.close()


def test_a_film_of_more_pixels_than_the_limit_is_too_large_before_it_is_decoded(tmp_path: Path) -> None:
    write_film(tmp_path / "whole.mp4", drawn(5))
    worker = FilmWorker(FilmSettings(Storage(), (), 5.0, 0.005, 720, 24, Fraction(1)))
    entry = Storage().stat(str(tmp_path / "whole.mp4"))
    assert entry is not None
    with pytest.raises(ImageError, match=r"have 96 x 64 pixels, the limit is 0\.005 megapixels") as caught:
        worker.probe(entry)
    assert caught.value.status == Status.TOO_LARGE
    worker.close()
