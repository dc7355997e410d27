"""Objects of S3 and of S3-compatible stores, through boto3; what another try can mend is tried again."""

from __future__ import annotations

import functools
import io
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
import boto3.exceptions
import botocore.exceptions
import urllib3.exceptions
from botocore.config import Config

from fer_ray.errors import AccessError, StorageError, TooLargeError, UsageError
from fer_ray.io.signed_get import SignedGet
from fer_ray.schema import ImageEntry

SCHEME = "s3://"
REQUEST_ATTEMPTS = 8  # of one request, by botocore
BODY_ATTEMPTS = 6  # to read a body that breaks off
FIRST_ATTEMPTS = 4  # before anything was ever answered: a wrong address is said soon
CONNECT_SECONDS = 10
READ_SECONDS = 60
CONNECTIONS = 32
KEYS_PER_DELETE = 1000

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_FAILURES = (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError)
_NO_CREDENTIALS = (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError)
_BROKEN_BODY = (
    botocore.exceptions.ResponseStreamingError,
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ReadTimeoutError,
    botocore.exceptions.ConnectionError,
    urllib3.exceptions.HTTPError,
    ConnectionError,
    TimeoutError,
)
_UNCONNECTED = (botocore.exceptions.ConnectionError, botocore.exceptions.ConnectionClosedError, botocore.exceptions.ReadTimeoutError)
_SILENT = (botocore.exceptions.ConnectTimeoutError, botocore.exceptions.ReadTimeoutError)
_WRONG_CREDENTIALS = {
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
}
_MISSING = {"404", "NoSuchKey", "NotFound"}
_EXISTS = {"409", "412", "ConditionalRequestConflict", "PreconditionFailed"}


@dataclass(frozen=True)
class ObjectStore:
    """The store at `endpoint` (empty: what the AWS environment says), with the credentials of the usual AWS chain.

    Every method raises UsageError for an address that is none, AccessError where the store refuses the one object, and
    StorageError where nothing can be done with the store as it stands. No message holds a secret.
    """

    endpoint: str = ""

    def list_files(self, folder: str, excluded: str | None) -> Iterator[ImageEntry]:
        """Every object below a folder but not below `excluded`, in the order of the keys' bytes; a page of 1,000 is held at a time."""
        bucket, key = split(folder)
        prefix = key if not key or key.endswith("/") else key + "/"
        skipped = f"{excluded.rstrip('/')}/" if excluded else None
        with _explained(folder, "listed"):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
                for found in page.get("Contents", ()):
                    entry = _entry(f"{SCHEME}{bucket}/{found['Key']}", found["Size"], found)
                    if skipped is None or not entry.image_uri.startswith(skipped):
                        yield entry

    def stat(self, uri: str) -> ImageEntry | None:
        """The object without its contents; None where there is none."""
        bucket, key = split(uri)
        if not key:
            return None
        try:
            with _explained(uri, "read"):
                found = self._client.head_object(Bucket=bucket, Key=key)
        except FileNotFoundError:
            return None
        return _entry(uri, found["ContentLength"], found)

    def read(self, uri: str, limit: float, start: int = 0, length: int | None = None, etag: str | None = None) -> bytes:
        """The object, or `length` bytes of it from `start`; with `etag`, only as long as it still has that one.

        Raises:
            FileNotFoundError: there is no such object.
            TooLargeError: more than `limit` bytes would have to be read; they were not.
        """
        if length == 0:
            return b""
        bucket, key = split(uri)
        headers = {} if length is None else {"Range": f"bytes={start}-{start + length - 1}"}
        if etag is not None:
            headers["If-Match"] = f'"{etag}"'
        connection = _connection(self.endpoint)
        if connection.contact.made and (content := connection.signed_get.read(bucket, key, limit, headers)) is not None:
            return content

        def get() -> bytes:
            answer = self._client.get_object(Bucket=bucket, Key=key, **{name.replace("-", ""): text for name, text in headers.items()})
            if answer["ContentLength"] > limit:
                answer["Body"].close()
                raise TooLargeError(answer["ContentLength"])
            return bytes(answer["Body"].read())

        with _explained(uri, "read"):
            return _with_whole_body(get)

    def open(self, uri: str, read_ahead: int) -> io.BufferedReader:
        """The object as a file that is read by ranges of at least `read_ahead` bytes."""
        found = self.stat(uri)
        if found is None:
            raise FileNotFoundError(uri)
        return io.BufferedReader(ObjectFile(self, uri, found.size_bytes or 0), read_ahead)

    def write(self, uri: str, content: bytes, replace: bool) -> bool:
        """Store the bytes; gives False and leaves the object alone where it is there already and `replace` is off."""
        bucket, key = split(uri)
        condition = {} if replace else {"IfNoneMatch": "*"}
        try:
            with _explained(uri, "written"):
                self._client.put_object(Bucket=bucket, Key=key, Body=content, **condition)
        except FileExistsError:
            return False
        except AccessError as error:
            if replace or error.reason != "NotImplemented":
                raise
            return self.stat(uri) is None and self.write(uri, content, replace=True)  # a store without conditional writes
        return True

    def upload(self, path: Path, uri: str) -> None:
        """Store a file, in parts if it is large; the object appears when it is whole."""
        bucket, key = split(uri)
        with _explained(uri, "written"):
            self._client.upload_file(str(path), bucket, key)

    def remove(self, uris: Iterable[str]) -> None:
        """Delete objects, 1,000 a request."""
        pending: dict[str, list[str]] = {}
        for uri in uris:
            bucket, key = split(uri)
            keys = pending.setdefault(bucket, [])
            keys.append(key)
            if len(keys) == KEYS_PER_DELETE:
                self._remove(bucket, pending.pop(bucket))
        for bucket, keys in pending.items():
            self._remove(bucket, keys)

    def remove_stale(self, folder: str, before: datetime) -> None:
        """Drop the parts of uploads that began before then and never ended: nobody sees them and somebody pays for them."""
        bucket, key = split(folder)
        with _explained(folder, "tidied"):
            for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=key.rstrip("/") + "/"):
                for found in page.get("Uploads", ()):
                    if found["Initiated"] < before:
                        self._client.abort_multipart_upload(Bucket=bucket, Key=found["Key"], UploadId=found["UploadId"])

    def check_writable(self, folder: str) -> None:
        """Write and remove a small object, since nothing less tells.

        Raises:
            StorageError: the folder cannot be written.
        """
        probe = f"{folder.rstrip('/')}/_probe-{os.urandom(8).hex()}"
        self.write(probe, b"", replace=True)
        self.remove([probe])

    def _remove(self, bucket: str, keys: list[str]) -> None:
        with _explained(f"{SCHEME}{bucket}/{keys[0]}", "deleted"):
            answer = self._client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True})
        for failure in answer.get("Errors", ()):
            raise StorageError(
                f"The object {SCHEME}{bucket}/{failure['Key']} cannot be deleted ({failure['Code']}): check the permissions."
            )

    @property
    def _client(self) -> Any:
        return _connection(self.endpoint).client


class ObjectFile(io.RawIOBase):
    """An object as a raw file; each read is one request for a range."""

    def __init__(self, store: ObjectStore, uri: str, size: int) -> None:
        self.store, self.uri, self.size, self.position = store, uri, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        length = max(0, min(len(view), self.size - self.position))
        view[:length] = self.store.read(self.uri, limit=length, start=self.position, length=length)
        self.position += length
        return length


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`; the key is taken as it stands, nothing in it is an escape.

    Raises:
        UsageError: there is no valid bucket name; the URI is not shown, since people put secrets into it.
    """
    bucket, _, key = uri[len(SCHEME) :].partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError("An s3:// address has no valid bucket name: write s3://bucket/prefix, and no credentials in it.")
    return bucket, key


class _NoContactError(Exception):
    """Nobody has ever answered; the reason is its cause."""


class _Contact:
    """Ends the tries early while the store has never answered this process: then its address is wrong rather than the store down.

    A worker of a run tries on from the start, since the driver had an answer before it.
    """

    def __init__(self) -> None:
        self.made = False

    def __call__(self, attempts: int, response: object, caught_exception: Exception | None, **_: object) -> None:
        if response is not None:
            self.made = True
        if self.made or not isinstance(caught_exception, _UNCONNECTED) or _ray_is_at_work():
            return
        if attempts >= FIRST_ATTEMPTS or isinstance(caught_exception, _SILENT):
            raise _NoContactError from caught_exception


def _ray_is_at_work() -> bool:
    """In a driver from when it joined the cluster, in a worker always; Ray is not loaded to find out."""
    return bool(getattr(sys.modules.get("ray"), "is_initialized", bool)())


@dataclass(frozen=True)
class _Connection:
    client: Any
    signed_get: SignedGet
    contact: _Contact


@functools.lru_cache
def _connection(endpoint: str) -> _Connection:
    """One a process and store: threads share it."""
    address = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    config = Config(
        # Not "standard": its quota ends the retries of all images when a store is down for some seconds. This one goes on for
        # a minute on average, once there was an answer.
        retries={"mode": "legacy", "total_max_attempts": REQUEST_ATTEMPTS},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=CONNECTIONS,
        request_checksum_calculation="when_required",  # many stores do not know the newer checksums
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if address else "auto"},
    )
    try:
        session = boto3.Session()
        client = session.client("s3", endpoint_url=address, config=config)
        contact = _Contact()
        client.meta.events.register_first("needs-retry.s3", contact)
        return _Connection(client, SignedGet(session, client, (CONNECT_SECONDS, READ_SECONDS), CONNECTIONS), contact)
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise UsageError(f"The S3 client cannot be set up ({type(error).__name__}): check the AWS profile and the endpoint.") from error


def _entry(uri: str, size: int, found: dict[str, Any]) -> ImageEntry:
    return ImageEntry(uri, size, found["LastModified"], (found.get("ETag") or "").strip('"') or None)


def _with_whole_body(get: Callable[[], bytes]) -> bytes:
    """boto3 tries requests again, but not answers that break off."""
    for attempt in range(1, BODY_ATTEMPTS):
        try:
            return get()
        except _BROKEN_BODY:
            time.sleep(random.uniform(0, min(10, 0.1 * 2**attempt)))
    return get()


@contextmanager
def _explained(uri: str, what: str) -> Iterator[None]:
    """Turns what boto3 raises into one sentence that names the address and what to do, without the store's own words."""
    try:
        yield
    except boto3.exceptions.S3UploadFailedError as error:
        raise _translated(error.__cause__ or error.__context__ or error, uri, what) from error
    except (*_FAILURES, *_BROKEN_BODY, _NoContactError) as error:
        raise _translated(error, uri, what) from error


def _translated(error: BaseException, uri: str, what: str) -> Exception:
    code = error.response.get("Error", {}).get("Code", "") if isinstance(error, botocore.exceptions.ClientError) else ""
    if code in _MISSING:
        return FileNotFoundError(uri)
    if code in _EXISTS and what == "written":
        return FileExistsError(uri)
    if code in _EXISTS:
        return AccessError(f"{uri} changed since it was listed: start a new run.", "it changed since it was listed")
    if code in _WRONG_CREDENTIALS or isinstance(
        error, (botocore.exceptions.NoCredentialsError, botocore.exceptions.PartialCredentialsError)
    ):
        reason = code or "no complete credentials found"
        return StorageError(f"The store refuses the credentials for {uri} ({reason}): check the AWS environment, profile or role.")
    if code == "NoSuchBucket":
        return AccessError(f"The bucket of {uri} does not exist: name an existing one.", "the bucket does not exist")
    if code:
        return AccessError(f"{uri} cannot be {what} ({code}): check the permissions and the store.", code)
    reason = type(error.__cause__ if isinstance(error, _NoContactError) else error).__name__
    return AccessError(f"{uri} cannot be {what} ({reason}): check the endpoint and the network.", reason)
