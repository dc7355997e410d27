"""Pictures that are gone: counted, left out where asked for, back when they are back, and never taken for gone by mistake."""

import io
import tarfile
from pathlib import Path
from typing import Any

import duckdb
import pytest
from rayless import label_without_ray

from fer_ray.config.jobs.label import LabelConfig


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Files that are no images inside: what is listed counts here, not what is in them."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "c.jpg", "sub/d.jpg"):
        (folder / name).write_bytes(b"no image")
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for name in ("e.jpg", "f.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 8
            tar.addfile(member, io.BytesIO(b"no image"))
    return folder


class Nights:
    """Runs one after the other over one output."""

    def __init__(self, photos: Path, output: Path) -> None:
        self.photos, self.output, self.number = photos, output, 0

    def run(self, **options: Any) -> int | None:
        """The run's images_gone, in `runs` as in the summary."""
        self.number += 1
        config = LabelConfig(
            (str(self.photos),), str(self.output), run_id=f"night-{self.number}", max_error_share=1, workers=1, thumbnails=False, **options
        )
        summary, _ = label_without_ray(config)
        assert self.rows(f"SELECT images_gone FROM runs WHERE run_id = 'night-{self.number}'") == [(summary["images_gone"],)]
        gone: int | None = summary["images_gone"]
        return gone

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        connection = duckdb.connect()
        connection.sql((self.output / "views" / "duckdb.sql").read_text(encoding="utf-8"))
        return list(connection.sql(sql).fetchall())

    def present(self) -> list[str]:
        return [uri[len(str(self.photos)) + 1 :] for (uri,) in self.rows("SELECT image_uri FROM images_present ORDER BY ALL")]


def test_gone_pictures_are_counted_left_out_and_back_when_they_are_back(photos: Path, tmp_path: Path) -> None:
    nights = Nights(photos, tmp_path / "tables")
    everything = ["a.jpg", "b.jpg", "c.jpg", "shard.tar#e.jpg", "shard.tar#f.jpg", "sub/d.jpg"]
    assert (nights.run(), nights.present()) == (0, everything)
    (photos / "b.jpg").rename(tmp_path / "b.jpg")
    (photos / "sub" / "d.jpg").unlink()
    for _ in range(2):
        assert (nights.run(), nights.present()) == (2, [name for name in everything if name not in ("b.jpg", "sub/d.jpg")])
    assert [file.stem for file in sorted((tmp_path / "tables" / "gone").iterdir())] == ["_none", "night-2"], "only changes are written"
    assert sorted(nights.rows("SELECT run_id FROM images_gone")) == [("night-2",), ("night-2",)]
    assert nights.rows("SELECT count(*) FROM images_latest") == [(6,)]
    (tmp_path / "b.jpg").rename(photos / "b.jpg")
    assert (nights.run(all=True), nights.present()) == (1, everything[:-1])
    assert nights.rows("SELECT image_uri FROM images_gone") == [(str(photos / "sub/d.jpg"),)]


def test_what_a_listing_cannot_know_is_not_gone(photos: Path, tmp_path: Path) -> None:
    nights = Nights(photos, tmp_path / "tables")
    nights.run()
    before = nights.present()
    assert (nights.run(exclude=("c*", "sub")), nights.present()) == (0, before)
    (photos / "c.jpg").unlink()
    assert (nights.run(include=("b.jpg",)), nights.present()) == (0, before)
    assert (nights.run(limit=1), nights.present()) == (None, before)
    whole = (photos / "shard.tar").read_bytes()
    (photos / "shard.tar").write_bytes(whole[:1000])
    present = [name for name in before if name != "c.jpg"]
    assert (nights.run(), nights.present()) == (1, sorted([*present, "shard.tar"])), "what is behind the break may be there"
    (photos / "shard.tar").write_bytes(whole)
    assert nights.run() == 1, "the row that said so is no image"
    nights.photos = photos / "sub"
    assert nights.run() == 0
    (tmp_path / "list.csv").write_text(f"path\n{photos / 'a.jpg'}\n")
    nights.photos = tmp_path / "list.csv"
    assert nights.run() is None
