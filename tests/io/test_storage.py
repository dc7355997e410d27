"""Every file is listed once, in order, whatever its name; a name stands only for a whole file; in folders and in S3."""

import dataclasses
import os
import pickle
import re
import socket
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import botocore.endpoint
import pytest
from stores import KEYS_PER_PAGE, FaultyProxy, MachineMetadata, S3Server
from web_server import MODIFIED, Answer, WebServer

from fer_ray.errors import AccessError, ImageError, StorageError, TooLargeError, UsageError
from fer_ray.io import s3, s3_client, s3_listing, storage
from fer_ray.io.inputs import list_images
from fer_ray.io.storage import Storage, join
from fer_ray.schema import ImageEntry, Status

ROOT = Path(__file__).parents[2]
ODD_NAMES = [
    "a b.jpg",
    "ünï\u2028.jpg",
    "a+b%20.jpg",
    "a%2Fb.jpg",
    "#.jpg",
    "q?x=1&y.jpg",
    "a-b/x.jpg",
    "a/b.jpg",
    "a.jpg",
    "a/.hidden",
    "line\nbreak.jpg",
    "s3:/x.jpg",
]
ODD_KEYS = [
    *(name for name in ODD_NAMES if "\n" not in name),
    "two//slashes.jpg",
    "/leading.jpg",
    "ends in/",
    "x/../y.jpg",
    "x/./z.jpg",
]  # moto takes no line break
LISTED = "<LastModified>2026-11-20T12:30:00.000Z</LastModified><ETag>&quot;1&quot;</ETag>"
MANY = [f"many/{n:04d}" for n in range(2 * KEYS_PER_PAGE + 10)]


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    """A bucket of its own."""
    name = f"b{uuid.uuid4().hex[:12]}"
    s3_server.client().create_bucket(Bucket=name)
    return name


def test_odd_names_are_listed_in_the_order_of_their_bytes_and_read_back(tmp_path: Path) -> None:
    contents = {name: name.encode() for name in ODD_NAMES}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    raw = os.fsencode(tmp_path) + b"/\xff\xfe.jpg"
    Path(os.fsdecode(raw)).write_bytes(b"raw")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "images.parquet").touch()
    entries = list(Storage().list_files(str(tmp_path), excluded=str(tmp_path / "tables")))
    uris = [entry.image_uri for entry in entries]
    assert uris[:-1] == sorted((str(tmp_path / name) for name in ODD_NAMES), key=os.fsencode)
    assert [Storage().read(uri) for uri in uris[:-1]] == [contents[os.path.relpath(uri, tmp_path)] for uri in uris[:-1]]
    assert uris[-1].startswith("file://")
    assert uris[-1].encode()
    assert Storage().read(uris[-1]) == b"raw"


def test_odd_keys_of_more_than_one_page_are_listed_in_order_and_read_back(
    s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "KEYS_PER_DELETE", KEYS_PER_PAGE)
    client = s3_server.client()
    for key in [*ODD_KEYS, *MANY, "tables/images.parquet"]:
        client.put_object(Bucket=bucket, Key=f"in/{key}", Body=key.encode())
    store, by_boto3, ask = Storage(s3_server.endpoint), Counter[str](), s3_listing._ask_boto3

    def count(*question: Any) -> Any:
        by_boto3["pages"] += 1
        return ask(*question)

    monkeypatch.setattr(s3_listing, "_ask_boto3", count)
    entries = list(store.list_files(f"s3://{bucket}/in", excluded=f"s3://{bucket}/in/tables"))
    assert by_boto3["pages"] == 1, "the first page of three; the others at a tenth of its cost"
    found = [entry.image_uri.removeprefix(f"s3://{bucket}/in/") for entry in entries]
    assert found == sorted([*ODD_KEYS, *MANY], key=str.encode)
    assert all(entry.etag and '"' not in entry.etag and entry.modified_at and entry.size_bytes is not None for entry in entries)
    for key in ODD_KEYS:
        assert store.read(f"s3://{bucket}/in/{key}") == key.encode()
        assert store.stat(f"s3://{bucket}/in/{key}") is not None
    assert [entry.image_uri for entry in store.list_files(f"s3://{bucket}/in/many/000")] == []
    store.remove_folder(f"s3://{bucket}/in/many")
    assert len(list(store.list_files(f"s3://{bucket}/in"))) == len(ODD_KEYS) + 1


def test_slashes_at_the_ends_of_keys_are_kept_in_a_whole_bucket(s3_server: S3Server, bucket: str) -> None:
    """obstore drops them without a word."""
    keys = ["/leading.jpg", "leading.jpg", "photos", "photos/"]
    for key in keys:
        s3_server.client().put_object(Bucket=bucket, Key=key, Body=key.encode())
    store = Storage(s3_server.endpoint)
    uris = [entry.image_uri for entry in store.list_files(f"s3://{bucket}")]
    assert uris == [f"s3://{bucket}/{key}" for key in keys]
    for _ in range(2):
        assert [store.read(uri) for uri in uris] == [key.encode() for key in keys]


def test_images_come_through_obstore_once_boto3_found_the_bucket(s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times cheaper; whatever goes wrong is boto3's again."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")  # obstore would take it for more than what it is told
    store, uri = Storage(s3_server.endpoint), f"s3://{bucket}/ä b#c.jpg"
    store.write(uri, b"0123456789")
    assert store.read(uri) == b"0123456789"
    monkeypatch.setattr(s3, "_with_whole_body", lambda get: pytest.fail("boto3 is asked"))
    entry = store.stat(uri)
    assert entry and pickle.loads(pickle.dumps(store)).read(uri) == b"0123456789"
    assert store.read_part(uri, 3, 4, 4, entry.etag) == b"3456"
    with pytest.raises(TooLargeError):
        store.read(uri, 9)
    with store.open(uri, read_ahead=4) as file:
        assert (file.read(3), file.seek(8), file.read(9)) == (b"012", 8, b"89")
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        store.read(f"s3://{bucket}/other")
    monkeypatch.setenv("AWS_COPY_IF_NOT_EXISTS", "no word of obstore's")
    other = s3_server.endpoint.replace("127.0.0.1", "localhost")
    assert [Storage(other).read(uri) for _ in range(2)] == [b"0123456789"] * 2
    assert s3_client.connect(other, True, False, False).fast_stores == {bucket: None}


def test_a_public_bucket_is_asked_without_credentials_and_a_payer_says_so(s3_server: S3Server) -> None:
    first, *others = (
        Answer(f"<ListBucketResult>{more}<Contents><Key>{key}</Key><Size>3</Size>{LISTED}</Contents></ListBucketResult>".encode())
        for key, more in {"a.jpg": "<IsTruncated>true</IsTruncated><NextContinuationToken>n</NextContinuationToken>", "b&amp;c": ""}.items()
    )
    question = "/b-1?list-type=2&prefix=&encoding-type=url"
    answers: dict[str, Answer | list[Answer]] = {
        "/b-1/a.jpg": Answer(b"abc", headers={"Last-Modified": MODIFIED}),
        question: first,
        f"{question}&continuation-token=n": others,
    }
    for public, payer in ((("b-1",), False), ((), True)):
        server = WebServer(answers)
        try:
            store = Storage(server.endpoint, public, payer)
            entries = list(store.list_files("s3://b-1"))
            assert [(entry.image_uri, entry.size_bytes, entry.etag) for entry in entries] == [
                ("s3://b-1/a.jpg", 3, "1"),
                ("s3://b-1/b&c", 3, "1"),
            ]
            assert [store.read("s3://b-1/a.jpg") for _ in range(2)] == [b"abc", b"abc"]
            assert store.stat("s3://b-1/a.jpg")
            assert len(server.asked) == 5
            for asked in server.asked:
                assert ("Authorization" in asked.headers) == (not public), asked.path
                assert asked.headers.get("x-amz-request-payer") == ("requester" if payer else None), asked.path
        finally:
            server.stop()


def test_what_cannot_be_read_is_an_entry_and_a_status(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "large").write_bytes(bytes(2_000_000))
    entries = {Path(entry.image_uri).name: entry for entry in Storage().list_files(str(tmp_path))}
    assert sorted(entries) == ["broken link", "large", "pipe"]
    for name, status in {"pipe": Status.UNREADABLE, "broken link": Status.UNREADABLE, "large": Status.TOO_LARGE}.items():
        with pytest.raises(ImageError) as caught:
            Storage().read_image(entries[name], max_megabytes=1)
        assert caught.value.status == status


def test_an_object_that_cannot_be_had_is_a_status_and_wrong_credentials_are_the_end(
    s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = s3_server.client()
    for key, size in {"forbidden.jpg": 10, "large.jpg": 2_000_000}.items():
        client.put_object(Bucket=bucket, Key=key, Body=bytes(size))
    statuses = {"vanished.jpg": Status.UNREADABLE, "forbidden.jpg": Status.UNREADABLE, "large.jpg": Status.TOO_LARGE}
    for key, status in statuses.items():
        with pytest.raises(ImageError) as caught:
            Storage(s3_server.endpoint).read_image(ImageEntry(f"s3://{bucket}/{key}", None, None), max_megabytes=1)
        assert caught.value.status == status
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    wrong = Storage(s3_server.endpoint + "/")  # another address, so another client
    for use in (
        lambda: wrong.read_image(ImageEntry(f"s3://{bucket}/large.jpg", None, None), 10),
        lambda: list(wrong.list_files(f"s3://{bucket}")),
        lambda: wrong.write(f"s3://{bucket}/new", b""),
    ):
        with pytest.raises(StorageError, match=r"refuses the credentials .*SignatureDoesNotMatch.*check the AWS") as refused:
            use()
        assert "not-the-secret" not in str(refused.value)


def test_a_store_that_fails_now_and_then_is_read_and_written_in_full(s3_server: S3Server, bucket: str) -> None:
    proxy = FaultyProxy(s3_server.endpoint, share=0.2)
    try:
        store = Storage(proxy.endpoint)
        contents = {f"s3://{bucket}/{n:02d}": os.urandom(30_000) for n in range(40)}
        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(store.write, contents, contents.values()))
            assert [entry.image_uri for entry in store.list_files(f"s3://{bucket}")] == list(contents)
            assert list(threads.map(store.read, contents)) == list(contents.values())
        assert set(proxy.faults) == {"503", "500", "slow", "cut"}
    finally:
        proxy.stop()


def test_a_wrong_endpoint_is_told_in_seconds(s3_server: S3Server, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    uses = (["--input", "s3://b-1/in", "--output", out], ["--model", "s3://b-1/best", "--output", out], ["--output", "s3://b-1/out"])
    command = [sys.executable, "jobs/label.py", "--s3-endpoint", "http://127.0.0.1:9", "--wait-for-store", "2"]
    jobs = [subprocess.Popen([*command, *use], cwd=ROOT, stderr=subprocess.PIPE, text=True) for use in uses]
    for job, what in zip(jobs, ("listed", "read", "written"), strict=True):
        complaint = job.communicate(timeout=60)[1]
        sentence = rf"s3://b-1/\S* cannot be {what} \(EndpointConnectionError\): check the endpoint.*"
        first, last = complaint.splitlines()
        assert re.fullmatch(rf".* {sentence} It is tried again for 2 s\.", first), "at once, whatever is waited"
        assert re.fullmatch(rf"error: (The run \S+ stopped \()?{sentence}", last)
        assert job.returncode == 1, "nothing is wrong with what was asked for"


def test_an_endpoint_that_never_answers_is_asked_once(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "READ_SECONDS", 0.5)
    monkeypatch.setattr(s3_client, "_ray_is_at_work", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = Storage(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(AccessError, match=r"cannot be read \(ReadTimeoutError\): check the endpoint"):
            store.stat("s3://b-1/key")
        silent.settimeout(0.1)
        silent.accept()
        with pytest.raises(TimeoutError):
            silent.accept()


def test_a_store_that_answered_once_is_waited_for(s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = FaultyProxy(s3_server.endpoint)
    store, waits = Storage(proxy.endpoint), list[float]()
    assert store.stat(f"s3://{bucket}/key") is None
    proxy.stop()
    monkeypatch.setattr(botocore.endpoint, "time", SimpleNamespace(sleep=waits.append))
    with pytest.raises(AccessError, match=r"EndpointConnectionError.*check the endpoint"):
        store.stat(f"s3://{bucket}/key")
    assert len(waits) == 7, "about a minute"


USE_STORE = """
import sys
from fer_ray.io.storage import Storage
store = Storage()
address = sys.argv[1]
store.check_writable(address)
store.write(f"{address}/one", b"1")
store.write(f"{address}/two", b"2")
print([entry.image_uri for entry in store.list_files(address)], store.read(f"{address}/one"), store.read(f"{address}/two"))
"""


def test_the_keys_of_a_profile_and_of_a_machine_open_the_store(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    key, secret = s3_server.environment["AWS_ACCESS_KEY_ID"], s3_server.environment["AWS_SECRET_ACCESS_KEY"]
    file = tmp_path / "credentials"
    file.write_text(f"[archive]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\nregion = us-east-1\n")
    machine = MachineMetadata(key, secret)
    ways = {
        "profile": {"AWS_SHARED_CREDENTIALS_FILE": str(file), "AWS_PROFILE": "archive"},
        "machine": {"AWS_EC2_METADATA_SERVICE_ENDPOINT": machine.endpoint, "AWS_DEFAULT_REGION": "us-east-1"},
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    inherited |= {"AWS_ENDPOINT_URL": s3_server.endpoint, "HOME": str(tmp_path)}
    try:
        for name, way in ways.items():
            address = f"s3://{bucket}/{name}"
            command = [sys.executable, "-c", USE_STORE, address]
            ran = subprocess.run(command, env=inherited | way, cwd=ROOT, capture_output=True, text=True, timeout=120)
            assert ran.stdout.strip() == f"{[f'{address}/one', f'{address}/two']} b'1' b'2'", ran.stderr
    finally:
        machine.stop()


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Storage, str]]:
    if request.param == "folder":
        yield Storage(), str(tmp_path / "deep" / "folder")
    else:
        server: S3Server = request.getfixturevalue("s3_server")
        yield Storage(server.endpoint), f"s3://{request.getfixturevalue('bucket')}/deep/folder"


def test_a_failed_write_leaves_no_file_under_the_name(place: tuple[Storage, str]) -> None:
    store, folder = place
    target = join(folder, "table.parquet")
    with pytest.raises(RuntimeError), store.writing(target) as file:
        file.write_text("half")
        raise RuntimeError
    assert store.stat(target) is None
    with store.writing(target) as file:
        file.write_text("whole")
    assert store.read(target) == b"whole"
    assert [entry.image_uri for entry in store.list_files(folder)] == [target]


def test_of_two_writers_of_one_name_the_first_stays(place: tuple[Storage, str]) -> None:
    store, folder = place
    target = join(folder, "plan.json")
    assert store.write(target, b"first", replace=False)
    assert not store.write(target, b"second", replace=False)
    assert store.read(target) == b"first"
    assert store.write(target, b"third")
    assert store.read(target) == b"third"
    with store.open(target, read_ahead=2) as file:
        file.seek(2)
        assert (file.read(2), file.read(9), file.read(1)) == (b"ir", b"d", b"")


def test_an_archived_object_is_a_row_without_a_get_until_it_is_restored(
    s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, store = s3_server.client(), Storage(s3_server.endpoint)
    for number in range(2 * KEYS_PER_PAGE):
        storage_class = "DEEP_ARCHIVE" if number in (1, 2 * KEYS_PER_PAGE - 1) else "GLACIER" if number == 3 else "GLACIER_IR"
        client.put_object(Bucket=bucket, Key=f"{number:04d}.jpg", Body=b"x", StorageClass=storage_class)
    entries = list(list_images(store, [f"s3://{bucket}/"], ""))
    assert [entry.image_uri[-8:-4] for entry in entries if entry.status] == ["0001", "0003", f"{2 * KEYS_PER_PAGE - 1:04d}"]
    unlisted = ImageEntry(entries[3].image_uri, None, None)  # as a list without storage classes has it
    for entry, reason in ((entries[1], "archived .DEEP_ARCHIVE."), (unlisted, "InvalidObjectState")):
        with pytest.raises(ImageError, match=reason) as caught:
            store.read_image(entry, 1)
        assert caught.value.status == Status.ARCHIVED
    assert not Status.ARCHIVED.is_failure
    client.restore_object(Bucket=bucket, Key="0001.jpg", RestoreRequest={"Days": 1})
    assert store.stat(entries[3].image_uri) == entries[3]
    assert (restored := store.stat(entries[1].image_uri)) and restored == dataclasses.replace(entries[1], status=None, error=None)

    connection = s3_client.connect(s3_server.endpoint, True, False, False)
    ask = connection.client.list_objects_v2

    def answer(**asked: object) -> dict[str, Any]:  # as AWS does; moto does not know what was restored
        page = dict(ask(**asked))
        for found in page["Contents"] if asked.get("OptionalObjectAttributes") == ["RestoreStatus"] else ():
            if found["Key"] == "0001.jpg":
                found["RestoreStatus"] = {"IsRestoreInProgress": False, "RestoreExpiryDate": MODIFIED}
            if found["Key"] == "0003.jpg":
                found["RestoreStatus"] = {"IsRestoreInProgress": True}
        return page

    monkeypatch.setattr(connection.client, "list_objects_v2", answer)
    assert [entry.status for entry in list(store.list_files(f"s3://{bucket}"))[:5]] == [None, None, None, Status.ARCHIVED, None]


def test_places_that_cannot_be_used_are_named(tmp_path: Path, s3_server: S3Server) -> None:
    (tmp_path / "file").touch()
    store = Storage(s3_server.endpoint)
    s3_server.client().create_bucket(Bucket="readonly")
    uses: dict[str, Callable[[], object]] = {
        "file is no folder": lambda: store.check_writable(str(tmp_path / "file" / "output")),
        "bucket of s3://missing/x does not exist": lambda: list(store.list_files("s3://missing/x")),
        "s3://readonly/.* cannot be written .AccessDenied": lambda: store.check_writable("s3://readonly/tables"),
    }
    for complaint, use in uses.items():
        with pytest.raises(StorageError, match=complaint):
            use()
    for uri in ("ftp://host/secret", "s3://key:secret@bucket/x", "s3:///x", "gs://key:secret@bucket/x", "az:///x"):
        with pytest.raises(UsageError) as caught:
            storage.absolute(uri, "input")
        assert "secret" not in str(caught.value)
    with pytest.raises(UsageError, match="cannot be written: results go to folders, and to s3://"):
        store.check_writable("https://server/tables")
