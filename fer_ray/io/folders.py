"""Files and folders of this machine, with the same methods as `s3.ObjectStore`."""

from __future__ import annotations

import datetime
import errno
import io
import logging
import os
import shutil
import stat
import tempfile
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fer_ray.errors import AccessError, OutageError, StorageError, TooLargeError, UsageError
from fer_ray.schema import ImageEntry, Status, time_of
from fer_ray.text import plural, sanitize

logger = logging.getLogger(__name__)

WRITING = "_writing-"
RAW_NAME_PREFIX = "file://"
PAUSES = (1.0, 2.0, 4.0)  # seconds between tries to list what is on a share that does not answer
_OUTAGES = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENODEV, errno.ENXIO)


class FolderStore:
    """Paths, or percent-encoded file:// URIs where a name is no valid text. A name stands for a whole file only."""

    def list_files(self, folder: str, excluded: str | None) -> Iterator[ImageEntry]:
        """Every file below `folder` but not below `excluded`, in the order of the bytes of the paths; memory stays flat.

        Links are followed. A linked folder that leads back, or to what is listed anyway, is left out and counted in the log.
        A folder that cannot be listed and a file that cannot be looked at are entries of their own, with the reason.
        """
        return _walk(path_of_uri(folder), path_of_uri(excluded) if excluded else None)

    def stat(self, uri: str) -> ImageEntry | None:
        """The file without its contents; None where there is none (or a folder)."""
        path = path_of_uri(uri)
        try:
            found = Path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise _access_error(uri, "read", error) from error
        return None if stat.S_ISDIR(found.st_mode) else _entry(path, found)

    def read(self, uri: str, limit: float, start: int = 0, length: int | None = None, etag: str | None = None) -> bytes:
        """The file, or `length` bytes of it from `start`; files have no `etag`.

        Raises:
            FileNotFoundError: there is no such file.
            TooLargeError: more than `limit` bytes would have to be read; they were not.
            AccessError: it cannot be read.
        """
        try:
            with open(_open_regular(uri), "rb") as file:
                size = os.fstat(file.fileno()).st_size if length is None else length
                if size > limit:
                    raise TooLargeError(size)
                file.seek(start)
                return file.read(size) or b""  # no more than it said: what the system makes up has no end
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise _access_error(uri, "read", error) from error

    def open(self, uri: str, read_ahead: int) -> io.BufferedReader:
        """The file for reading."""
        return io.BufferedReader(io.FileIO(_open_regular(uri)), read_ahead)

    def write(self, uri: str, content: bytes, replace: bool) -> bool:
        """Store the bytes; gives False and leaves the file alone where it is there already and `replace` is off."""
        path = Path(path_of_uri(uri))
        temporary = self.temporary_for(uri)
        try:
            with temporary.open("xb") as file:
                file.write(content)
            return self._take_name(temporary, path, replace)
        except OSError as error:
            raise _access_error(uri, "written", error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def temporary_for(self, uri: str) -> Path:
        """A path beside the file, on the same file system, that no reader looks at."""
        parent = Path(path_of_uri(uri)).parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _access_error(str(parent), "made", error) from error
        return parent / f"{WRITING}{uuid.uuid4().hex}"

    def upload(self, path: Path, uri: str) -> None:
        """Give a file that `temporary_for` named its final name."""
        try:
            self._take_name(path, Path(path_of_uri(uri)), replace=True)
        except OSError as error:
            raise _access_error(uri, "written", error) from error

    def put_folder(self, folder: Path, target: str) -> None:
        """Copy a folder to a name that is free."""
        temporary = self.temporary_for(target)
        try:
            shutil.copytree(folder, temporary)
            temporary.rename(path_of_uri(target))
        except OSError as error:
            raise _access_error(target, "written", error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def remove(self, uris: Iterable[str]) -> None:
        """Delete files, and the folders that are empty then."""
        for uri in uris:
            Path(path_of_uri(uri)).unlink(missing_ok=True)

    def remove_folder(self, folder: str) -> None:
        """Delete a folder with everything in it; one that is gone, or goes meanwhile, is none the less gone."""
        shutil.rmtree(path_of_uri(folder), ignore_errors=True)

    def remove_stale(self, folder: str, before: datetime.datetime) -> None:
        """Remove what killed writers left since before then."""
        for entry in _walk(path_of_uri(folder), None, follow_links=False):
            path = Path(path_of_uri(entry.image_uri))
            if path.name.startswith(WRITING) and entry.modified_at and entry.modified_at < before:
                path.unlink(missing_ok=True)

    def check_writable(self, folder: str) -> None:
        """Make sure that a folder can be written, or made; leaves nothing.

        Raises:
            StorageError: it cannot.
        """
        path = Path(path_of_uri(folder))
        existing = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
        if not existing.is_dir():
            raise StorageError(f"The folder {folder} cannot be written ({existing} is no folder): name another folder.")
        try:
            Path(tempfile.mkdtemp(prefix=WRITING, dir=existing)).rmdir()
        except OSError as error:
            _raise_outage(folder, "written", error)
            raise StorageError(f"The folder {folder} cannot be written ({_reason(error)}): name another folder.") from error

    def check_listable(self, folder: str) -> None:
        """Make sure that a folder is there and can be listed.

        Raises:
            UsageError: it is not.
        """
        try:
            with os.scandir(path_of_uri(folder)):
                pass
        except (OSError, ValueError) as error:
            _raise_outage(folder, "listed", error)
            raise UsageError(f"The folder {folder} cannot be listed ({_reason(error)}): name an existing one.") from error

    def _take_name(self, temporary: Path, path: Path, replace: bool) -> bool:
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        if replace:
            temporary.replace(path)
        else:
            try:
                os.link(temporary, path)  # fails where the name is taken, which renaming does not
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                if path.exists():
                    return False
                temporary.replace(path)
        _sync_folder(path.parent)
        return True


def uri_of_path(path: str) -> str:
    """The path itself where it is valid text; otherwise a percent-encoded file:// URI, so that any name fits a string column."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return RAW_NAME_PREFIX + urllib.parse.quote(os.fsencode(path))
    return path


def path_of_uri(uri: str) -> str:
    """What `uri_of_path` made the URI from."""
    if uri.startswith(RAW_NAME_PREFIX):
        return os.fsdecode(urllib.parse.unquote_to_bytes(uri[len(RAW_NAME_PREFIX) :]))
    return uri


def _open_regular(uri: str) -> int:
    """A descriptor to read the file from; pipes and devices, which may block for ever, are an OSError."""
    descriptor = os.open(path_of_uri(uri), os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer must not block
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file")
    return descriptor


def _walk(folder: str, excluded: str | None, follow_links: bool = True) -> Iterator[ImageEntry]:
    """As `FolderStore.list_files`; without recursion, since folders may lie in one another by the thousand."""
    root = os.path.realpath(folder)
    seen = {_identity(path.stat()) for path in map(Path, filter(None, (folder, excluded))) if path.is_dir()}
    left_out = 0
    levels = [(iter(_children(folder)), False)]
    while levels:
        children, behind_link = levels[-1]
        found = next(children, None)
        if found is None:
            levels.pop()
        elif isinstance(found, ImageEntry):
            yield found
        elif not (is_link := found.is_symlink()) and not behind_link:
            if found.path != excluded:
                levels.append((iter(_children(found.path)), False))
        elif follow_links:  # each folder once behind links, and none that is listed by its own name
            if (identity := _identity(found.stat())) in seen or (is_link and _overlap(root, os.path.realpath(found.path))):
                left_out += is_link
            else:
                seen.add(identity)
                levels.append((iter(_children(found.path)), True))
    if left_out:
        logger.warning("left out below %s: %s to what is listed already, or back", sanitize(folder), plural(left_out, "link"))


def _children(folder: str) -> Iterator[ImageEntry | os.DirEntry[str]]:
    """Files as entries and folders as they are, in the order of their paths' bytes; first the folder itself, with a slash, if it fails."""
    found: list[tuple[bytes, os.DirEntry[str], bool]] = []
    try:
        for entry in _patiently(lambda: list(os.scandir(folder))):
            is_folder = _is_folder(entry)
            found.append((os.fsencode(entry.name) + (b"/" if is_folder else b""), entry, is_folder))
    except OSError as error:
        _raise_outage(folder, "listed", error)
        problem = f"The folder cannot be listed ({_reason(error)})."
        yield ImageEntry(uri_of_path(f"{folder.rstrip('/')}/"), None, None, status=Status.UNREADABLE, error=problem)
    for _, entry, is_folder in sorted(found):
        yield entry if is_folder else _look(entry)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        if not entry.is_dir():
            return False
        entry.stat()  # kept for `_identity`
        return True
    except OSError:  # a link that leads in circles, or through a forbidden folder
        return False


def _look(entry: os.DirEntry[str]) -> ImageEntry:
    try:
        return _entry(entry.path, _patiently(entry.stat))
    except OSError as error:
        _raise_outage(entry.path, "read", error)
        problem = f"The file cannot be read ({_reason(error)})."
        return ImageEntry(uri_of_path(entry.path), None, None, status=Status.UNREADABLE, error=problem)


def _patiently(look: Callable[[], Any]) -> Any:
    """What it finds; some seconds in which a share does not answer are ridden through."""
    for pause in PAUSES:
        try:
            return look()
        except OSError as error:
            if error.errno not in _OUTAGES:
                raise
            time.sleep(pause)
    return look()


def _raise_outage(path: str, what: str, error: Exception) -> None:
    """What is wrong with the file system is no row: the listing ends."""
    if isinstance(failure := _access_error(path, what, error), OutageError):
        raise failure from error


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _overlap(folder: str, other: str) -> bool:
    return os.path.commonpath([folder, other]) in (folder, other)


def _entry(path: str, found: os.stat_result) -> ImageEntry:
    return ImageEntry(uri_of_path(path), found.st_size, time_of(found.st_mtime))


def _sync_folder(folder: Path) -> None:
    """A new name survives a power failure only once its folder is on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _access_error(uri: str, what: str, error: BaseException) -> AccessError:
    kind = OutageError if getattr(error, "errno", None) in _OUTAGES else AccessError
    return kind(f"{uri} cannot be {what} ({_reason(error)}): check the path, the permissions and the space left.", _reason(error))
