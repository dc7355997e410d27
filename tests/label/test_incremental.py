"""Each night labels what is new, changed, failed to read, or not labeled with this model; and nothing twice."""

import dataclasses
import datetime
import random
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from run_tables import write_run

from fer_ray.errors import UsageError
from fer_ray.label.incremental import Counts, due_images
from fer_ray.label.plan import sample_images, write_plan
from fer_ray.schema import LISTING, ImageEntry, archived

DAY = datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC)
STATE = ("image_uri", "size_bytes", "modified_at", "etag")


def published(*entries: ImageEntry, place: int = 0) -> list[pa.RecordBatch]:
    schema = pa.schema([*(LISTING.field(name) for name in STATE), pa.field("place", pa.int32()), pa.field("waits", pa.bool_())])
    rows = [{name: getattr(entry, name) for name in STATE} | {"place": place, "waits": entry.status == "archived"} for entry in entries]
    return [pa.RecordBatch.from_pylist(rows, schema=schema)]


def due(listed: Iterable[ImageEntry], known: list[pa.RecordBatch], limit: int | None = None) -> tuple[list[ImageEntry], int]:
    counts = Counts()
    tables = list(due_images(listed, lambda: iter(known), limit, counts))
    return [ImageEntry(**row) for table in tables for row in table.to_pylist()], counts.known


def test_an_image_is_due_when_its_state_is_new() -> None:
    local = ImageEntry("/a.jpg", 10, DAY)
    stored = ImageEntry("s3://b/a.jpg", 10, DAY, "etag")
    named = ImageEntry("s3://b/listed.jpg", None, None)
    known = published(local, stored, dataclasses.replace(named, size_bytes=77))
    assert due([local, stored, named], known) == ([], 3)
    changed = [
        dataclasses.replace(local, size_bytes=11),
        dataclasses.replace(local, modified_at=DAY + datetime.timedelta(microseconds=1)),
        dataclasses.replace(local, image_uri="/b.jpg"),
        dataclasses.replace(stored, etag="other"),
        dataclasses.replace(stored, archive_uri="s3://b/x.tar", data_offset=512, image_uri="s3://b/x.tar#a.jpg"),
    ]
    for entry in changed:
        assert due([entry], published(local, stored, named)) == ([entry], 0)
    same_object = dataclasses.replace(stored, modified_at=DAY + datetime.timedelta(days=1))
    assert due([same_object], known) == ([], 1), "an object store's etag says that it is the same"


def test_only_the_newest_row_of_an_image_says_what_is_known() -> None:
    first = ImageEntry("/a.jpg", 10, DAY)
    second = dataclasses.replace(first, size_bytes=11)
    of_list = ImageEntry("/a.jpg", None, None)
    runs = [*published(second, place=12), *published(first, place=3), *published(first, place=7)]
    assert due([first], runs) == ([first], 0), "it came back to an earlier state"
    assert due([second], runs) == ([], 1)
    assert due([of_list], runs) == ([], 1), "a list without states says that nothing changed"
    assert due([first], [*runs, *published(of_list, place=13)]) == ([first], 0)


def test_witnesses_of_a_store_come_from_all_over_the_run_and_from_what_earlier_runs_read(tmp_path: Path) -> None:
    run, _ = write_run(tmp_path, "earlier", 20, [1 / 8] * 8, images=40, folders=["old"], failed=10)
    assert not [entry for entry in sample_images(run) if int(entry.image_uri[-8:-4]) < 10], "only what could be read"
    entries = [ImageEntry(f"/archive/new/{n:05d}.jpg", n, DAY) for n in range(3000)]
    counts = Counts()
    write_plan(run, due_images(entries, lambda: iter(()), None, counts), counts, DAY)
    uris = [entry.image_uri for entry in sample_images(run)]
    assert 10 < len(uris) < 50
    assert {uri.split("/")[2] for uri in uris} == {"new", "old"}
    places = [int(uri[-9:-4]) for uri in uris if "/new/" in uri]
    assert (places[0], max(places) > 2000) == (0, True)


def test_an_archived_image_waits_until_it_is_restored() -> None:
    sound = ImageEntry("s3://b/a.jpg", 10, DAY, "etag")
    cold = archived(sound, "GLACIER")
    for earlier in (published(sound), published(cold), [*published(sound, place=1), *published(cold, place=2)]):
        assert due([cold], earlier) == ([], 1)
    changed = dataclasses.replace(cold, etag="other")
    assert due([changed], published(sound)) == ([changed], 0)
    assert due([sound], published(cold)) == ([sound], 0), "it was restored"
    assert due([sound], [*published(cold, place=1), *published(sound, place=2)]) == ([], 1)


@pytest.mark.parametrize("limit", [None, 2])
def test_of_an_image_that_is_listed_several_times_the_latest_counts(limit: int | None) -> None:
    versions = [ImageEntry("s3://b/a.jpg", 10 - n, DAY + datetime.timedelta(days=n), f"{9 - n}") for n in range(4)]
    members = [ImageEntry("/x.tar#a.jpg", 30 - n, DAY, None, "/x.tar", 512 * n) for n in range(1, 9)]
    listed = [*versions[2:], *versions[:2], *members[4:], *members[:4]]
    latest = [members[-1], versions[-1]]
    assert due(listed, published(), limit) == (latest, 0)
    assert due(listed, published(*latest), limit) == ([], 2)
    assert due(listed, published(*versions[:-1], *members[:-1]), limit) == (latest, 0)


def test_due_images_come_once_and_sorted_however_they_are_listed() -> None:
    entries = [ImageEntry(f"/{n:06d}-ü.jpg", n, DAY) for n in range(40_000)]
    listed = [*entries, *entries[::7]]
    random.Random(3).shuffle(listed)
    known = published(*entries[::2], *entries[::2])
    assert due(listed, known) == (entries[1::2], 20_000)


def test_any_name_will_do_for_the_folder_of_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "it's; DROP"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    (table,) = due_images([ImageEntry("a.jpg", 1, None)], lambda: iter(()), None, Counts())
    assert table["image_uri"].to_pylist() == ["a.jpg"]


def test_a_limit_ends_the_listing_and_takes_the_first_that_are_due() -> None:
    entries = [ImageEntry(f"/{n:06d}.jpg", n, DAY) for n in range(200_000)]
    pulled = 0

    def listing() -> Iterator[ImageEntry]:
        nonlocal pulled
        for entry in entries:
            pulled += 1
            yield entry

    found, known = due(listing(), published(*entries[:30_000]), limit=5)
    assert (found, known) == (entries[30_000:30_005], 30_000)
    assert pulled < 100_000
    again = [*entries[:40_000], *entries[:50_000]]
    assert due(again, [], limit=45_000)[0] == entries[:45_000], "an image that is listed twice counts once"


def test_an_input_that_fails_in_the_middle_says_so_itself() -> None:
    def listing() -> Iterator[ImageEntry]:
        yield ImageEntry("/a.jpg", 1, DAY)
        raise UsageError("The list does not read.")

    with pytest.raises(UsageError, match="The list does not read"):
        due(listing(), published())
