"""Every file is listed once, in order, whatever its name; and a name stands only for a whole file."""

import os
from pathlib import Path

import pytest

from fer_ray import storage
from fer_ray.errors import ImageError, UsageError
from fer_ray.schema import Status

ODD_NAMES = [
    "a b.jpg",
    "ünï\u2028.jpg",
    "a+b%20.jpg",
    "#.jpg",
    "a-b/x.jpg",
    "a/b.jpg",
    "a.jpg",
    "a/.hidden",
    "line\nbreak.jpg",
    "s3:/x.jpg",
]


def test_odd_names_are_listed_in_the_order_of_their_bytes_and_read_back(tmp_path: Path) -> None:
    contents = {name: name.encode() for name in ODD_NAMES}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    raw = os.fsencode(tmp_path) + b"/\xff\xfe.jpg"
    Path(os.fsdecode(raw)).write_bytes(b"raw")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "images.parquet").touch()
    entries = list(storage.walk_images(tmp_path, excluded=tmp_path / "tables"))
    uris = [entry.image_uri for entry in entries]
    assert uris[:-1] == sorted((str(tmp_path / name) for name in ODD_NAMES), key=os.fsencode)
    assert [storage.read_image(uri, 1) for uri in uris[:-1]] == [contents[os.path.relpath(uri, tmp_path)] for uri in uris[:-1]]
    assert uris[-1].startswith("file://")
    assert uris[-1].encode()
    assert storage.read_image(uris[-1], 1) == b"raw"


def test_what_cannot_be_read_is_an_entry_and_a_status(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "large").write_bytes(bytes(2_000_000))
    entries = {Path(entry.image_uri).name: entry for entry in storage.walk_images(tmp_path, excluded=tmp_path / "none")}
    assert sorted(entries) == ["broken link", "large", "pipe"]
    for name, status in {"pipe": Status.UNREADABLE, "broken link": Status.UNREADABLE, "large": Status.TOO_LARGE}.items():
        with pytest.raises(ImageError) as caught:
            storage.read_image(entries[name].image_uri, max_megabytes=1)
        assert caught.value.status == status


def test_a_failed_write_leaves_no_file_under_the_name(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "table.parquet"
    with pytest.raises(RuntimeError), storage.written_whole(target) as file:
        file.write_text("half")
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    with storage.written_whole(target) as file:
        file.write_text("whole")
    assert target.read_text() == "whole"


def test_places_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="missing"):
        storage.local_folder(str(tmp_path / "missing"), "input")
    with pytest.raises(UsageError, match="file is no folder"):
        storage.check_writable(str(tmp_path / "file" / "output"), "output")
    with pytest.raises(UsageError, match="s3://bucket"):
        storage.local_folder("s3://bucket/prefix", "input")
