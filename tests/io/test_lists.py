"""Lists as people have them are read, or refused in a sentence that names the line; which files are images is decided by one rule."""

import gzip
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fer_ray.errors import ImageError, UsageError
from fer_ray.io import uri_list
from fer_ray.io.inputs import Selection, check_inputs, list_images
from fer_ray.io.storage import Storage
from fer_ray.schema import ImageEntry, Status, as_batches

STORAGE = Storage()


def listed(path: Path, selection: Selection | None = None) -> list[ImageEntry]:
    return list(list_images(STORAGE, check_inputs(STORAGE, [str(path)]), "", None, selection))


def as_json(rows: object) -> bytes:
    return json.dumps(rows).encode()


READABLE = {
    "metadata.csv": b"file_name,label\nphotos/0.jpg,happy\nphotos/1.jpg,sad\n",
    "upper.csv": b"label,FileName\nhappy,photos/0.jpg\nsad,photos/1.jpg\n",
    "spaced.CSV": b"Label, Image Path\r\nhappy,photos/0.jpg\r\n\r\nsad,./photos/1.jpg\r\n",
    "semicolon.csv": b"image_uri;size\nphotos/0.jpg;100\nphotos/1.jpg;\n",
    "bom.csv": b'\xef\xbb\xbffilepath,n\n"photos/0.jpg",1\nphotos/1.jpg,2\n',
    "excel.csv": "image_uri;größe\nphotos/0.jpg;1\nphotos/1.jpg;2\n".encode("utf-16"),
    "list.tsv": b"path\tlabel\nphotos/0.jpg\thappy, I think\nphotos/1.jpg\t\n",
    "list.txt": b"photos/0.jpg\n\nphotos/1.jpg",
    "list.txt.gz": gzip.compress(b"photos/0.jpg\r\nphotos/1.jpg\r\n"),
    "list.jsonl": b'{"path": "photos/0.jpg"}\n\n{"path": "photos/1.jpg", "n": 3}\n',
    "texts.ndjson": b'"photos/0.jpg"\n"photos/1.jpg"\n',
    "texts.json": as_json(["photos/0.jpg", "photos/1.jpg"]),
    "coco.json": as_json({"images": [{"id": 1, "file_name": "photos/0.jpg"}, {"id": 2, "file_name": "photos/1.jpg"}], "annotations": []}),
}


@pytest.mark.parametrize("name", READABLE)
def test_a_list_is_read_and_its_paths_are_relative_to_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    (tmp_path / name).write_bytes(READABLE[name])
    assert [entry.image_uri for entry in listed(tmp_path / name)] == [f"{tmp_path}/photos/{n}.jpg" for n in range(2)]


REFUSED = {
    "no header.csv": (b"photos/0.jpg,happy\nphotos/1.jpg,sad\n", "no such column: photos/0.jpg, happy"),
    "unknown.csv": (b"name,label\nanna,happy\nben,sad\n", "no such column: name, label"),
    "two buckets.csv": (b'"photos","a.jpg"\n' * 1500 + b'"others","b.jpg"\n', "Line 1501 names another bucket"),
    "header alone.csv": (b"name,label\n", "no such column"),
    "empty.csv": (b"", "it is empty"),
    "size.csv": (b"uri,size\n/a.jpg,1\n/b.jpg,9223372036854775808\n", "number 3 .a file of 9223372036854775808 bytes"),
    "negative.csv": (b"uri,size\n/a.jpg,-1\n", "number 2 .a file of -1 bytes"),
    "words.csv": (b"uri,size\n/a.jpg,large\n", "number 2 "),
    "gap.csv": (b"uri,size\n/a.jpg,1\n,2\n", "number 3 .it names no image"),
    "scheme.csv": (b"uri\nftp://host/a.jpg\n", "number 2 .The listed image is a ftp:// address"),
    "secret.txt": (b"https://x/a.jpg\nhttps://user:hidden@x/a.jpg\n", "number 2 "),
    "broken.jsonl": (b'{"path": "a.jpg"}\n{"path": \n', "line 2 is no JSON"),
    "other.jsonl": (b'"a.jpg"\n{"name": "a.jpg"}\n', "line 2 has no such column: name"),
    "odd.jsonl": (b'{"path": "a.jpg", "size": [1]}\n', "number 1 "),
    "endless.jsonl": (b'{"path": "a.jpg", "size": 1e999}\n', "number 1 "),
    "corrupt.csv.gz": (gzip.compress(b"path\na.jpg\n" * 99)[:12] + b"\xff" * 99, "does not read"),
    "deep.json": (b"[" * 100_000, "does not read"),
    "object.json": (b'{"a": 1}', "no list of images"),
    "bomb.txt.gz": (gzip.compress(bytes(50 << 20)), "more than 1,048,576 characters"),
    "bomb.json.gz": (gzip.compress(b'["' + b"x" * (70 << 20)), "more than 67,108,864 characters"),
    "cut.csv.gz": (gzip.compress(os.urandom(5000))[:900], "does not read"),
    "latin.csv": (b"Gr\xf6\xdfe;Pfad\n1;\xe4.jpg\n", "no such column: Gr"),
    "latin.txt": (b"s3://bucket/a.jpg\ns3://bucket/\xe4.jpg\n", "number 2 .it is no UTF-8"),
    "half.jsonl": (b'"/a.jpg"\n{"path": "/b.jpg", "etag": "\\ud800"}\n', "number 2 .it is no UTF-8"),
    "films.xlsx": (b"PK", "is no image by its name"),
    "film.mov": (b"", "is a film, and video_fps is 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_list_that_cannot_be_read_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    content, complaint = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=complaint) as caught:
        listed(tmp_path / name)
    assert "hidden" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value) or "another bucket" in str(caught.value)


def test_what_a_parquet_list_holds_beyond_our_columns_is_null_or_named(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    times = pa.array([0, 910692648000 * 10**6, -(2**62)], pa.timestamp("us"))
    pq.write_table(
        pa.table({"FilePath": ["a.jpg", "/b.jpg", "s3://bucket/c.jpg"], "size": pa.array([1.0, 2.0, 3.0]), "last_modified": times}), path
    )
    entries = listed(path)
    assert [entry.image_uri for entry in entries] == [f"{tmp_path}/a.jpg", "/b.jpg", "s3://bucket/c.jpg"]
    assert [(entry.size_bytes, entry.modified_at is None) for entry in entries] == [(1, False), (None, True), (None, True)]
    assert sum(len(batch) for batch in as_batches(entries)) == 3
    pq.write_table(pa.table({"url": ["/a.jpg", None], "size": pa.array([1, 2**64 - 1], pa.uint64())}), path)
    with pytest.raises(UsageError, match="number 2 "):
        listed(path)


def test_an_inventory_with_all_its_options_gives_the_latest_state_of_each_object(tmp_path: Path) -> None:
    tag, when = "d41d8cd98f00b204e9800998ecf8427e", "2026-11-20T12:30:00.000Z"
    rows = [
        ("photos", "a+b.jpg", "v2", "true", "false", "10", when, tag, "STANDARD", "false", "SSE-S3"),
        ("photos", "a+b.jpg", "v1", "false", "false", "9", when, tag + "-2", "STANDARD", "false", "SSE-S3"),
        ("photos", "gone.jpg", "v3", "true", "true", "", when, "", "", "", ""),
        ("photos", "gone.jpg", "v2", "false", "false", "9", when, tag, "STANDARD", "false", "SSE-S3"),
        ("photos", "cold.jpg", "v1", "true", "false", "11", when, tag, "DEEP_ARCHIVE", "false", "SSE-S3"),
        ("photos", "instant.jpg", "v1", "true", "false", "12", when, tag, "GLACIER_IR", "false", "SSE-S3"),
        ("photos", "console%2F/", "v1", "true", "false", "0", when, tag, "STANDARD", "false", "SSE-S3"),
    ]
    (tmp_path / "inventory.csv").write_text("".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in rows))
    columns = ["bucket", "key", "version_id", "is_latest", "is_delete_marker", "size", "last_modified_date", "e_tag", "storage_class"]
    plain = [(row[0], row[1].replace("+", " ").replace("%2F", "/"), *row[2:9]) for row in rows]
    values = {name: [row[place] or None for row in plain] for place, name in enumerate(columns)}
    flags = {name: [cell == "true" for cell in values[name]] for name in ("is_latest", "is_delete_marker")}
    pq.write_table(pa.table({**values, **flags, "size": [cell and int(cell) for cell in values["size"]]}), tmp_path / "inventory.parquet")
    for name in ("inventory.csv", "inventory.parquet"):
        first, cold, instant = listed(tmp_path / name)
        assert (first.image_uri, first.size_bytes, first.etag) == ("s3://photos/a b.jpg", 10, tag)
        assert first.modified_at and first.modified_at.day == 20
        assert (instant.image_uri, instant.error) == ("s3://photos/instant.jpg", None)
        with pytest.raises(ImageError, match=r"archived .DEEP_ARCHIVE.") as caught:
            STORAGE.read_image(cold, 1)  # without a store: nothing is asked for
        assert caught.value.status == Status.ARCHIVED


def test_a_name_that_is_no_text_is_listed_by_a_list_and_read_back_as_an_input(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xe4.jpg")
    (tmp_path / name).write_bytes(b"raw")
    (tmp_path / "list.txt").write_bytes(b"\xff\xe4.jpg\n")
    (entry,) = listed(tmp_path / "list.txt")
    assert entry.image_uri.startswith("file:///")
    assert STORAGE.read_image(entry, 1) == b"raw"
    for again in (entry.image_uri, entry.image_uri.replace("file:///", "FILE://localhost/"), os.fsencode(tmp_path / name)):
        ((found),) = list_images(STORAGE, check_inputs(STORAGE, [os.fsdecode(again)]), "")
        assert found.image_uri == entry.image_uri
    (tmp_path / "list.txt").write_text(f"{(tmp_path / 'ä b%20.jpg').as_uri()}\n")
    assert listed(tmp_path / "list.txt")[0].image_uri == f"{tmp_path}/ä b%20.jpg"


NOT_IMAGES = [
    *("a.json", "a.txt", "a.XMP", "a.AAE", "a.cls", "a.csv.gz", "film.MOV", "film.mp4", "x.parquet"),
    *(".DS_Store", "._a.jpg", "Thumbs.db", "desktop.ini", "_SUCCESS", "x_$folder$"),
]
TAKEN = ["a.jpg", "A.JPEG", "scan", "photo.xyz", ".hidden.png", "a.svg", "text", "x.jpg.gz", "a.heic", "md"]


@pytest.mark.parametrize("where", ["folder", "tar", "zip", "list"])
def test_one_rule_says_what_is_no_image_in_folders_tars_zips_and_lists(where: str, tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in [*NOT_IMAGES, *TAKEN]:
        (root / "sub").mkdir(parents=True, exist_ok=True)
        (root / "sub" / name).write_bytes(b"x")
    path = root
    if where == "tar":
        path = tmp_path / "in.tar"
        with tarfile.open(path, "w") as archive:
            archive.add(root, "in")
    elif where == "zip":
        path = tmp_path / "in.zip"
        with zipfile.ZipFile(path, "w") as packed:
            for file in root.rglob("*"):
                packed.write(file, file.relative_to(tmp_path))
    elif where == "list":
        path = tmp_path / "list.txt"
        path.write_text("\n".join(str(file) for file in root.rglob("*") if file.is_file()))
    everything = sorted([*NOT_IMAGES, *TAKEN])
    for include, exclude, taken in (
        ((), (), TAKEN),
        (("*.jpg", "*.TXT"), (), ["a.jpg", "a.txt"]),
        (("**/sub/a.*",), ("*.json", "*.[xt][xm][pt]"), ["a.jpg", "A.JPEG", "a.AAE", "a.cls", "a.svg", "a.heic", "a.csv.gz"]),
        ((), ("sub",), []),
        (("*", ".*"), (), everything),
    ):
        selection = Selection(include, exclude, films=taken is everything)
        found = [entry.image_uri.rpartition("/")[2] for entry in listed(path, selection)]
        assert sorted(found) == sorted(taken), (include, exclude)
        assert selection.ignored == len(everything) - len(taken)


def test_patterns_are_compared_with_the_path_below_the_input(tmp_path: Path) -> None:
    for name in ("2026/a.jpg", "2026/05/b.jpg", "old/2026/c.jpg", "2026/thumbs/d.jpg", "shard.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(tmp_path / "2026" / "a.jpg", "t/e.jpg")

    def found(include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> str:
        entries = listed(tmp_path, Selection(include, exclude))
        return "".join(sorted(Path(entry.image_uri).stem for entry in entries))

    assert found() == "abcde"
    assert found(("2026/*.jpg",)) == "a"
    assert found(("2026/**",)) == "abd"
    assert found(("**/2026/*",), ("thumbs",)) == "abc"
    assert found((), ("/2026/", "shard.tar")) == "c"
    assert found(("shard.tar/t/*",)) == "e"
    assert found((), ("t/",)) == "abcd"
    assert found((), ("[!a].jpg", "[", "{x}.jpg")) == "a"
    for pattern in ("[z-a]", "[!]"):
        with pytest.raises(UsageError, match="A pattern of --include or --exclude"):
            Selection([pattern])


def test_a_list_in_a_store_is_relative_to_its_folder_there() -> None:
    for base, text, uri in (
        ("s3://bucket/lists", "photos/ä b.jpg", "s3://bucket/lists/photos/ä b.jpg"),
        ("s3://bucket/lists", "../photos/./a.jpg", "s3://bucket/photos/a.jpg"),
        ("https://host/lists", "a.jpg", "https://host/lists/a.jpg"),
        ("s3://bucket/lists", "/data/a.jpg", "/data/a.jpg"),
        ("s3://bucket/lists", "gs://other/a.jpg", "gs://other/a.jpg"),
    ):
        assert uri_list._address(text, base) == uri
    with pytest.raises(ValueError, match="out of its bucket"):
        uri_list._address("../../other/a.jpg", "s3://bucket/lists")
