"""Bytes that come too slowly to wait for, from any kind of store: a reason in time, and no second helping."""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

import pytest

from fer_ray.errors import ImageError, OutageError, SlowError, StorageError
from fer_ray.io import cloud, pace, prefetch, s3, s3_client, web
from fer_ray.io.outages import PatientReader
from fer_ray.io.storage import Storage
from fer_ray.schema import ImageEntry

BODY = b"x" * 200_000
ASKED: Counter[str] = Counter()


class Store(BaseHTTPRequestHandler):
    """Sends a whole body, three bytes of it each tenth of a second, or three and then nothing, as the name says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        ASKED[self.path] += 1
        time.sleep(4 * ("silent" in self.path))
        try:
            for byte in b"HTTP/1.1 200 OK" if "head" in self.path else ():
                self.wfile.write(bytes([byte]))
                time.sleep(0.2)
        except OSError:
            return
        self.send_response(200)
        for name, value in {"Content-Length": len(BODY), "ETag": '"a"', "Last-Modified": "Fri, 20 Nov 2026 12:30:00 GMT"}.items():
            self.send_header(name, str(value))
        self.end_headers()
        for start in range(0, 300, 3) if "slow" in self.path else ():
            try:
                self.wfile.write(BODY[start : start + 3])
                self.wfile.flush()
            except OSError:
                return
            time.sleep(0.1)
        self.wfile.write(b"" if "slow" in self.path else BODY)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(pace, "SECONDS", 1.0)
    monkeypatch.setattr(pace, "_slow_at", deque(maxlen=pace.MANY))
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("GOOGLE_BASE_URL", address)
    ASKED.clear()
    cloud._connect.cache_clear()
    web._pool.cache_clear()
    yield address
    cloud._connect.cache_clear()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("place", ["s3://bucket", "gs://bucket", "http"])
@pytest.mark.parametrize("name", ["slow.jpg", "slow/"])
def test_an_object_that_trickles_is_a_row_in_time(endpoint: str, place: str, name: str) -> None:
    """In S3, keys that end with a slash are read by boto3, the others by obstore once boto3 has found the bucket."""
    folder = place if "://" in place else endpoint
    if folder.startswith("gs") and name.endswith("/"):
        return
    storage = Storage(endpoint, public_buckets=("bucket",))
    assert storage.read_image(ImageEntry(f"{folder}/sound.jpg", len(BODY), None), 1) == BODY
    started = time.monotonic()
    with pytest.raises(ImageError, match=r"The file cannot be read \(only \d+ bytes came in \d+ s\)") as told:
        storage.read_image(ImageEntry(f"{folder}/{name}", len(BODY), None), 1)
    assert told.value.status == "unreadable"
    assert time.monotonic() - started < 8
    assert [count for path, count in ASKED.items() if "slow" in path] == [1]


@pytest.mark.parametrize("name", ["s3://bucket/head.jpg", "s3://bucket/head/", "gs://bucket/head.jpg", "head.jpg"])
def test_an_answer_whose_head_trickles_is_a_row_in_time(endpoint: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through obstore, boto3 and urllib3: whatever is between two bytes of it."""
    for module in (web, s3, s3_client):
        monkeypatch.setattr(module, "READ_SECONDS", 1.0)
    second = timedelta(seconds=1)
    monkeypatch.setitem(cast("dict[str, object]", cloud._CLIENT), "read_timeout", second)
    monkeypatch.setitem(cast("dict[str, object]", cloud.RETRIES), "retry_timeout", second)
    storage = Storage(endpoint, public_buckets=("bucket",))
    assert storage.read("s3://bucket/sound.jpg") == BODY
    with pytest.raises(ImageError, match=r"The file cannot be read \((ReadTimeoutError|no answer in time)\)"):
        storage.read_image(ImageEntry(name if "://" in name else f"{endpoint}/{name}", len(BODY), None), 1)
    assert [count for path, count in ASKED.items() if "head" in path] == [1]


def test_an_object_that_is_not_answered_is_asked_for_once_in_a_try(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try costs the time of one silence; `outages` finds out whose fault it is."""
    monkeypatch.setattr(s3, "READ_SECONDS", 1.0)
    monkeypatch.setattr(s3_client, "READ_SECONDS", 1.0)
    storage = Storage(endpoint, public_buckets=("bucket",))
    assert storage.read("s3://bucket/sound.jpg") == BODY
    with pytest.raises(OutageError, match="no answer in time"):
        storage.read("s3://bucket/silent.jpg")
    assert ASKED["/bucket/silent.jpg"] == 1


def test_after_many_objects_that_trickle_others_are_given_up_sooner(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(pace.MANY - 1):
        pace._slow_at.append(time.monotonic())
    with pytest.raises(SlowError):
        Storage().read(f"{endpoint}/slow.jpg")
    monkeypatch.setattr(pace, "SECONDS", 20.0)
    monkeypatch.setattr(pace, "SECONDS_AMONG_MANY", 0.2)
    started = time.monotonic()
    with pytest.raises(SlowError):
        Storage().read(f"{endpoint}/slow.jpg")
    assert time.monotonic() - started < 10
    assert Storage().read(f"{endpoint}/sound.jpg") == BODY


class HungMount:
    """Reads files, but never one whose name says so."""

    wait_seconds = 0.0

    def __init__(self) -> None:
        self.ended = threading.Event()

    def read(self, entry: ImageEntry) -> bytes | ImageError:
        if "hung" in entry.image_uri:
            self.ended.wait()
        return BODY


def test_a_file_on_a_hung_mount_is_a_row_beside_others_and_else_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "LOCAL_SECONDS", 1.0)
    monkeypatch.setattr(prefetch, "HUNG_SECONDS", 1.0)
    reader = HungMount()
    fetcher = prefetch.Fetcher(cast("PatientReader", reader))
    hung, sound = ImageEntry("/hung.jpg", 1, None), ImageEntry("/sound.jpg", 1, None)
    first, *others = fetcher.fetch([hung] + [sound] * 70)
    assert str(first) == "The file cannot be read (no answer in 1 s)."
    assert others == [BODY] * 70
    assert [str(one) for one in fetcher.fetch([hung])] == ["The file cannot be read (no answer in 1 s)."], "the last one is asked for again"
    fetcher = prefetch.Fetcher(cast("PatientReader", reader))
    with pytest.raises(StorageError, match=r"^/hung.jpg gave no answer in 1 s"):
        list(fetcher.fetch([hung]))
    reader.ended.set()


class Counting:
    """Reads files, and remembers which and how often."""

    wait_seconds = 0.0

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()

    def read(self, entry: ImageEntry) -> bytes | ImageError:
        self.reads[entry.image_uri] += 1
        return entry.image_uri.encode()


def test_a_part_is_on_its_way_before_the_one_before_it_ends_and_nothing_is_read_twice() -> None:
    reader = Counting()
    fetcher = prefetch.Fetcher(cast("PatientReader", reader))
    first, second, third = ([ImageEntry(f"/{part}/{n}.jpg", 10, None) for n in range(count)] for part, count in enumerate((100, 40, 70)))
    for part, following in ((first, second), (second, third[:64]), (third, first)):
        assert list(fetcher.fetch(part, following)) == [entry.image_uri.encode() for entry in part]
        time.sleep(0.2)
        assert all(reader.reads[entry.image_uri] for entry in following[:40])
    assert list(fetcher.fetch(second)) == [entry.image_uri.encode() for entry in second], "another than was announced"
    assert {reader.reads[entry.image_uri] for entry in third} == {1}
