"""Objects of Google Cloud Storage (gs://) and of Azure Blob Storage (az://), read and written through obstore."""

from __future__ import annotations

import functools
import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore

from fer_ray.errors import AccessError, ChangedError, DeniedError, OutageError, StorageError, TooLargeError, UsageError
from fer_ray.io.pace import collect
from fer_ray.io.ranged import open_by_ranges
from fer_ray.schema import ImageEntry

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta
    from obstore.store import ClientConfig, RetryConfig

GS = "gs://"
AZ = "az://"
KEYS_PER_CHUNK = 1000
READ_SECONDS = 30  # for the head of an answer, and between two pieces of its body
RETRIES: RetryConfig = {  # of one request; one that is not answered is not tried again, since each try costs as long
    "max_retries": 7,
    "backoff": {"init_backoff": timedelta(seconds=0.5), "max_backoff": timedelta(seconds=20), "base": 4},
    "retry_timeout": timedelta(seconds=READ_SECONDS),
}

_CLIENT: ClientConfig = {
    "connect_timeout": timedelta(seconds=10),
    "read_timeout": timedelta(seconds=READ_SECONDS),
    "timeout": timedelta(days=1),
}
_ADDRESS = re.compile(r"(gs://|az://)([A-Za-z0-9$][A-Za-z0-9._-]{1,221})(?:/(.*))?", re.DOTALL)
_ENDPOINTS = ("GOOGLE_BASE_URL", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
_WRONG_CREDENTIALS = {"AuthenticationFailed", "AuthorizationFailure", "InvalidAuthenticationInfo", "NoAuthenticationInformation"}
_NO_BUCKET = {"ContainerNotFound", "NoSuchBucket"}
_BUSY = ("408", "429")
_NO_ANSWER = {"Connect": "no connection", "Timeout": "no answer in time"}


@dataclass(frozen=True)
class CloudStore:
    """Buckets and containers, with the credentials that obstore finds in the environment or asks the machine for.

    Methods raise as those of `s3.S3Store` do. No message holds a secret.

    Args:
        public_buckets: Those that are asked without credentials.
    """

    public_buckets: tuple[str, ...] = ()

    def list_files(self, folder: str, excluded: str | None) -> Iterator[ImageEntry]:
        """Every object below a folder but not below `excluded`, in the order that the store lists them in.

        What a console makes as a folder, an empty object whose name ends with a slash, is left out.
        """
        root, prefix = split(folder)
        skipped = f"{excluded.rstrip('/')}/" if excluded else None
        with _explained(folder, "listed"):
            for chunk in obstore.list(self._store(folder), prefix.rstrip("/") or None, chunk_size=KEYS_PER_CHUNK):
                for found in chunk:
                    entry = _entry(f"{root}/{found['path']}", found)
                    is_skipped = skipped is not None and entry.image_uri.startswith(skipped)
                    # obstore drops a slash at the end of a name, so that the object is not found under what is left.
                    if not is_skipped and (found["size"] or self.stat(entry.image_uri)):
                        yield entry

    def stat(self, uri: str) -> ImageEntry | None:
        """The object without its contents; None where there is none."""
        _, key = split(uri)
        if not key or key.endswith("/"):
            return None
        try:
            with _explained(uri, "read"):
                return _entry(uri, obstore.head(self._store(uri), key))
        except FileNotFoundError:
            return None

    def read(self, uri: str, limit: float, start: int = 0, length: int | None = None, etag: str | None = None) -> bytes:
        """The object, or `length` bytes of it from `start`; with `etag`, only as long as it still has that one.

        Raises:
            FileNotFoundError: there is no such object.
            TooLargeError: more than `limit` bytes would have to be read; they were not.
        """
        if length == 0:
            return b""
        options: GetOptions = {}
        if length is not None:
            options["range"] = (start, start + length)
        if etag is not None and length is not None:
            options["if_match"] = f'"{etag}"'
        with _explained(uri, "read"):
            answer = obstore.get(self._store(uri), split(uri)[1], options=options)
            ChangedError.check(uri, etag, answer.meta["e_tag"])
            first, end = answer.range
            if end - first > limit:
                raise TooLargeError(end - first)
            return collect(uri, answer.stream(min_chunk_size=1), limit)

    def open(self, uri: str, read_ahead: int) -> io.BufferedReader:
        """The object as a file that is read by ranges of at least `read_ahead` bytes."""
        return open_by_ranges(self, uri, read_ahead)

    def write(self, uri: str, content: bytes, replace: bool) -> bool:
        """Store the bytes; gives False and leaves the object alone where it is there already and `replace` is off."""
        try:
            with _explained(uri, "written"):
                obstore.put(self._store(uri), split(uri)[1], content, mode="overwrite" if replace else "create")
        except FileExistsError:
            return False
        return True

    def upload(self, path: Path, uri: str) -> None:
        """Store a file, in parts if it is large; the object appears when it is whole."""
        with _explained(uri, "written"):
            obstore.put(self._store(uri), split(uri)[1], path)

    def remove(self, uris: Iterable[str]) -> None:
        """Delete objects; those that are gone already are none the less gone."""
        for uri in uris:
            with suppress(FileNotFoundError), _explained(uri, "deleted"):
                obstore.delete(self._store(uri), split(uri)[1])

    def remove_stale(self, folder: str, before: datetime) -> None:
        """Nothing to do here: Azure drops the parts of uploads that never ended after a week, Google as a rule of the bucket says."""

    def check_writable(self, folder: str) -> None:
        """Write and remove a small object, since nothing less tells.

        Raises:
            StorageError: the folder cannot be written.
        """
        probe = f"{folder.rstrip('/')}/_probe-{os.urandom(8).hex()}"
        self.write(probe, b"", replace=True)
        self.remove([probe])

    def _store(self, uri: str) -> AzureStore | GCSStore:
        bucket = split(uri)[0][len(GS) :]
        return _connect(uri[: len(GS)], bucket, bucket in self.public_buckets)


def split(uri: str) -> tuple[str, str]:
    """`gs://bucket` and the key of `gs://bucket/key`; the key is taken as it stands, nothing in it is an escape.

    Raises:
        UsageError: there is no valid bucket name; the URI is not shown, since people put secrets into it.
    """
    address = _ADDRESS.fullmatch(uri)
    if address is None:
        scheme = uri[: len(GS)]
        raise UsageError(f"An {scheme} address has no valid bucket name: write {scheme}bucket/prefix, and no credentials in it.")
    return f"{address[1]}{address[2]}", address[3] or ""


@functools.lru_cache
def _connect(scheme: str, bucket: str, public: bool) -> AzureStore | GCSStore:
    """One a process and bucket: threads share it."""
    options = _CLIENT | {"allow_http": any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)}
    chosen: Any = {"skip_signature": True} if public else {}
    kind: Any = GCSStore if scheme == GS else AzureStore
    try:
        store: AzureStore | GCSStore = kind(bucket, config=chosen, client_options=options, retry_config=RETRIES)
    except (BaseError, OSError, ValueError) as error:
        names = "GOOGLE_APPLICATION_CREDENTIALS" if scheme == GS else "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
        raise UsageError(f"The store of {scheme} cannot be set up ({type(error).__name__}): set {names} in the environment.") from None
    return store


def _entry(uri: str, found: ObjectMeta) -> ImageEntry:
    return ImageEntry(uri, found["size"], found["last_modified"], (found["e_tag"] or "").strip('"') or None)


@contextmanager
def _explained(uri: str, what: str) -> Iterator[None]:
    """Turn what obstore raises into one sentence that names the address and what to do, without the store's own words."""
    try:
        yield
    except (BaseError, OSError, ValueError) as error:
        raise _translated(error, uri, what) from None  # its text holds the request, and that may hold a signature


def _translated(error: Exception, uri: str, what: str) -> Exception:
    text = str(error).replace(split(uri)[1] or "\n", "")  # a name may look like an answer
    code = re.search(r"<Code>(\w+)</Code>", text)
    status = re.search(r"status code: (\d{3})", text)
    silence = re.search(r"kind: (Connect|Timeout)\b", text)
    reason = code[1] if code else status[1] if status else _NO_ANSWER[silence[1]] if silence else type(error).__name__
    if reason in _NO_BUCKET or (what == "written" and isinstance(error, FileNotFoundError)):
        return AccessError(f"The bucket of {uri} does not exist: name an existing one.", "the bucket does not exist")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(uri)
    if isinstance(error, AlreadyExistsError):
        return FileExistsError(uri)
    if isinstance(error, PreconditionError):
        return ChangedError(uri)
    if isinstance(error, UnauthenticatedError) or reason in _WRONG_CREDENTIALS or "token request" in text:
        return StorageError(f"The store refuses the credentials for {uri} ({reason}): check the environment or the machine's role.")
    if isinstance(error, InvalidPathError | ValueError):
        named = f"{uri} cannot be {what}, since names with empty parts, '.' or '..' between slashes are only known in S3"
        return AccessError(f"{named}: give another prefix or name.", "such names are only known in S3")
    is_refused = status and status[1].startswith("4") and status[1] not in _BUSY
    kind = DeniedError if isinstance(error, PermissionDeniedError) else AccessError if is_refused else OutageError
    return kind(f"{uri} cannot be {what} ({reason}): check the permissions, the store and the network.", reason)
