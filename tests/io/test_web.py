"""Files on the web are read as they are, or get a row that says why not; no redirect leads out of http and https."""

import datetime
import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from web_server import MODIFIED, Answer, WebServer, make_certificate

from fer_ray.errors import AccessError, ImageError, TooLargeError, UsageError
from fer_ray.io import web
from fer_ray.io.inputs import check_inputs, list_images, read_image_named
from fer_ray.io.storage import Storage, absolute
from fer_ray.schema import ImageEntry, Status

Serve = Callable[..., WebServer]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setattr(web, "SECONDS_BEFORE_RETRY", 0.01)
    web._pool.cache_clear()
    servers = []

    def start(answers: dict[str, Answer | list[Answer]], certificate: Path | None = None) -> WebServer:
        servers.append(WebServer(answers, certificate))
        return servers[-1]

    yield start
    web._pool.cache_clear()
    for server in servers:
        server.stop()


def test_lists_and_single_files_on_the_web_are_labeled_as_others(serve: Serve) -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        member = tarfile.TarInfo("in.jpg")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"inner"))
    server = serve(
        {
            "/a%2Fb%20c.jpg?w=100&v=2": Answer(b"first", headers={"ETag": '"1"', "Last-Modified": MODIFIED}),
            "/00000.tar": Answer(tar.getvalue(), headers={"ETag": '"2"'}),
            "/single.jpg": Answer(b"single"),
        }
    )
    image = f"{server.endpoint}/a%2Fb%20c.jpg?w=100&v=2"
    server.answers["/list.csv.gz?v=1"] = Answer(gzip.compress(f"url\n{image}\n{server.endpoint}/00000.tar\n".encode()))
    storage = Storage()
    inputs = check_inputs(storage, [f"{server.endpoint}/list.csv.gz?v=1", f"{server.endpoint}/single.jpg"])
    entries = list(list_images(storage, inputs, "/tables"))
    assert [entry.image_uri for entry in entries] == [image, f"{server.endpoint}/00000.tar#in.jpg", f"{server.endpoint}/single.jpg"]
    assert [storage.read_image(entry, 1) for entry in entries] == [b"first", b"inner", b"single"]
    assert read_image_named(storage, entries[1].image_uri, 1) == b"inner"
    assert storage.stat(image) == ImageEntry(image, 5, datetime.datetime(2026, 11, 20, 12, 30, tzinfo=datetime.UTC), "1")
    with pytest.raises(UsageError, match="no file at"):
        check_inputs(storage, [f"{server.endpoint}/missing.jpg"])


def test_what_the_web_does_not_give_is_a_row_with_the_reason(serve: Serve) -> None:
    server = serve(
        {
            "/forbidden": Answer(status=403),
            "/down": Answer(status=503),
            "/cut": Answer(b"half", length=8),
            "/large": Answer(bytes(2_000_000)),
            "/endless": Answer(bytes(2_000_000), chunked=True),
        }
    )
    reasons = {
        "/missing": "does not exist any more",
        "/forbidden": "status 403",
        "/down": "status 503",
        "/cut": "IncompleteRead",
        "/large": "2,000,000 bytes",
        "/endless": "the limit is 1 megabytes",
    }
    for path, reason in reasons.items():
        with pytest.raises(ImageError, match=reason) as caught:
            Storage().read_image(ImageEntry(server.endpoint + path, None, None), 1)
        assert caught.value.status == (Status.TOO_LARGE if path in ("/large", "/endless") else Status.UNREADABLE)
    asked = [one.path for one in server.asked]
    assert asked.count("/down") == web.ATTEMPTS
    assert asked.count("/forbidden") == asked.count("/missing") == 1
    with pytest.raises(ImageError, match="NewConnectionError"):
        Storage().read_image(ImageEntry("http://127.0.0.1:9/x.jpg", None, None), 1)


def test_a_server_that_fails_now_and_then_is_read_in_full(serve: Serve) -> None:
    answers = [Answer(status=500), Answer(b"wh", length=5), Answer(status=429, headers={"Retry-After": "3600"}), Answer(b"whole")]
    server = serve({"/a": answers, "/chunked": Answer(b"chunked", chunked=True), "/no-head": [Answer(status=405), Answer(b"four")]})
    assert Storage().read(f"{server.endpoint}/a") == b"whole"
    assert Storage().read(f"{server.endpoint}/chunked", 7) == b"chunked"
    found = Storage().stat(f"{server.endpoint}/no-head")
    assert found and found.size_bytes == 4


def test_redirects_stay_in_http_and_never_leave_https(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = serve({"/b": Answer(b"there"), "/ring": Answer(status=302, headers={"Location": "/ring"})})
    secret = f"{plain.endpoint}/b?signature=hidden"
    plain.answers.update(
        {
            "/a": Answer(status=302, headers={"Location": "b"}),
            "/file": Answer(status=302, headers={"Location": "file:///etc/hostname"}),
            "/down": Answer(status=302, headers={"Location": "http://127.0.0.1:9/?signature=hidden"}),
        }
    )
    certificate = make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    safe = serve({"/a": Answer(b"safe"), "/away": Answer(status=307, headers={"Location": secret})}, certificate)
    storage = Storage()
    assert storage.read(f"{plain.endpoint}/a") == b"there"
    assert storage.read(f"{safe.endpoint}/a") == b"safe"
    refused = {
        f"{plain.endpoint}/file": "redirected to another scheme",
        f"{safe.endpoint}/away": "redirected to another scheme",
        f"{plain.endpoint}/ring": "redirected again and again",
        f"{plain.endpoint}/down": "NewConnectionError",
    }
    for uri, reason in refused.items():
        with pytest.raises(AccessError, match=reason) as caught:
            storage.read(uri)
        assert "hidden" not in str(caught.value) + caught.value.reason
    assert "/b?signature=hidden" not in [one.path for one in plain.asked]
    assert "hidden" not in caplog.text


def test_parts_are_read_only_of_the_file_that_was_listed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(
        {
            "/a": Answer(b"0123456789"),
            "/whole": Answer(b"0123456789", parts=False),
            "/small": Answer(b"01234567", parts=False),
            "/new": Answer(status=412),
        }
    )
    storage = Storage()
    assert storage.read_part(f"{server.endpoint}/a", 2, 3, 3, "tag") == b"234"
    assert storage.read_part(f"{server.endpoint}/a", 2, 3, 3, "W/tag") == b"234"
    assert [one.headers.get("If-Match") for one in server.asked] == ['"tag"', None]
    with pytest.raises(AccessError, match="sends no parts"):
        storage.read_part(f"{server.endpoint}/whole", 2, 3, 3)
    with pytest.raises(AccessError, match="changed since it was listed"):
        storage.read_part(f"{server.endpoint}/new", 2, 3, 3, "tag")
    with pytest.raises(TooLargeError):
        storage.read(f"{server.endpoint}/a", 9)
    monkeypatch.setattr(web, "MAX_WHOLE_FILE", 9)
    server.asked.clear()
    with storage.open(f"{server.endpoint}/a", read_ahead=4) as file:
        assert (file.read(3), file.seek(8), file.read(9)) == (b"012", 8, b"89")
    assert all(one.method == "HEAD" or one.headers["Range"] for one in server.asked)
    with pytest.raises(TooLargeError):
        storage.open(f"{server.endpoint}/whole", read_ahead=4)
    with storage.open(f"{server.endpoint}/small", read_ahead=4) as file:
        assert (file.seek(6), file.read(9)) == (6, b"67")


@pytest.mark.parametrize(
    "uri",
    [
        "https://user:hidden@server/a.jpg",
        "https://bucket.s3.amazonaws.com/a.jpg?X-Amz-Date=1&X-Amz-Signature=hidden",
        "https://account.blob.core.windows.net/c/a.jpg?sv=1&sig=hidden",
        "https://storage.googleapis.com/b/a.jpg?X-Goog-Signature=hidden",
        "HTTPS://server/a.jpg?Access_Token=hidden",
        "https://cdn.example.org/a.jpg?Policy=x&Signature=hidden&Key-Pair-Id=y",
        "https://server/a.jpg?X%2DAmz%2DSignature=hidden",
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_shown(uri: str) -> None:
    with pytest.raises(UsageError, match="credentials") as caught:
        absolute(uri, "listed image")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("signed", "bare"),
    [
        ("/a.jpg?X-Amz-Algorithm=A&X-Amz-Credential=b&X-Amz-Date=1&X-Amz-Signature=c&versionId=2", "/a.jpg?versionId=2"),
        ("/c/a.jpg?sv=2024&st=1&se=2&sr=b&sp=r&sig=x%2F%3D", "/c/a.jpg"),
        ("/a.tar?X-Goog-Signature=x&X-Goog-Expires=9#in.jpg", "/a.tar#in.jpg"),
        ("/a.jpg?Expires=1&Signature=b&Key-Pair-Id=c&w=100", "/a.jpg?w=100"),
        ("/o/a.jpg?alt=media&token=x", "/o/a.jpg?alt=media"),
        ("/a.jpg?X%2DAmz%2DSignature=x", "/a.jpg"),
        ("/a.jpg?sv=2&w=1&expires=3", "/a.jpg?sv=2&w=1&expires=3"),
        ("/a.jpg?w=1#access_token=x&state=1", "/a.jpg?w=1#state=1"),
        ("/a.jpg#token=x", "/a.jpg"),
        ("/a.tar#token=1/in.jpg?sig=x", "/a.tar#token=1/in.jpg"),
        ("/a.jpg#left", "/a.jpg#left"),
    ],
)
def test_a_signed_address_is_known_by_what_stays_the_same_every_night(signed: str, bare: str) -> None:
    storage = Storage()
    assert storage.without_secret("https://server" + signed) == "https://server" + bare
    pairs = [] if signed == bare else [(bare, signed), (bare.partition("#")[0], signed.partition("#")[0])]
    assert storage.signed == {f"https://server{known}": f"https://server{asked}" for known, asked in pairs}
    assert storage.without_secret("s3://bucket" + signed) == "s3://bucket" + signed
    assert not [secret for secret in storage.signed.values() if secret in repr(storage)]
