"""What lies in the inputs of a run: folders and prefixes, lists of URIs, archives, single images; and which of it are images by name."""

from __future__ import annotations

import functools
import os
import posixpath
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from fer_ray.errors import OutageError, UsageError
from fer_ray.io.archives import UNREAD, archive_of, files_in, find_inside, is_archive, look_up, names_inside
from fer_ray.io.folders import FolderStore, path_of_uri
from fer_ray.io.storage import WEB, Storage, absolute, is_remote, lower_name, server_of
from fer_ray.io.uri_list import LISTS, read_list
from fer_ray.schema import VIDEO_SUFFIXES, ImageEntry, Status

LATE_SECONDS = 15.0  # then archives that could not be listed are tried once more
# Names that are no image, where nothing else is asked for: a suffix that is not here, or none, is tried.
_JUNK = frozenset((".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", ".nomedia", ".picasa.ini", "_success"))
_JUNK_STARTS = ("._", "_committed_", "_started_")
_OTHER_SUFFIXES = frozenset(
    re.findall(
        r"\w+",
        "aae csv gpx html htm ini json jsonl log md meta ndjson text tsv txt url xml xmp yaml yml "  # sidecars
        "caption class cls label prompt tags "  # of WebDataset
        "flv lrv mp ogv wmv "  # films that are not read
        "aac aiff amr flac m4a mid mp3 ogg opus wav wma "  # sound
        "doc docx epub odp ods odt pdf ppt pptx rtf srt vtt xls xlsx "  # documents
        "arrow avro ckpt db feather h5 hdf5 idx index npy npz onnx orc parquet pickle pkl pt pth safetensors sqlite tfrecord "  # data
        "c cpp css dmg exe iso ipynb jar java js lnk py sh sql "  # programs
        "asc crc md5 sha1 sha256 sig",  # checksums
    )
)


class Selection:
    """Which files are taken, by their paths below the input and before a byte is read; `ignored` counts the others.

    `exclude` leaves out; `include` takes nothing else; without it everything is taken but what is no image by its name, and films
    only where `films` says so. Of whole addresses `covers` says what was forgotten, which `forgotten` counts.
    """

    def __init__(
        self, include: Iterable[str] = (), exclude: Iterable[str] = (), films: bool = False, covers: Callable[[str], bool] | None = None
    ) -> None:
        included, self.takes_films = list(include), films
        self._covers, self.forgotten = covers, 0
        self._included = _compiled(included, folders=False)
        self._hidden = _compiled((pattern for pattern in included if pattern.rpartition("/")[2].startswith(".")), folders=False)
        self._excluded = _compiled(exclude, folders=True)
        self.takes_unnamed = not included
        self.ignored = 0

    def forgets(self, uri: str) -> bool:
        """Whether an address is one that was forgotten, or lies below one."""
        forgotten = self._covers is not None and self._covers(uri)
        self.forgotten += forgotten
        return forgotten

    def excludes(self, path: str) -> bool:
        """Whether `exclude` leaves it out, or a folder above it."""
        excluded = bool(self._excluded and self._excluded.fullmatch(path))
        self.ignored += excluded
        return excluded

    def takes(self, path: str, size: int | None = None, is_named: bool = False) -> bool:
        """Whether a file is one of the images; one that somebody named (`is_named`) is, whatever its name."""
        if self.excludes(path):
            return False
        if is_film(path) and not self.takes_films:
            taken = False
        elif self._included:
            patterns = self._hidden if path.rpartition("/")[2].startswith(".") else self._included
            taken = bool(patterns and patterns.fullmatch(path))
        else:
            taken = is_named or not is_no_image(path, size)
        self.ignored += not taken
        return taken


@dataclass(frozen=True)
class _Listing:
    """What all inputs have in common; `dead` are web servers that did not answer."""

    indexes: str | None
    selection: Selection
    dead: set[str]


def list_images(
    storage: Storage, inputs: Iterable[str], excluded: str, indexes: str | None = None, selection: Selection | None = None
) -> Iterator[ImageEntry]:
    """Every image of the inputs but none below `excluded`; the same image may come twice, the latest state last.

    An archive that its store does not give comes as it is, without a reason: whether the store is down shows when it is read.

    Args:
        storage: What opens them.
        inputs: As `check_inputs` gives them.
        excluded: A folder that is left out, the run's own output.
        indexes: A folder to remember in what archives hold.
        selection: What is taken; by default what `Selection()` takes.

    Raises:
        UsageError: an input that cannot be listed.
    """
    listing, late = _Listing(indexes, selection or Selection(), set()), []
    taken = listing.selection
    for uri in inputs:
        is_list = lower_name(uri).endswith(LISTS) and storage.stat(uri) is not None
        listed = _listed(storage, uri, listing) if is_list else _files(storage, uri, excluded, taken)
        base = uri.rpartition("/")[0] if is_list else uri
        for entry in listed:
            if taken.forgets(entry.image_uri):
                continue
            path, is_named = _path_below(base, entry), entry.image_uri == uri
            if entry.error is not None and (not path or path.endswith("/")):  # a folder, perhaps the input itself
                if not path or not taken.excludes(path[:-1]):
                    yield entry
            elif entry.error is not None or entry.archive_uri is not None or not is_archive(entry.image_uri):
                if taken.takes(path, entry.size_bytes, is_named or entry.image_uri.startswith(WEB)):
                    yield entry
            elif not taken.excludes(path):
                inside = functools.partial(_inside, storage, entry, listing, "" if is_named else f"{path}/", is_list)
                for found in inside():
                    if found is entry:
                        late.append(inside)
                    else:
                        yield found
    time.sleep(LATE_SECONDS if late else 0)
    listing.dead.clear()
    for inside in late:
        yield from inside()


def check_inputs(storage: Storage, inputs: Iterable[str]) -> tuple[str, ...]:
    """The inputs as absolute addresses, each looked at once.

    Raises:
        UsageError: one is no folder, prefix or file that can be listed.
    """
    checked = []
    for given in inputs:
        uri = absolute(given, "input")
        if uri.startswith(WEB) and storage.stat(uri) is None and archive_of(storage, uri) is None:
            raise UsageError(f"There is no file at {uri}: name an existing one.")
        if not is_remote(uri) and storage.stat(uri) is None and archive_of(storage, uri) is None:
            FolderStore().check_listable(uri)
        checked.append(uri)
    return tuple(checked)


def read_image_named(storage: Storage, uri: str, max_megabytes: float) -> bytes:
    """The bytes of an image by its image_uri alone, also of one inside an archive (which is read for that).

    Raises:
        ImageError: as `Storage.read_image`.
    """
    return storage.read_image(find_inside(storage, uri) or ImageEntry(uri, None, None), max_megabytes)


def relative_path(inputs: Iterable[str], image_uri: str, archive_uri: str | None = None) -> str:
    """The path of an image below the input that it lies in, in valid UTF-8; archives count as folders.

    Below a list it is the path from the list's folder. What lies elsewhere has its path in its bucket or file system.
    """
    entry, uri = ImageEntry(image_uri, None, None, archive_uri=archive_uri), path_of_uri(archive_uri or image_uri)
    bases = [given.rpartition("/")[0] if lower_name(given).endswith(LISTS) else given for given in inputs]
    holding = (base for base in bases if f"{uri}/".startswith(path_of_uri(base).rstrip("/") + "/"))
    return _path_below(next(holding, bases[0]), entry)


def is_film(uri: str) -> bool:
    """Whether a file is a film by its name."""
    return posixpath.splitext(lower_name(uri))[1] in VIDEO_SUFFIXES


def is_no_image(path: str, size: int | None = None) -> bool:
    """Whether a file is none by its name: a sidecar, sound, what systems leave behind, the empty "folders" of consoles."""
    name = path.rpartition("/")[2].lower()
    if not name:
        return not size
    _, dot, suffix = name.removesuffix(".gz").rpartition(".")
    return name in _JUNK or name.startswith(_JUNK_STARTS) or name.endswith("_$folder$") or (bool(dot) and suffix in _OTHER_SUFFIXES)


def _files(storage: Storage, uri: str, excluded: str, selection: Selection) -> Iterator[ImageEntry]:
    """Everything below a folder or prefix, or a single file; in a store both may be there."""
    found = find_inside(storage, uri) or (None if is_remote(uri) else storage.stat(uri))
    if found is None:
        yield from storage.list_files(uri, excluded)
        if is_remote(uri) and (not uri.endswith("/") or uri.startswith(WEB)):
            found = storage.stat(uri)
    if found:
        _check_kind(found, selection)
        yield found


def _check_kind(single: ImageEntry, selection: Selection) -> None:
    """A file that was named as an input must be something that can be labeled, or it would end as one broken image."""
    name = lower_name(single.image_uri)
    if name.endswith(UNREAD):
        raise UsageError(f"The input {single.image_uri} is an archive of a kind that is not read: unpack it, or pack a .tar or .zip.")
    if is_film(name) and not selection.takes_films:
        raise UsageError(f"The input {single.image_uri} is a film, and video_fps is 0, which leaves films out: give another video_fps.")
    if selection.takes_unnamed and is_no_image(name, 1) and not single.image_uri.startswith(WEB):
        raise UsageError(f"The input {single.image_uri} is no image by its name, and no list or archive: name one of these.")


def _inside(storage: Storage, archive: ImageEntry, listing: _Listing, path: str, is_listed: bool) -> Iterator[ImageEntry]:
    """What is taken of an archive; the archive itself where its store does not give it."""
    if server_of(archive.image_uri) in listing.dead:
        yield archive
        return
    try:
        known = look_up(storage, archive) if is_listed else archive
        for member in files_in(storage, known, listing.indexes, listing.selection.forgets):
            name = member.image_uri[len(archive.image_uri) + 1 :]
            if not name and member.status == Status.UNREADABLE and is_remote(archive.image_uri):
                yield archive
            elif not name or listing.selection.takes(path + name, member.size_bytes):
                yield member
    except OutageError:
        if not is_listed or not archive.image_uri.startswith(WEB):
            raise
        listing.dead.add(server_of(archive.image_uri))
        yield archive


def _listed(storage: Storage, uri: str, listing: _Listing) -> Iterator[ImageEntry]:
    """The images that a list names; those inside of archives are looked up there, an archive at a time."""
    archive, members = "", dict[str, ImageEntry]()
    for entry in read_list(storage, uri):
        if listing.selection.forgets(entry.image_uri):
            continue
        if not names_inside(entry.image_uri) or server_of(entry.image_uri) in listing.dead:
            yield entry
            continue
        if entry.image_uri not in members and not (archive and entry.image_uri.startswith(f"{archive}#")):
            archive, members = "", {}
            try:
                if found := archive_of(storage, entry.image_uri):
                    inside = files_in(storage, found, listing.indexes, listing.selection.forgets)
                    members = {member.image_uri: member for member in inside}
                    archive = found.image_uri
            except OutageError:
                if not entry.image_uri.startswith(WEB):
                    raise
                listing.dead.add(server_of(entry.image_uri))
        if archive and entry.image_uri not in members:
            yield replace(entry, status=Status.UNREADABLE, error="The file cannot be read (its archive does not hold it).")
        else:
            yield members.get(entry.image_uri, entry)


def _path_below(base: str, entry: ImageEntry) -> str:
    """The path below a folder; of what lies elsewhere, the path in its bucket or file system. Archives count as folders."""
    uri = entry.archive_uri or entry.image_uri
    if entry.archive_uri is not None:
        return f"{_path_below(base, ImageEntry(uri, None, None))}/{entry.image_uri[len(uri) + 1 :]}"
    path, folder = path_of_uri(uri), path_of_uri(base).rstrip("/") + "/"
    if path == folder[:-1]:
        path = path.rpartition("/")[2]
    elif path.startswith(folder):
        path = path[len(folder) :]
    elif is_remote(uri):
        path = path.partition("://")[2].partition("/")[2]
    if uri.startswith(WEB):
        path = path.partition("?")[0]
    return os.fsencode(path).decode(errors="replace").lstrip("/")


def _compiled(patterns: Iterable[str], folders: bool) -> re.Pattern[str] | None:
    """One expression for glob patterns; with `folders`, or a slash in it, one that matches a folder matches all that is in it."""
    parts = [
        ("" if "/" in pattern.rstrip("/") else "(?:.*/)?")
        + _expression(pattern.strip("/"))
        + ("(?:/.*)?" if folders or "/" in pattern else "")
        for pattern in patterns
    ]
    try:
        return re.compile("|".join(parts), re.IGNORECASE | re.DOTALL) if parts else None
    except re.error as error:
        raise UsageError(f"A pattern of --include or --exclude cannot be read ({error.msg}): give one such as '*.jpg'.") from error


def _expression(pattern: str) -> str:
    """`*` and `?` stay in one folder, `**` does not."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    written = ""
    for token in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern):
        if token.startswith("[") and token.endswith("]"):
            written += "[" + ("^" if token[1] == "!" else "") + re.escape(token[1:-1].removeprefix("!")).replace(r"\-", "-") + "]"
        else:
            written += tokens.get(token) or re.escape(token)
    return written
