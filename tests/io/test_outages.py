"""An outage of a store is waited for and never becomes a row; what is wrong with one image does, and soon."""

from __future__ import annotations

import errno
import functools
import io
import os
import pickle
import shutil
import tarfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from outages import FAULTS, OutageProxy
from stores import S3Server
from web_server import Answer, WebServer

from fer_ray.errors import AccessError, ChangedError, ImageError, OutageError, SlowError, StorageError
from fer_ray.io import folders, inputs, outages, s3, s3_client, web
from fer_ray.io.inputs import list_images
from fer_ray.io.outages import PatientReader
from fer_ray.io.prefetch import Fetcher
from fer_ray.io.storage import Storage
from fer_ray.schema import ImageEntry, Status


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same at a tenth of the time."""
    monkeypatch.setattr(outages, "PAUSES", (0.1, 0.2, 0.4, 0.8, 1.5))
    monkeypatch.setattr(outages, "QUIET_SECONDS", 0.3)
    monkeypatch.setattr(s3, "BODY_ATTEMPTS", 3)
    monkeypatch.setattr(web, "ATTEMPTS", 2)
    monkeypatch.setattr(s3_client, "REQUEST_ATTEMPTS", 2)
    s3_client._connect.cache_clear()
    yield
    s3_client._connect.cache_clear()


@pytest.fixture(scope="module")
def objects(s3_server: S3Server) -> dict[str, bytes]:
    """What lies in the bucket `outages`, by key: 60 images, one of which is forbidden."""
    client, contents = s3_server.client(), {f"in/{n:02d}.jpg": os.urandom(20_000) for n in range(60)}
    client.create_bucket(Bucket="outages")
    for key, content in contents.items():
        client.put_object(Bucket="outages", Key=key, Body=content)
    client.put_object(Bucket="outages", Key="forbidden.jpg", Body=b"forbidden")
    return contents


@pytest.fixture
def proxy(s3_server: S3Server, objects: dict[str, bytes]) -> Iterator[OutageProxy]:
    made = OutageProxy(s3_server.endpoint)
    yield made
    made.stop()


def fetch(storage: Storage, entries: list[ImageEntry], **settings: Any) -> list[bytes | ImageError]:
    return list(Fetcher(PatientReader(storage, 1, **settings)).fetch(entries))


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_an_outage_is_waited_for(fault: str, proxy: OutageProxy, objects: dict[str, bytes]) -> None:
    """It begins in the middle, or with the very first image; the one that is forbidden is a row all the same."""
    storage = Storage(proxy.endpoint)
    entries = list(storage.list_files("s3://outages"))
    expected = [objects.get(entry.image_uri.removeprefix("s3://outages/")) for entry in entries]
    assert entries[0].image_uri.endswith("forbidden.jpg")
    for after in (30, 0) if fault == "denied" else (30,):
        proxy.begin(fault, seconds=1, after=after)
        found = fetch(storage, entries, roots=["s3://outages"])
        assert [content if isinstance(content, bytes) else None for content in found] == expected
        assert str(found[0]) == "The file cannot be read (AccessDenied)."
        assert proxy.faults[fault] > 5


def test_a_store_that_stays_away_ends_the_run_with_a_sentence(proxy: OutageProxy, objects: dict[str, bytes]) -> None:
    storage = Storage(proxy.endpoint)
    entries = list(storage.list_files("s3://outages/in"))
    for fault, reason in {"denied": "AccessDenied", "page": "it has 95 bytes and was listed with 20,000", "reset": "Connection"}.items():
        proxy.begin(fault, seconds=60, after=20)
        with pytest.raises(StorageError, match=rf"No image of s3://outages/in/ can be read any more \(.*{reason}.*: see to the store"):
            fetch(storage, entries, roots=["s3://outages/in"], wait_seconds=1)


@pytest.mark.parametrize("error", [ChangedError("s3://b/x"), OutageError("It is down.", "down"), SlowError("s3://b/x", 5, 30)])
def test_the_process_that_waits_learns_what_was_wrong_in_another(error: AccessError) -> None:
    other = pickle.loads(pickle.dumps(error))
    assert (type(other), str(other), other.reason) == (type(error), str(error), error.reason)


def test_an_image_that_was_listed_without_its_size_is_no_page(proxy: OutageProxy, objects: dict[str, bytes]) -> None:
    entries = [ImageEntry(f"s3://outages/{key}", None, None) for key in list(objects)[:40]]
    proxy.begin("page", seconds=1, after=30)
    assert fetch(Storage(proxy.endpoint), entries) == list(objects.values())[:40]
    proxy.begin("page", seconds=60)
    with pytest.raises(StorageError, match="a page came instead"):
        fetch(Storage(proxy.endpoint), entries, wait_seconds=1)


def test_what_is_wrong_with_one_image_is_a_row_and_costs_little(s3_server: S3Server) -> None:
    """Whole forbidden folders too: the witness may come from anywhere in the run."""
    client = s3_server.client()
    bucket = f"b{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    for n in range(40):
        client.put_object(Bucket=bucket, Key=f"forbidden/{n:02d}.jpg", Body=b"forbidden")
    for name in ("x", "gone", "replaced"):
        client.put_object(Bucket=bucket, Key=f"z/{name}.jpg", Body=b"as it was")
    storage = Storage(s3_server.endpoint)
    entries = list(storage.list_files(f"s3://{bucket}"))
    client.delete_object(Bucket=bucket, Key="z/gone.jpg")
    client.put_object(Bucket=bucket, Key="z/replaced.jpg", Body=b"another picture")
    started = time.monotonic()
    found = fetch(storage, entries, roots=[f"s3://{bucket}"], candidates=lambda: [entries[0], entries[-1]], wait_seconds=60)
    assert time.monotonic() - started < 30
    assert [str(image) for image in found[:-3]] == ["The file cannot be read (AccessDenied)."] * 40
    assert [str(found[-3]), *found[-2:]] == [
        "The file cannot be read (it does not exist any more).",
        b"another picture",  # replaced since it was listed; its row has the etag of the listing, so it is due again
        b"as it was",
    ]
    few = fetch(storage, entries[:3], roots=[f"s3://{bucket}"])
    assert [image.status for image in few if isinstance(image, ImageError)] == [Status.UNREADABLE] * 3


def test_a_list_that_is_older_than_its_objects_is_no_outage(proxy: OutageProxy, objects: dict[str, bytes]) -> None:
    entries = [ImageEntry(f"s3://outages/{key}", 7, None, "before") for key in objects][:12]
    assert fetch(Storage(proxy.endpoint), entries) == list(objects.values())[:12]
    proxy.begin("page", seconds=60, matching="/in/")
    with pytest.raises(StorageError, match="can be read any more"):
        fetch(Storage(proxy.endpoint), entries, wait_seconds=0.5)
    proxy.begin("page", seconds=60, matching=".")
    for ask in (Storage(proxy.endpoint).stat, lambda uri: list(Storage(proxy.endpoint).list_files(uri))):
        with pytest.raises(OutageError, match="what answered is no store"):
            ask("s3://outages/in")


def test_a_folder_that_goes_away_is_waited_for_and_deleted_files_are_rows(tmp_path: Path) -> None:
    """A share that is not mounted any more has no files, or an empty folder in its place."""
    folder, away = tmp_path / "share", tmp_path / "away"
    folder.mkdir()
    for n in range(30):
        (folder / f"{n:02d}.jpg").write_bytes(b"%d" % n)
    entries = list(Storage().list_files(str(folder)))
    reader = PatientReader(Storage(), 1, wait_seconds=1, roots=[str(folder)])
    assert [reader.read(entry) for entry in entries[:10]] == [b"%d" % n for n in range(10)]
    folder.rename(away)
    for is_empty in (False, True):
        if is_empty:
            folder.mkdir()
        with pytest.raises(StorageError, match=r"No image of .*share/ can be read any more \(.*not exist"):
            reader.read(entries[10])
    shutil.copytree(away, folder, dirs_exist_ok=True)
    assert reader.read(entries[10]) == b"10"
    for entry in entries[:20]:
        Path(entry.image_uri).unlink()
    assert [str(reader.read(entry)) for entry in entries[15:20]] == ["The file cannot be read (it does not exist any more)."] * 5


def test_a_share_that_fails_is_waited_for_in_listing_and_reading_and_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    for n in range(12):
        (tmp_path / "deep" / f"{n:02d}.jpg").write_bytes(b"%d" % n)
    failures = {"scandir": 2, "open": 2}
    right = {name: getattr(os, name) for name in failures}

    def fail(name: str, path: str, *arguments: Any) -> Any:
        if "deep" in str(path) and failures[name]:
            failures[name] -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return right[name](path, *arguments)

    monkeypatch.setattr(folders, "PAUSES", (0.1, 0.1))
    for name in failures:
        monkeypatch.setattr(os, name, functools.partial(fail, name))
    entries = list(Storage().list_files(str(tmp_path)))
    assert fetch(Storage(), entries, roots=[str(tmp_path)]) == [b"%d" % n for n in range(12)]
    failures |= {"scandir": 1_000_000, "open": 1_000_000}
    with pytest.raises(OutageError, match=r"deep cannot be listed \(Stale"):
        list(Storage().list_files(str(tmp_path)))
    with pytest.raises(StorageError, match=r"can be read any more \(Stale"):
        fetch(Storage(), entries, roots=[str(tmp_path)], wait_seconds=0.5)


def test_dead_servers_of_a_list_are_rows_and_the_one_with_all_images_is_waited_for() -> None:
    answers: dict[str, Answer | list[Answer]] = {f"/{n}.jpg": Answer(b"%d" % n) for n in range(60)}
    server = WebServer(answers | {"/moved.jpg": Answer(b"<!DOCTYPE html><p>moved")})
    try:
        alive = [ImageEntry(f"{server.endpoint}/{n}.jpg", None, None) for n in range(60)]
        dead = [ImageEntry(f"http://127.0.0.1:9/{n}.jpg", None, None) for n in range(8)]
        moved = ImageEntry(f"{server.endpoint}/moved.jpg", None, None)
        reader = PatientReader(Storage(), 1, wait_seconds=30)
        assert [reader.read(entry) for entry in alive[:3]] == [b"0", b"1", b"2"]
        assert [str(image) for image in Fetcher(reader).fetch(dead)] == ["The file cannot be read (NewConnectionError)."] * 8
        assert reader.read(moved) == b"<!DOCTYPE html><p>moved", "as it came, and no image"
        assert [reader.read(entry) for entry in alive[3:50]] == [b"%d" % n for n in range(3, 50)]
        right, server.answers = server.answers, dict.fromkeys(server.answers, Answer(status=403))
        threading.Timer(1, lambda: setattr(server, "answers", right)).start()
        assert list(Fetcher(reader).fetch(alive[50:])) == [b"%d" % n for n in range(50, 60)]
    finally:
        server.stop()


def test_a_tar_on_a_dead_server_is_a_row_of_its_list_and_one_that_comes_back_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(inputs, "LATE_SECONDS", 0.1)
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode="w") as shard:
            shard.addfile(tarfile.TarInfo("a.jpg"))
        tar = buffer.getvalue()
    server = WebServer({"/x.tar": [Answer(status=503)] * 3 + [Answer(tar)], "/late.tar": [Answer(status=503)] * 4 + [Answer(tar)]})
    try:
        dead = ["http://127.0.0.1:9/dead.tar", "http://127.0.0.1:9/dead.tar#b.jpg"]
        alive = [f"{server.endpoint}/{name}" for name in ("x.tar", "late.tar")]
        (tmp_path / "list.txt").write_text("\n".join(dead + alive))
        entries = list(list_images(Storage(), [str(tmp_path / "list.txt")], ""))
        assert [entry.image_uri for entry in entries] == [dead[1], dead[0], f"{alive[0]}#a.jpg", alive[1]]
        found = fetch(Storage(), [*entries, ImageEntry(f"{alive[0]}", 3, None)], wait_seconds=30)
    finally:
        server.stop()
    assert [str(image) for image in found] == [
        *["The file cannot be read (NewConnectionError)."] * 2,
        "b''",
        *["The archive could not be read when it was listed: the next run tries it again."] * 2,
    ]
