"""What lies in the inputs of a run: folders and prefixes, lists of URIs, tar shards, single images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fer_ray.errors import UsageError
from fer_ray.io.folders import FolderStore
from fer_ray.io.storage import WEB, Storage, absolute, is_remote, lower_name
from fer_ray.io.tar import ARCHIVE, archive_of, images_in
from fer_ray.io.uri_list import LISTS, read_list
from fer_ray.schema import ImageEntry


def list_images(storage: Storage, inputs: Iterable[str], excluded: str, indexes: str | None = None) -> Iterator[ImageEntry]:
    """Every image of the inputs but none below `excluded`; the same image may come twice.

    What tar archives hold is remembered in the folder `indexes`, where one is given.

    Raises:
        UsageError: an input that cannot be listed.
    """
    for uri in inputs:
        is_list = lower_name(uri).endswith(LISTS) and storage.stat(uri)
        for entry in read_list(storage, uri) if is_list else _files(storage, uri, excluded):
            if lower_name(entry.image_uri).endswith(ARCHIVE):
                found = storage.stat(entry.image_uri) if is_list else entry
                yield from images_in(storage, found or entry, indexes)
            else:
                yield entry


def check_inputs(storage: Storage, inputs: Iterable[str]) -> tuple[str, ...]:
    """The inputs as absolute addresses, each looked at once.

    Raises:
        UsageError: one is no folder, prefix or file that can be listed.
    """
    checked = []
    for given in inputs:
        uri = absolute(given, "input")
        if uri.startswith(WEB) and storage.stat(uri) is None:
            raise UsageError(f"There is no file at {uri}: name an existing one.")
        if not is_remote(uri) and storage.stat(uri) is None:
            FolderStore().check_listable(uri)
        checked.append(uri)
    return tuple(checked)


def read_image_named(storage: Storage, uri: str, max_megabytes: float) -> bytes:
    """The bytes of an image by its image_uri alone, also of one inside a tar archive (which is read up to it).

    Raises:
        ImageError: as `Storage.read_image`.
    """
    archive = archive_of(uri)
    if archive and storage.stat(uri) is None and (found := storage.stat(archive)):
        for entry in images_in(storage, found, None):
            if entry.image_uri == uri:
                return storage.read_image(entry, max_megabytes)
    return storage.read_image(ImageEntry(uri, None, None), max_megabytes)


def _files(storage: Storage, uri: str, excluded: str) -> Iterator[ImageEntry]:
    """Everything below a folder or prefix, or a single file; in a store both may be there."""
    found = None if is_remote(uri) else storage.stat(uri)
    if found is None:
        yield from storage.list_files(uri, excluded)
    if is_remote(uri) and (not uri.endswith("/") or uri.startswith(WEB)):
        found = storage.stat(uri)
    if found:
        yield found
