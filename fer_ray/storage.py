"""The one way to open what users name: list images, read them, and write so that a name stands only for a whole file."""

from __future__ import annotations

import datetime
import os
import stat
import tempfile
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fer_ray.errors import ImageError, UsageError
from fer_ray.schema import Status

_RAW_NAME_PREFIX = "file://"


@dataclass(frozen=True)
class ImageEntry:
    """One listed file. A file that cannot even be looked at has no size; its row will say why it is unreadable."""

    image_uri: str
    size_bytes: int | None
    modified_at: datetime.datetime | None
    etag: str | None = None


def local_folder(path: str, what: str) -> Path:
    """The absolute path of an existing folder named by a user; `what` names it in the error.

    Raises:
        UsageError: it is missing, no folder, or cannot be listed.
    """
    folder = Path(path).absolute()
    if "://" in path:
        raise UsageError(f"The {what} {path} is not a local folder, which is all that this version reads.")
    try:
        with os.scandir(folder):
            pass
    except OSError as error:
        raise UsageError(f"The {what} {path} cannot be listed ({error.strerror}): name an existing folder.") from error
    return folder


def check_writable(path: str, what: str) -> Path:
    """The absolute path of a folder that can be written, or of one that can be made; makes nothing.

    Raises:
        UsageError: it cannot be written.
    """
    if "://" in path:
        raise UsageError(f"The {what} {path} is not a local folder, which is all that this version writes.")
    folder = Path(path).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not existing.is_dir():
        raise UsageError(f"The {what} {path} cannot be written ({existing} is no folder): name another folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"The {what} {path} cannot be written (permission denied for {existing}): name another folder.")
    return folder


def walk_images(folder: Path, excluded: Path) -> Iterator[ImageEntry]:
    """Every file below `folder` but not below `excluded`, in the order of the bytes of the paths; memory stays flat.

    Links to files are followed, links to folders are not. A folder that cannot be listed is an entry of its own, so that
    its images are not lost without a trace.
    """
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=_sort_key)
    except OSError:
        yield ImageEntry(uri_of_path(str(folder)), None, None)
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if Path(entry.path) != excluded:
                yield from walk_images(Path(entry.path), excluded)
        elif not entry.is_dir():
            yield _image_entry(entry)


def uri_of_path(path: str) -> str:
    """The path itself where it is valid text; otherwise a percent-encoded file:// URI, so that any name fits a string column."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return _RAW_NAME_PREFIX + urllib.parse.quote(os.fsencode(path))
    return path


def path_of_uri(image_uri: str) -> str:
    """What `uri_of_path` made the URI from."""
    if image_uri.startswith(_RAW_NAME_PREFIX):
        return os.fsdecode(urllib.parse.unquote_to_bytes(image_uri[len(_RAW_NAME_PREFIX) :]))
    return image_uri


def read_image(image_uri: str, max_megabytes: float) -> bytes:
    """The bytes of an image.

    Raises:
        ImageError: `unreadable` with the reason, or `too_large` when the file is larger than `max_megabytes`.
    """
    try:
        descriptor = os.open(path_of_uri(image_uri), os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer must not block
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ImageError(Status.UNREADABLE, "The file cannot be read (it is no regular file).")
            if found.st_size > max_megabytes * 1e6:
                raise ImageError(Status.TOO_LARGE, f"The file has {found.st_size:,} bytes, the limit is {max_megabytes:g} megabytes.")
            return file.read()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageError(Status.UNREADABLE, f"The file cannot be read ({reason}).") from error


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path to write to that takes the name `path` at the end, or leaves nothing when the block raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="_writing-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)


def _sort_key(entry: os.DirEntry[str]) -> bytes:
    return os.fsencode(entry.name) + (b"/" if entry.is_dir(follow_symlinks=False) else b"")


def _image_entry(entry: os.DirEntry[str]) -> ImageEntry:
    image_uri = uri_of_path(entry.path)
    try:
        found = entry.stat()
    except OSError:
        return ImageEntry(image_uri, None, None)
    return ImageEntry(image_uri, found.st_size, datetime.datetime.fromtimestamp(found.st_mtime, datetime.UTC))
