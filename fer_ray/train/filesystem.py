"""A store of `fer_ray.io` as the file system that Ray keeps checkpoints in: credentials, tries and sentences are those of everywhere."""

from __future__ import annotations

import functools
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs
from pyarrow.fs import FileInfo, FileSelector, FileSystemHandler, FileType

from fer_ray.errors import OutageError, UsageError
from fer_ray.io.storage import Storage, is_remote, join

LOGGER = logging.getLogger(__name__)
READ_AHEAD = 8 << 20  # bytes
OUTAGE_SECONDS = 600.0  # for which a training waits for its store, beyond the tries of each request
PAUSE_SECONDS = 5.0  # between two tries
T = TypeVar("T")


def ray_storage(storage: Storage, place: str) -> dict[str, Any]:
    """What Ray's run configurations call the place: a path, and the file system that knows it (None: this machine's)."""
    if not is_remote(place):
        return {"storage_path": place, "storage_filesystem": None}
    scheme, mark, path = place.partition("://")
    return {"storage_path": path, "storage_filesystem": pyarrow.fs.PyFileSystem(StoreHandler(storage, scheme + mark))}


def address_of(checkpoint: Any) -> str:
    """Where a checkpoint of Ray lies, as the rest of fer_ray writes it."""
    handler = getattr(checkpoint.filesystem, "handler", None)
    return handler.address(checkpoint.path) if isinstance(handler, StoreHandler) else str(checkpoint.path)


def ray_checkpoint(storage: Storage, place: str, kind: Any) -> Any:
    """The checkpoint at an address, of Ray's class `kind`."""
    known = ray_storage(storage, place)
    return kind(known["storage_path"], known["storage_filesystem"] or pyarrow.fs.LocalFileSystem())


def wait_out(action: Callable[[], T]) -> T:
    """What the action returns; a store that is down meanwhile is waited for.

    Raises:
        OutageError: it stays down.
    """
    until = time.monotonic() + OUTAGE_SECONDS
    while True:
        try:
            return action()
        except OutageError as error:
            if time.monotonic() > until:
                raise
            LOGGER.warning("%s Trying again.", error)
            time.sleep(PAUSE_SECONDS)


@contextmanager
def local_folder(storage: Storage, place: str) -> Iterator[Path]:
    """The folder itself, or a temporary copy of one in a store."""
    if not is_remote(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="fer-ray-") as folder:
        storage.get_folder(place, Path(folder))
        yield Path(folder)


@dataclass(frozen=True)
class StoreHandler(FileSystemHandler):  # type: ignore[misc]  # pyarrow has no types
    """What pyarrow asks of a file system, answered by `Storage`; a path is an address without its scheme.

    Stores know no folders: one is there as long as something lies in it. An object appears whole when its stream is closed, and
    not at all when a copy breaks off.
    """

    storage: Storage
    scheme: str

    def address(self, path: str) -> str:
        """The address of a path."""
        return f"{self.scheme}{path.strip('/')}"

    def get_type_name(self) -> str:
        return self.scheme.removesuffix("://")

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        return [wait_out(functools.partial(self._look, path)) for path in paths]

    def _look(self, path: str) -> FileInfo:
        found = self.storage.stat(self.address(path)) if "/" in path.strip("/") else None
        if found is not None:
            return FileInfo(path, FileType.File, size=found.size_bytes, mtime=found.modified_at)
        return FileInfo(path, FileType.Directory if self.storage.exists(self.address(path)) else FileType.NotFound)

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        base = selector.base_dir.strip("/")
        found: dict[str, FileInfo] = {}
        for entry in self.storage.list_files(self.address(base)):
            *folders, name = entry.image_uri[len(self.scheme) + len(base) + 1 :].split("/")
            for depth in range(1, len(folders) + 1):
                path = join(base, *folders[:depth])
                found.setdefault(path, FileInfo(path, FileType.Directory))
            path = join(base, *folders, name)
            found[path] = FileInfo(path, FileType.File, size=entry.size_bytes, mtime=entry.modified_at)
        if not found and not selector.allow_not_found:
            raise FileNotFoundError(self.address(base))
        return [one for path, one in found.items() if selector.recursive or "/" not in path[len(base) + 1 :]]

    def create_dir(self, path: str, recursive: bool) -> None:
        """Nothing: there are no folders."""

    def delete_dir(self, path: str) -> None:
        wait_out(lambda: self.storage.remove_folder(self.address(path)))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self.storage.remove_folder(self.address(path))

    def delete_root_dir_contents(self) -> None:
        raise UsageError("A whole store is never emptied.")

    def delete_file(self, path: str) -> None:
        self.storage.remove(self.address(path))

    def move(self, src: str, dest: str) -> None:
        self.copy_file(src, dest)
        self.delete_file(src)

    def copy_file(self, src: str, dest: str) -> None:
        upload = _Upload(self.storage, self.address(dest))
        with self.storage.open(self.address(src), READ_AHEAD) as stored:
            shutil.copyfileobj(stored, upload, READ_AHEAD)
        upload.close()

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(self.storage.open(self.address(path), READ_AHEAD), mode="r")

    def open_input_file(self, path: str) -> pa.NativeFile:
        return self.open_input_stream(path)

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return pa.PythonFile(_Upload(self.storage, self.address(path)), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise UsageError("Objects in a store cannot grow.")


class _Upload:
    """A file to write to that is stored when it is closed; not of io's classes, which would close what was given up."""

    def __init__(self, storage: Storage, uri: str) -> None:
        self._file = tempfile.NamedTemporaryFile(prefix="fer-ray-")  # noqa: SIM115  # closed below
        self._storage, self._uri = storage, uri
        self.closed = False

    def write(self, content: bytes) -> int:
        return self._file.write(content)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        """Nothing is to be seen before the end."""

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._file.flush()
        with self._file:
            wait_out(lambda: self._storage.put_file(Path(self._file.name), self._uri))
