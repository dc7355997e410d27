"""Every image of every kind of input is found: folders, S3 prefixes, lists of URIs, tar shards."""

import csv
import datetime
import gzip
import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import S3Server

from fer_ray.errors import ImageError, UsageError
from fer_ray.io.inputs import check_inputs, list_images, read_image_named
from fer_ray.io.storage import Storage
from fer_ray.schema import ImageEntry

DAY = datetime.datetime(2026, 11, 20, 12, 30, tzinfo=datetime.UTC)


def shard(members: dict[str, bytes]) -> bytes:
    """A tar as img2dataset writes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


MEMBERS = {
    "000000000.jpg": b"first" * 300,
    "000000000.json": b"{}",
    "000000000.txt": b"a caption",
    "sub#dir/ü.PNG": b"second",
    "x" * 120 + ".webp": b"third",
    "empty.jpg": b"",
}
IMAGES = [name for name in MEMBERS if not name.endswith((".json", ".txt"))]


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_images_in_tar_shards_are_listed_and_each_is_read_by_itself(where: str, tmp_path: Path, s3_server: S3Server) -> None:
    store = Storage(s3_server.endpoint)
    folder = str(tmp_path / "shards") if where == "folder" else "s3://shards/dataset"
    if where == "s3":
        s3_server.client().create_bucket(Bucket="shards")
    store.write(f"{folder}/00000.tar", shard(MEMBERS))
    store.write(f"{folder}/00001.tar", shard({"a.jpg": b"a" * 5000, "b.jpg": b"b" * 5000})[:4000])
    store.write(f"{folder}/00000_stats.json", b"{}")
    entries = {entry.image_uri: entry for entry in list_images(store, [folder], folder + "/tables", folder + "/tables/_archives")}
    expected = [f"{folder}/00000.tar#{name}" for name in IMAGES]
    assert set(expected) < set(entries)
    assert {uri: store.read_image(entries[uri], 1) for uri in expected} == {uri: MEMBERS[uri.partition("#")[2]] for uri in expected}
    assert f"{folder}/00001.tar" in entries, "a broken shard has a row of its own"
    assert f"{folder}/00000_stats.json" not in entries
    assert read_image_named(store, expected[1], 1) == b"second"
    store.write(f"{folder}/tables/_archives/other", b"")
    again = list_images(store, [folder], folder + "/tables", folder + "/tables/_archives")
    assert {entry.image_uri: entry for entry in again} == entries, "from the index"
    store.write(f"{folder}/00000.tar", shard({"new.jpg": b"new"}))
    changed = {entry.image_uri for entry in list_images(store, [folder], folder + "/tables", folder + "/tables/_archives")}
    assert f"{folder}/00000.tar#new.jpg" in changed
    assert expected[0] not in changed
    if where == "s3":
        store.write(f"{folder}/00000.tar", b"other" * 9000)
        with pytest.raises(ImageError, match="it changed since it was listed"):
            store.read_image(entries[expected[0]], 1)


def lists(folder: Path) -> dict[str, list[ImageEntry]]:
    """Lists of URIs in other people's layouts, and what they say."""
    rows = [("photos", "a b+ü.jpg", 10, DAY, "e1"), ("photos", "c.jpg", 20, DAY, "e2")]
    plain = [ImageEntry(f"s3://{bucket}/{key}", size, when, etag) for bucket, key, size, when, etag in rows]
    bare = [ImageEntry(entry.image_uri, None, None) for entry in plain]
    with (folder / "uris.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "Image_URI"], *((n, entry.image_uri) for n, entry in enumerate(plain))])
    with (folder / "uris.csv").open("rb") as file:
        (folder / "packed.csv.gz").write_bytes(gzip.compress(file.read()))
    (folder / "inventory.csv").write_text('"photos","a+b%2B%C3%BC.jpg","10"\n"photos","c.jpg","20"\n')
    inventory = {
        "bucket": [row[0] for row in rows],
        "key": [row[1] for row in rows],
        "size": [row[2] for row in rows],
        "last_modified_date": pa.array([row[3] for row in rows], pa.timestamp("ms", tz="UTC")),
        "e_tag": [row[4] for row in rows],
    }
    pq.write_table(pa.table(inventory), folder / "inventory.parquet")
    pq.write_table(pa.table({"url": [entry.image_uri for entry in plain]}), folder / "urls.parquet")
    (folder / "facts.csv").write_text(
        "uri,size,last_modified,etag\n" + "".join(f"{e.image_uri},{e.size_bytes},2026-11-20T12:30:00.000Z,{e.etag}\n" for e in plain)
    )
    known = {"inventory.parquet": plain, "facts.csv": plain}
    return {name: known.get(name, bare) for name in ("uris.csv", "packed.csv.gz", "inventory.csv", "urls.parquet", *known)}


def test_lists_of_uris_are_read_in_the_layouts_that_people_have(tmp_path: Path) -> None:
    for name, expected in lists(tmp_path).items():
        assert list(list_images(Storage(), [str(tmp_path / name)], "")) == expected, name


def test_several_inputs_files_and_folders_are_listed_together(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("folder/a.jpg", "folder/b.jpg", "single.jpg"):
        (tmp_path / name).write_bytes(b"x")
    inputs = check_inputs(Storage(), [str(tmp_path / "single.jpg"), str(tmp_path / "folder")])
    found = [entry.image_uri for entry in list_images(Storage(), inputs, str(tmp_path / "tables"))]
    assert found == [str(tmp_path / name) for name in ("single.jpg", "folder/a.jpg", "folder/b.jpg")]


def test_an_input_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("name\nx\n")
    (tmp_path / "no.parquet").write_bytes(b"no parquet")
    for name, complaint in {"missing": "missing", "names.csv": "column image_uri", "no.parquet": "does not read"}.items():
        with pytest.raises(UsageError, match=complaint):
            list(list_images(Storage(), check_inputs(Storage(), [str(tmp_path / name)]), ""))
