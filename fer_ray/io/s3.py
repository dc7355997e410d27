"""Objects of S3 and of S3-compatible stores: GETs through obstore, all else, and what fails, through boto3.

obstore takes a fraction of boto3's processor time for a GET. It does not know keys with empty parts, `.` or `..`, and drops a
slash at a key's ends without a word, so boto3 reads such keys, and `s3_listing` lists.
"""

from __future__ import annotations

import io
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
import obstore.store
from obstore.exceptions import BaseError
from urllib3.exceptions import IncompleteRead

from fer_ray.errors import AccessError, ChangedError, OutageError, StorageError, TooLargeError, UsageError
from fer_ray.io.pace import chunks_of, collect
from fer_ray.io.ranged import open_by_ranges
from fer_ray.io.s3_client import BROKEN_BODY, EXPRESS, READ_SECONDS, SCHEME, Connection, connect, explained
from fer_ray.io.s3_listing import cold_class, list_objects
from fer_ray.schema import ImageEntry, archived

if TYPE_CHECKING:
    from obstore import GetOptions

BODY_ATTEMPTS = 6  # to read a body that breaks off
KEYS_PER_DELETE = 1000

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")


@dataclass(frozen=True)
class S3Store:
    """The store at `endpoint` (empty: what the AWS environment says), with the credentials of the usual AWS chain.

    Every method raises UsageError for an address that is none, AccessError where the store refuses the one object, and
    StorageError where nothing can be done with the store as it stands. No message holds a secret.

    Args:
        endpoint: Address of the store.
        public_buckets: Those that are asked without credentials.
        requester_pays: Whether to pay where a bucket wants that.
    """

    endpoint: str = ""
    public_buckets: tuple[str, ...] = ()
    requester_pays: bool = False

    def list_files(self, folder: str, excluded: str | None) -> Iterator[ImageEntry]:
        """Every object below a folder but not below `excluded`, in the order of the keys' bytes; a page of 1,000 is held at a time."""
        bucket, key = split(folder)
        prefix = key if not key or key.endswith("/") else key + "/"
        skipped = f"{excluded.rstrip('/')}/" if excluded else None
        with explained(folder, "listed"):
            for found, size, modified_at, etag, cold in list_objects(self._connection(bucket), bucket, prefix):
                uri = f"{SCHEME}{bucket}/{found}"
                if skipped is None or not uri.startswith(skipped):
                    entry = ImageEntry(uri, size, modified_at, _bare(etag))
                    yield archived(entry, cold) if cold else entry

    def stat(self, uri: str) -> ImageEntry | None:
        """The object without its contents; None where there is none."""
        bucket, key = split(uri)
        if not key:
            return None
        try:
            with explained(uri, "read"):
                found = self._client(bucket).head_object(Bucket=bucket, Key=key)
                entry, cold = ImageEntry(uri, found["ContentLength"], found["LastModified"], _bare(found.get("ETag"))), cold_class(found)
        except FileNotFoundError:
            return None
        return archived(entry, cold) if cold else entry

    def read(self, uri: str, limit: float, start: int = 0, length: int | None = None, etag: str | None = None) -> bytes:
        """The object, or `length` bytes of it from `start`; with `etag`, only as long as it still has that one.

        Raises:
            FileNotFoundError: there is no such object.
            TooLargeError: more than `limit` bytes would have to be read; they were not.
            ChangedError: it has another etag.
            OutageError: the store does not answer as one does.
        """
        if length == 0:
            return b""
        bucket, key = split(uri)
        connection = self._connection(bucket)
        fast_store = connection.fast_stores.get(bucket)
        if fast_store and not key.startswith("/") and not key.endswith("/"):
            content = _read_fast(fast_store, uri, limit, start, length, etag)
            if content is not None:
                return content
        conditions = {} if length is None else {"Range": f"bytes={start}-{start + length - 1}"}
        if etag is not None and length is not None:
            conditions["IfMatch"] = f'"{etag}"'

        def get() -> bytes:
            answer = connection.client.get_object(Bucket=bucket, Key=key, **conditions)
            try:
                ChangedError.check(uri, etag, answer.get("ETag"))
                if answer["ContentLength"] > limit:
                    raise TooLargeError(answer["ContentLength"])
            except StorageError:
                answer["Body"].close()
                raise
            with answer["Body"] as body:
                content = collect(uri, chunks_of(body), limit)
            if len(content) < answer["ContentLength"]:
                raise IncompleteRead(len(content), answer["ContentLength"] - len(content))
            return content

        with explained(uri, "read"):
            content = _with_whole_body(get)
            if bucket not in connection.fast_stores:  # not before: boto3 has now found out where the bucket is
                connection.add_fast_store(bucket)
            return content

    def open(self, uri: str, read_ahead: int) -> io.BufferedReader:
        """The object as a file that is read by ranges of at least `read_ahead` bytes."""
        return open_by_ranges(self, uri, read_ahead)

    def write(self, uri: str, content: bytes, replace: bool) -> bool:
        """Store the bytes; gives False and leaves the object alone where it is there already and `replace` is off."""
        bucket, key = split(uri)
        condition = {} if replace else {"IfNoneMatch": "*"}
        try:
            with explained(uri, "written"):
                self._client(bucket).put_object(Bucket=bucket, Key=key, Body=content, **condition)
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
        with explained(uri, "written"):
            self._client(bucket).upload_file(str(path), bucket, key)

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
        with explained(folder, "tidied"):
            for page in self._client(bucket).get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=key.rstrip("/") + "/"):
                for found in page.get("Uploads", ()):
                    if found["Initiated"] < before:
                        self._client(bucket).abort_multipart_upload(Bucket=bucket, Key=found["Key"], UploadId=found["UploadId"])

    def remove_old_versions(self, folder: str) -> int:
        """Delete all versions below a folder but the latest of each object, and the marks of deleted ones; gives how many.

        Raises:
            AccessError: they cannot be listed or deleted.
        """
        old = list(self._versions(folder, "Versions"))  # first: without its mark, a deleted object would be back
        self._delete_versions(old)
        marks = list(self._versions(folder, "DeleteMarkers"))
        self._delete_versions(marks)
        return len(old) + len(marks)

    def _versions(self, folder: str, kind: str) -> Iterator[tuple[str, dict[str, str]]]:
        """Bucket, key and version of those below a folder that no reader sees."""
        bucket, key = split(folder)
        with explained(folder, "searched for old versions"):
            for page in self._client(bucket).get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=key.rstrip("/") + "/"):
                for one in page.get(kind, ()):
                    if kind == "DeleteMarkers" or not one["IsLatest"]:
                        yield bucket, {"Key": one["Key"], "VersionId": one["VersionId"]}

    def _delete_versions(self, found: list[tuple[str, dict[str, str]]]) -> None:
        for start in range(0, len(found), KEYS_PER_DELETE):
            some = found[start : start + KEYS_PER_DELETE]
            self._delete(some[0][0], [version for _, version in some])

    def check_writable(self, folder: str) -> None:
        """Write and remove a small object, since nothing less tells.

        Raises:
            StorageError: the folder cannot be written.
        """
        probe = f"{folder.rstrip('/')}/_probe-{os.urandom(8).hex()}"
        self.write(probe, b"", replace=True)
        self.remove([probe])

    def _remove(self, bucket: str, keys: list[str]) -> None:
        self._delete(bucket, [{"Key": key} for key in keys])

    def _delete(self, bucket: str, objects: list[dict[str, str]]) -> None:
        with explained(f"{SCHEME}{bucket}/{objects[0]['Key']}", "deleted"):
            answer = self._client(bucket).delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
        for failure in answer.get("Errors", ()):
            raise StorageError(
                f"The object {SCHEME}{bucket}/{failure['Key']} cannot be deleted ({failure['Code']}): check the permissions."
            )

    def _connection(self, bucket: str) -> Connection:
        return connect(self.endpoint, bucket not in self.public_buckets, self.requester_pays, bucket.endswith(EXPRESS))

    def _client(self, bucket: str) -> Any:
        return self._connection(bucket).client


def split(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`; the key is taken as it stands, nothing in it is an escape.

    Raises:
        UsageError: there is no valid bucket name; the URI is not shown, since people put secrets into it.
    """
    bucket, _, key = uri[len(SCHEME) :].partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError("An s3:// address has no valid bucket name: write s3://bucket/prefix, and no credentials in it.")
    return bucket, key


def _read_fast(store: obstore.store.S3Store, uri: str, limit: float, start: int, length: int | None, etag: str | None) -> bytes | None:
    """The object or a part of it through obstore; None where boto3 has to be asked, if only for what is wrong."""
    options: GetOptions = {}
    if length is not None:
        options["range"] = (start, start + length)
    if etag is not None and length is not None:
        options["if_match"] = f'"{etag}"'
    started = time.monotonic()
    try:
        answer = obstore.get(store, split(uri)[1], options=options)
        ChangedError.check(uri, etag, answer.meta["e_tag"])
        first, end = answer.range
        if end - first > limit:
            raise TooLargeError(end - first)
        content = collect(uri, answer.stream(min_chunk_size=1), limit)
    except (BaseError, OSError, ValueError):
        if time.monotonic() - started >= READ_SECONDS:  # boto3 would wait as long, eight times
            raise OutageError(
                f"{uri} cannot be read (no answer in time): check the endpoint and the network.", "no answer in time"
            ) from None
        return None
    return content if len(content) == end - first else None


def _bare(etag: str | None) -> str | None:
    return (etag or "").strip('"') or None


def _with_whole_body(get: Callable[[], bytes]) -> bytes:
    """boto3 tries requests again, but not answers that break off."""
    for attempt in range(1, BODY_ATTEMPTS):
        try:
            return get()
        except BROKEN_BODY:
            time.sleep(random.uniform(0, min(10, 0.1 * 2**attempt)))
    return get()
