"""No link, name, depth or date in a folder ends its listing; every image in it is listed once."""

import errno
import logging
import os
import subprocess
from pathlib import Path

import pytest

from fer_ray.errors import ImageError
from fer_ray.io import folders
from fer_ray.io.inputs import Selection, list_images
from fer_ray.io.storage import Storage
from fer_ray.schema import ImageEntry, Status

STORAGE = Storage()


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def below(folder: Path) -> dict[str, ImageEntry]:
    entries = list(STORAGE.list_files(str(folder), str(folder / "tables")))
    found = {os.path.relpath(entry.image_uri, folder): entry for entry in entries}
    assert len(found) == len(entries)
    return found


def test_linked_folders_are_followed_and_each_folder_is_listed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = tmp_path / "photos"
    for name in ("photos/2024/a.jpg", "nas/2025/b.jpg", "nas/2026/deep/c.jpg", "photos/tables/t.jpg", "photos/z/d.jpg"):
        touch(tmp_path / name)
    (tmp_path / "nas/back").symlink_to(photos)
    (tmp_path / "nas/ring").symlink_to("../nas")
    (tmp_path / "nas/inside").symlink_to(photos / "2024")
    for name, target in {
        "2025": tmp_path / "nas/2025",
        "loop": Path("../photos"),
        "more": tmp_path / "nas",
        "again": Path("2024"),
        "top": Path("/"),
        "tables-again": photos / "tables",
    }.items():
        (photos / name).symlink_to(target)
    (photos / "e.jpg").symlink_to(tmp_path / "nas/2025/b.jpg")
    with caplog.at_level(logging.WARNING):
        found = below(photos)
    assert list(found) == ["2024/a.jpg", "2025/b.jpg", "e.jpg", "more/2026/deep/c.jpg", "z/d.jpg"]
    assert "7 links to what is listed already, or back" in caplog.text


def test_what_the_walk_cannot_read_is_a_row_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "sound.jpg")
    touch(tmp_path / "locked" / "x.jpg")
    (tmp_path / "ring").symlink_to("ring")
    (tmp_path / "ring a").symlink_to("ring b")
    (tmp_path / "ring b").symlink_to("ring a/x")
    (tmp_path / "long.jpg").symlink_to("n" * 300)
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "behind a file").symlink_to("sound.jpg/x")
    scandir = os.scandir

    def forbid(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbid)
    found = below(tmp_path)
    assert STORAGE.read_image(found.pop("sound.jpg"), 1) == b"x"
    assert set(found) == {"ring", "ring a", "ring b", "long.jpg", "gone.jpg", "behind a file", "locked"}
    assert found["locked"].image_uri.endswith("locked/")
    for selection in (Selection(), Selection(["*.jpg"])):
        assert list(list_images(STORAGE, [str(tmp_path / "locked")], "", None, selection)) == [found["locked"]]
    for entry in found.values():
        assert (entry.status, entry.size_bytes) == (Status.UNREADABLE, None)
        with pytest.raises(ImageError, match=r"cannot be (read|listed) "):
            STORAGE.read_image(entry, 1)


def test_folders_lie_in_one_another_by_the_thousand(tmp_path: Path) -> None:
    here = Path.cwd()
    try:
        os.chdir(tmp_path)
        for depth in range(2500):
            if depth == 1200:
                touch(Path("x.jpg"))
            Path("d").mkdir()
            os.chdir("d")
        os.chdir(here)
        entries = list(STORAGE.list_files(str(tmp_path)))
        assert [Path(entry.image_uri).name for entry in entries] == ["d", "x.jpg"]
        assert STORAGE.read_image(entries[1], 1) == b"x"
        assert entries[0].error == "The file cannot be read (File name too long).", "deeper than a path can name"
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # pytest cannot


@pytest.mark.parametrize("seconds", [910692648000.0, 1e18, -1e12, -9.5e9, float("nan")])
def test_a_time_that_no_calendar_has_is_null(seconds: float) -> None:
    dated = os.stat_result([0o100644, 1, 1, 1, 0, 0, 7, seconds, seconds, seconds])
    assert folders._entry("/a.jpg", dated) == ImageEntry("/a.jpg", 7, None)
