"""The one way to open what users name, in folders, stores and on the web: list it, read it, write it so that a name is a whole file."""

from __future__ import annotations

import datetime
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fer_ray.errors import AccessError, ImageError, TooLargeError, UsageError
from fer_ray.io.folders import FolderStore, path_of_uri, uri_of_path
from fer_ray.io.zip import inflate
from fer_ray.schema import ImageEntry, Status

if TYPE_CHECKING:
    from fer_ray.io.cloud import CloudStore
    from fer_ray.io.s3 import S3Store
    from fer_ray.io.web import WebStore

S3 = "s3://"
CLOUDS = ("gs://", "az://")
WEB = ("https://", "http://")
ARCHIVED = ("InvalidObjectState", "BlobArchived")  # what S3 and Azure say of an object that has to be restored first
MAX_SMALL_FILE = 256 << 20
COPY_BYTES = 8 << 20  # of a file that is copied, at a time


class StoreOptions(Protocol):
    """The settings of a job that say how to get at stores."""

    @property
    def s3_endpoint(self) -> str: ...

    @property
    def public_buckets(self) -> tuple[str, ...]: ...

    @property
    def requester_pays(self) -> bool: ...


@dataclass(frozen=True)
class Storage:
    """Folders of this machine, S3, Google Cloud Storage, Azure Blob Storage, and files on the web.

    It holds no connection, and no secret but the signatures of addresses, which are written nowhere: any process can be given one.

    Args:
        s3_endpoint: Address of an S3-compatible store (empty: AWS, or what AWS_ENDPOINT_URL names).
        public_buckets: Buckets that are read without credentials.
        requester_pays: Whether to pay for requests where a bucket of S3 wants that.
        signed: Web addresses with their signatures, by those without; `without_secret` adds them.
    """

    s3_endpoint: str = ""
    public_buckets: tuple[str, ...] = ()
    requester_pays: bool = False
    signed: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, options: StoreOptions) -> Storage:
        """As a job's settings say."""
        return cls(options.s3_endpoint, options.public_buckets, options.requester_pays)

    def _of(self, uri: str) -> FolderStore | S3Store | CloudStore | WebStore:
        if uri.startswith(WEB):
            from fer_ray.io.web import WebStore  # what each store needs takes a while to load

            return WebStore(self.signed)
        return self._writable(uri)

    def _writable(self, uri: str) -> FolderStore | S3Store | CloudStore:
        if uri.startswith(WEB):
            raise _not_writable(uri)
        if uri.startswith(CLOUDS):
            from fer_ray.io.cloud import CloudStore

            return CloudStore(self.public_buckets)
        if not uri.startswith(S3):
            return FolderStore()
        from fer_ray.io.s3 import S3Store

        return S3Store(self.s3_endpoint, self.public_buckets, self.requester_pays)

    def without_secret(self, uri: str) -> str:
        """The address that may be written down; the file is asked for with the signature that stood in it."""
        if not uri.lower().startswith(WEB):
            return uri
        from fer_ray.io.web import without_secret

        scheme, mark, rest = uri.partition("://")
        whole = f"{scheme.lower()}{mark}{rest}"
        bare = without_secret(whole)
        if bare != whole:
            self.signed[bare] = whole
            self.signed[bare.partition("#")[0]] = whole.partition("#")[0]  # the archive that it lies in
        return bare

    def list_files(self, folder: str, excluded: str | None = None) -> Iterator[ImageEntry]:
        """Every file below `folder` but not below `excluded`, in the order of their names' bytes; memory stays flat."""
        return self._of(folder).list_files(folder, excluded)

    def stat(self, uri: str) -> ImageEntry | None:
        """What is known about a file without reading it; None where there is none."""
        return self._of(uri).stat(uri)

    def read(self, uri: str, limit: float = MAX_SMALL_FILE) -> bytes:
        """A whole file of up to `limit` bytes.

        Raises:
            FileNotFoundError: it is not there.
            StorageError: it is larger, or cannot be read.
        """
        return self._of(uri).read(uri, limit)

    def read_part(self, uri: str, start: int, length: int, limit: float, etag: str | None = None) -> bytes:
        """`length` bytes from `start`, as `read`; with `etag`, only while the object has that one."""
        return self._of(uri).read(uri, limit, start, length, etag)

    def open(self, uri: str, read_ahead: int = 8 << 20) -> io.BufferedReader:
        """The file for reading and seeking, in steps of at least `read_ahead` bytes."""
        return self._of(uri).open(uri, read_ahead)

    def write(self, uri: str, content: bytes, replace: bool = True) -> bool:
        """Store the bytes, whole or not at all; False where the name is taken and `replace` is off."""
        return self._writable(uri).write(uri, content, replace)

    @contextmanager
    def writing(self, uri: str) -> Iterator[Path]:
        """A temporary path to write to that becomes `uri` at the end, or leaves nothing when the block raises."""
        store = self._writable(uri)
        if isinstance(store, FolderStore):
            temporary = store.temporary_for(uri)
            try:
                yield temporary
                store.upload(temporary, uri)
            finally:
                temporary.unlink(missing_ok=True)
        else:
            with tempfile.TemporaryDirectory(prefix="fer-ray-") as folder:
                temporary = Path(folder) / "file"
                yield temporary
                store.upload(temporary, uri)

    def remove(self, *uris: str) -> None:
        """Delete files; those that are gone already are none the less gone."""
        for uri in uris:
            self._writable(uri).remove([uri])

    def remove_folder(self, folder: str) -> None:
        """Delete everything below a folder."""
        store = self._writable(folder)
        if isinstance(store, FolderStore):
            store.remove_folder(folder)
        else:
            store.remove(entry.image_uri for entry in store.list_files(folder, excluded=None))

    def exists(self, place: str) -> bool:
        """Whether a file is there, or a folder; in stores, which know no folders, whether anything lies below one."""
        store = self._writable(place)
        if isinstance(store, FolderStore):
            return os.path.lexists(path_of_uri(place))
        return any(True for _ in store.list_files(place, excluded=None)) or store.stat(place) is not None

    def put_folder(self, folder: Path, target: str, last: str) -> None:
        """Store every file below a folder of this machine, at a new place.

        In folders all of them appear at once; in stores one after the other, and the one named `last`, which tells that the others are
        there, as the last.
        """
        store = self._writable(target)
        if isinstance(store, FolderStore):
            store.put_folder(folder, target)
            return
        for file in sorted((file for file in folder.rglob("*") if file.is_file()), key=lambda file: (file.name == last, file)):
            self.put_file(file, join(target, *file.relative_to(folder).parts))

    def put_file(self, file: Path, uri: str) -> None:
        """Store a copy of a file of this machine, whole or not at all."""
        store = self._writable(uri)
        if isinstance(store, FolderStore):
            with self.writing(uri) as temporary:
                shutil.copyfile(file, temporary)
        else:
            store.upload(file, uri)

    def get_folder(self, source: str, folder: Path) -> None:
        """Copy every file below an address into a folder of this machine."""
        for entry in self.list_files(source):
            names = entry.image_uri[len(source.rstrip("/")) + 1 :].split("/")
            if {"", ".", ".."} & set(names):
                continue  # nothing that was put there, and no name of a file here
            target = folder.joinpath(*names)
            target.parent.mkdir(parents=True, exist_ok=True)
            with self.open(entry.image_uri) as stored, target.open("wb") as file:
                shutil.copyfileobj(stored, file, COPY_BYTES)

    def move_folder(self, source: str, target: str, last: str) -> None:
        """Give a folder another name, in the same store; in stores file by file, `last` last."""
        if isinstance(self._writable(target), FolderStore):
            Path(path_of_uri(source)).rename(path_of_uri(target))
            return
        with tempfile.TemporaryDirectory(prefix="fer-ray-") as copy:
            self.get_folder(source, Path(copy))
            self.put_folder(Path(copy), target, last)
        self.remove_folder(source)

    def remove_stale(self, folder: str, before: datetime.datetime) -> None:
        """Remove half-written files and uploads that were left before then."""
        self._writable(folder).remove_stale(folder, before)

    def remove_old_versions(self, folder: str) -> int | None:
        """Delete what a bucket keeps of replaced and deleted objects below a folder.

        Returns:
            How many versions; 0 in folders of this machine, None in stores whose versions cannot be reached from here.
        """
        if folder.startswith(CLOUDS):
            return None
        if not folder.startswith(S3):
            return 0
        from fer_ray.io.s3 import S3Store

        return S3Store(self.s3_endpoint, self.public_buckets, self.requester_pays).remove_old_versions(folder)

    def check_writable(self, folder: str) -> None:
        """Make sure that a folder can be written; leaves nothing.

        Raises:
            StorageError: it cannot.
        """
        self._writable(folder).check_writable(folder)

    def read_image(self, entry: ImageEntry, max_megabytes: float) -> bytes:
        """The bytes of an image, as many as were listed and under the etag that was.

        Raises:
            ImageError: `unreadable` with the reason, or `too_large` when there are more than `max_megabytes`.
            StorageError: nothing can be read with these credentials or from this bucket.
        """
        if entry.error is not None:
            raise ImageError(entry.status or Status.UNREADABLE, entry.error)
        limit, size = max_megabytes * 1e6, entry.size_bytes
        try:
            if entry.archive_uri is None or entry.data_offset is None:
                return _whole(self._of(entry.image_uri).read(entry.image_uri, limit, etag=entry.etag), size)
            if (size or 0) > limit:
                raise TooLargeError(size or 0)
            stored = size or 0 if entry.packed_bytes is None else entry.packed_bytes
            content = _whole(self.read_part(entry.archive_uri, entry.data_offset, stored, limit, entry.etag), stored)
            return content if entry.packed_bytes is None else inflate(content, size or 0)
        except FileNotFoundError as error:
            raise ImageError(Status.UNREADABLE, "The file cannot be read (it does not exist any more).") from error
        except TooLargeError as error:
            if size is not None and size <= limit:
                raise _other_length(error.size, size) from error
            raise ImageError(Status.TOO_LARGE, f"The file has {error.size:,} bytes, the limit is {max_megabytes:g} megabytes.") from error
        except AccessError as error:
            status = Status.ARCHIVED if error.reason in ARCHIVED else Status.UNREADABLE
            raise ImageError(status, f"The file cannot be read ({error.reason}).") from error


def _whole(content: bytes, size: int | None) -> bytes:
    if size is not None and len(content) != size:
        raise _other_length(len(content), size)
    return content


def _other_length(size: int, listed: int) -> ImageError:
    return ImageError(Status.UNREADABLE, f"The file cannot be read (it has {size:,} bytes and was listed with {listed:,}).")


def is_remote(uri: str) -> bool:
    """Whether it lies on other machines: in a store or on the web."""
    return uri.startswith((S3, *CLOUDS, *WEB))


def server_of(uri: str) -> str:
    """`https://server` or `s3://bucket`; empty for a file of this machine."""
    return "/".join(uri.split("/", 3)[:3]) if is_remote(uri) else ""


def absolute(uri: str, what: str) -> str:
    """The address as it stands in a store or on the web, the absolute path otherwise; `what` names it in the error.

    Raises:
        UsageError: it is neither a path nor an address that can be read.
    """
    scheme, mark, rest = uri.partition("://")
    if not mark or scheme.lower() == "file":
        return uri_of_path(os.path.abspath(path_of_uri(f"file://{rest.removeprefix('localhost')}" if mark else uri)))
    uri = f"{scheme.lower()}{mark}{rest}"
    if uri.startswith(S3):
        from fer_ray.io.s3 import split

        bucket, key = split(uri)
        return f"{S3}{bucket}/{key}"
    if uri.startswith(CLOUDS):
        from fer_ray.io import cloud

        return "/".join(cloud.split(uri))
    if uri.startswith(WEB):
        from fer_ray.io.web import check_address

        return check_address(uri)
    raise UsageError(
        f"The {what} is a {scheme}:// address, which is not supported: give a folder, s3://bucket/prefix, gs://, az:// or https://."
    )


def new_folder(uri: str) -> str:
    """The absolute address of a folder that a job will make.

    Raises:
        UsageError: it is no such address, one on the web, or a whole bucket.
    """
    address = absolute(uri, "output").rstrip("/")
    if address.startswith(WEB):
        raise _not_writable(address)
    if is_remote(address) and "/" not in address.partition("://")[2]:
        raise UsageError(f"The output {uri} is a whole bucket: give {address}/name.")
    return address or "/"


def _not_writable(uri: str) -> UsageError:
    return UsageError(f"{uri} cannot be written: results go to folders, and to s3://, gs:// and az:// addresses.")


def lower_name(uri: str) -> str:
    """What the ends of names are compared with: an address on the web without its query, in small letters."""
    return (uri.partition("?")[0] if uri.startswith(WEB) else uri).lower()


def join(folder: str, *names: str) -> str:
    """The address of something in a folder."""
    return "/".join([folder.rstrip("/"), *names])
