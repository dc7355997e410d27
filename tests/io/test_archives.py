"""Archives as people have them: what is whole in a broken one is listed, and nobody's headers hold or fill the machine."""

import io
import itertools
import os
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from fer_ray.errors import ImageError, UsageError
from fer_ray.io import archives
from fer_ray.io.inputs import Selection, check_inputs, list_images, read_image_named
from fer_ray.io.storage import Storage
from fer_ray.schema import ImageEntry, Status

STORAGE = Storage()
PICTURE = bytes(range(256)) * 40


def listed(path: Path, *, indexes: str | None = None) -> list[ImageEntry]:
    return list(list_images(STORAGE, check_inputs(STORAGE, [str(path)]), "", indexes))


def names(entries: list[ImageEntry]) -> list[str]:
    return [Path(entry.image_uri).name for entry in entries]


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, link
    return member.tobuf(tarfile.GNU_FORMAT)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


WHOLE = header("a.jpg", len(PICTURE)) + padded(PICTURE)
END = bytes(1024)
BROKEN_TARS = {
    "cut in an image": (WHOLE + header("b.jpg", len(PICTURE)) + PICTURE[:700], ["a.jpg"]),
    "cut in a header": (WHOLE + header("b.jpg", len(PICTURE))[:300], ["a.jpg"]),
    "negative size": (WHOLE + header("b.jpg", -512) + END, ["a.jpg"]),
    "larger than the archive": (WHOLE + header("b.jpg", 2**62) + WHOLE + END, ["a.jpg"]),
    "something else in it": (WHOLE + b"\x07" * 512 + WHOLE + END, ["a.jpg"]),
    "long names without end": (WHOLE + (header("n", 512, tarfile.GNUTYPE_LONGNAME) + padded(b"n" * 500)) * 5000 + WHOLE + END, ["a.jpg"]),
    "a name of gigabytes": (WHOLE + header("n", 5 << 30, tarfile.GNUTYPE_LONGNAME) + END, ["a.jpg"]),
    "packed": (b"\x1f\x8b\x08" + zlib.compress(bytes(1 << 20)), []),
    "no tar": (PICTURE, []),
    "empty": (b"", []),
}


@pytest.mark.parametrize("fault", BROKEN_TARS)
def test_a_broken_tar_gives_what_is_whole_in_it_and_a_row_for_itself(fault: str, tmp_path: Path) -> None:
    content, whole = BROKEN_TARS[fault]
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    for indexes in (None, str(tmp_path / "indexes"), str(tmp_path / "indexes")):
        entries = listed(path, indexes=indexes)
        assert [entry.image_uri for entry in entries] == [*(f"{path}#{name}" for name in whole), str(path)]
        assert all(STORAGE.read_image(entry, 1) == PICTURE for entry in entries[:-1])
        with pytest.raises(ImageError, match="The archive does not read to its end") as caught:
            STORAGE.read_image(entries[-1], 1)
        assert caught.value.status == Status.UNDECODABLE


def test_links_and_gaps_in_a_tar_are_rows_with_the_reason_and_junk_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    sparse = bytearray(header("gaps.jpg", 512, tarfile.GNUTYPE_SPARSE))
    sparse[386:410] = b"%011o\0%011o\0" % (0, 512)
    sparse[483:495] = b"%011o\0" % 2**32
    sparse[148:156] = b"%06o\0 " % (sum(sparse[:148]) + 256 + sum(sparse[156:512]))
    links = header("hard.jpg", 0, tarfile.LNKTYPE, "a.jpg") + header("soft.jpg", 0, tarfile.SYMTYPE, "/etc/passwd")
    path.write_bytes(WHOLE + links + bytes(sparse) + bytes(512) + header("._a.jpg") + header("d/", 0, tarfile.DIRTYPE) + WHOLE + END)
    entries = listed(path)
    assert names(entries) == ["x.tar#a.jpg", "x.tar#hard.jpg", "x.tar#soft.jpg", "x.tar#gaps.jpg", "x.tar#a.jpg"]
    for entry, reason in zip(entries[1:4], ("a link", "a link", "with gaps"), strict=True):
        with pytest.raises(ImageError, match=reason):
            STORAGE.read_image(entry, 1)


def test_images_in_zips_are_listed_and_each_is_read_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("folder/", b"")
        packed.writestr("folder/ü deflated.jpg", PICTURE, zipfile.ZIP_DEFLATED)
        packed.writestr("stored.PNG", PICTURE)
        packed.writestr("lzma.jpg", PICTURE, zipfile.ZIP_LZMA)
        packed.writestr("sidecar.json", b"{}")
    before = b"#!self-extracting" + path.read_bytes()
    (tmp_path / "prefixed.zip").write_bytes(before)
    for name in ("x.zip", "prefixed.zip"):
        entries = listed(tmp_path / name, indexes=str(tmp_path / "indexes"))
        assert [entry.image_uri.partition("#")[2] for entry in entries] == ["folder/ü deflated.jpg", "stored.PNG", "lzma.jpg"]
        assert [STORAGE.read_image(entry, 1) for entry in entries[:2]] == [PICTURE, PICTURE]
        assert read_image_named(STORAGE, entries[0].image_uri, 1) == PICTURE
        with pytest.raises(ImageError, match="a method of zip that is not read"):
            STORAGE.read_image(entries[2], 1)
        with pytest.raises(ImageError, match="10,240 bytes") as caught:
            STORAGE.read_image(entries[0], 0.005)
        assert caught.value.status == Status.TOO_LARGE


def test_a_zip_that_breaks_off_or_lies_gives_what_is_whole_in_it(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in ("a.jpg", "b.jpg"):
            packed.writestr(name, PICTURE)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"PK\x03\x04") + 100])
    entries = listed(path)
    assert names(entries) == ["x.zip#a.jpg", "x.zip"]
    assert STORAGE.read_image(entries[0], 1) == PICTURE
    with pytest.raises(ImageError, match="it breaks off"):
        STORAGE.read_image(entries[1], 1)
    size = len(PICTURE).to_bytes(4, "little")
    for claimed in (5, len(PICTURE) + 1, 2**31):  # what it inflates to, as its headers say
        path.write_bytes(whole.replace(size, claimed.to_bytes(4, "little")))
        with pytest.raises(ImageError):
            STORAGE.read_image(listed(path)[0], 1)
    with zipfile.ZipFile(path) as opened:
        second = opened.infolist()[1].header_offset
    at = whole.rindex(b"PK\x01\x02") + 42
    assert whole[at : at + 4] == second.to_bytes(4, "little")
    path.write_bytes(whole[:at] + bytes(4) + whole[at + 4 :])
    with pytest.raises(ImageError, match="does not hold it whole"):
        STORAGE.read_image(listed(path)[1], 1)  # both lie in the same place, as in a bomb


def test_an_archive_of_another_kind_is_a_row_and_as_an_input_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8b\x08")
    (tmp_path / "a.jpg").write_bytes(PICTURE)
    assert names(listed(tmp_path)) == ["a.jpg", "x.tar.gz"]
    with pytest.raises(ImageError, match="are not read: unpack it"):
        STORAGE.read_image(listed(tmp_path)[1], 1)
    with pytest.raises(UsageError, match="unpack it, or pack"):
        listed(tmp_path / "x.tar.gz")


def test_every_address_of_an_image_in_an_archive_is_an_input_as_well(tmp_path: Path) -> None:
    folder = tmp_path / "odd.tar#folder"
    folder.mkdir()
    (folder / "x.tar").write_bytes(WHOLE + header("sub#dir/b.jpg", 3) + padded(b"new") + END)
    with zipfile.ZipFile(folder / "Y.ZIP", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("in/ä.jpg", PICTURE)
    everything = listed(folder)
    assert len(everything) == 3
    for entry in everything:
        selection = Selection()
        assert list(list_images(STORAGE, check_inputs(STORAGE, [entry.image_uri]), "", None, selection)) == [entry]
        assert selection.ignored == 0
    (tmp_path / "list.txt").write_text("\n".join([*(entry.image_uri for entry in everything), f"{folder}/x.tar#gone.jpg"]))
    again = listed(tmp_path / "list.txt")
    assert again[:-1] == everything
    with pytest.raises(ImageError, match="does not hold it"):
        STORAGE.read_image(again[-1], 1)
    with pytest.raises(UsageError, match="cannot be listed"):
        check_inputs(STORAGE, [f"{folder}/z.tar#gone.jpg"])


def test_what_an_archive_holds_is_not_remembered_when_it_could_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(WHOLE + END)
    attempts = itertools.count()
    read = archives._Bounded.read

    def fail_once(file: archives._Bounded, size: int | None = -1) -> bytes:
        if next(attempts) == 3:
            raise OSError(5, "Input/output error")
        return read(file, size)

    monkeypatch.setattr(archives._Bounded, "read", fail_once)
    indexes = str(tmp_path / "indexes")
    assert listed(path, indexes=indexes)[-1].status == Status.UNREADABLE
    assert names(listed(path, indexes=indexes)) == ["x.tar#a.jpg"]


def test_tarfile_agrees_with_what_is_listed(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(50):
            member = tarfile.TarInfo(f"{'long/' * number}ü{number}.jpg")
            member.size = number
            archive.addfile(member, io.BytesIO(bytes(number)))
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    assert [len(STORAGE.read_image(entry, 1)) for entry in listed(tmp_path / "x.tar")] == list(range(50))


def test_names_in_a_tar_that_are_no_text_stay_apart(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    names = (b"\xfe.jpg", b"\xff.jpg")
    path.write_bytes(b"".join(header(os.fsdecode(name), 1) + padded(name[:1]) for name in names) + END)
    entries = listed(path)
    assert len({entry.image_uri for entry in entries}) == 2
    assert [read_image_named(STORAGE, entry.image_uri, 1) for entry in entries] == [b"\xfe", b"\xff"]
    assert all(entry.image_uri.encode() for entry in entries)


def test_large_and_streamed_zips_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream(io.BytesIO):
        """Cannot seek, so that sizes follow the members."""

        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise OSError

        def tell(self) -> int:
            raise OSError

    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)  # so that zipfile writes the records of large archives
    for number, buffer in enumerate((io.BytesIO(), Stream())):
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
            for name in ("a.jpg", "b.jpg"):
                with packed.open(zipfile.ZipInfo(name), "w", force_zip64=True) as file:
                    file.write(PICTURE)
        content = buffer.getvalue()
        assert b"PK\x06\x06" in content
        for prefix in (b"", b"before it"):
            path = tmp_path / f"{number}{len(prefix)}.zip"
            path.write_bytes(prefix + content)
            entries = listed(path)
            assert names(entries) == [f"{path.name}#a.jpg", f"{path.name}#b.jpg"]
            assert [STORAGE.read_image(entry, 1) for entry in entries] == [PICTURE, PICTURE]
