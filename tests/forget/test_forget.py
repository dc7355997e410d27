"""What a person in the pictures trusts forgetting with: no byte of a name or a face is left, and no later night brings it back."""

from __future__ import annotations

import base64
import contextlib
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from films import write_film
from pictures import read_bgr
from rayless import label_without_ray
from stores import S3Server

from fer_ray.audit.job import audit
from fer_ray.browse.crops import write_crops
from fer_ray.config.jobs.audit import AuditConfig
from fer_ray.config.jobs.browse import CropsConfig
from fer_ray.config.jobs.forget import ForgetConfig
from fer_ray.config.jobs.label import LabelConfig
from fer_ray.config.jobs.relabel import RelabelConfig
from fer_ray.errors import FerRayError, StorageError, UsageError
from fer_ray.forget import job as forgetting
from fer_ray.forget import unfinished
from fer_ray.forget.job import forget
from fer_ray.io.storage import Storage
from fer_ray.label import job as labeling
from fer_ray.label.report import page
from fer_ray.relabel.job import relabel

NAMES = (b"zoe", b"Zoe")  # in every address that is forgotten, and in none that stays
ALIKE = 0.9  # correlation of two small gray pictures of one face; those of other people have at most 0.8


def unpacked(content: bytes) -> Iterator[bytes]:
    """A file's bytes as they are, and every page of a Parquet file and picture of a web page in it."""
    yield content
    for start in re.finditer(rb"\x28\xb5\x2f\xfd", content):  # a frame of zstd
        pieces = []
        with contextlib.suppress(OSError), pa.input_stream(pa.BufferReader(content[start.start() :]), compression="zstd") as stream:
            while piece := stream.read(1):  # what follows the frame is an error, and costs what was asked for with it
                pieces.append(piece)
        yield b"".join(pieces)
    for picture in re.finditer(rb"base64,([A-Za-z0-9+/=]+)", content):
        yield base64.b64decode(picture[1])


def gray(picture: Any) -> Any:
    small = cv2.resize(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), (24, 24), interpolation=cv2.INTER_AREA).astype(float)
    return (small - small.mean()) / (small.std() + 1e-9)


def traces(files: dict[str, bytes], face: Any) -> set[str]:
    """The files in which a name stands, or a JPEG that shows the face."""
    found = set()
    for name, content in files.items():
        for piece in unpacked(content):
            if any(word in piece for word in NAMES):
                found.add(name)
            for start in re.finditer(rb"\xff\xd8\xff", piece):
                picture = cv2.imdecode(np.frombuffer(piece[start.start() : start.start() + (1 << 20)], np.uint8), cv2.IMREAD_COLOR)
                if picture is not None and any((gray(part) * face).mean() > ALIKE for part in parts_of(picture)):
                    found.add(name)
    return found


def parts_of(picture: Any) -> Iterator[Any]:
    """The picture, and the square of twice a face in its middle where it is larger."""
    yield picture
    height, width = picture.shape[:2]
    if min(height, width) > 60:
        side = min(height, width) // 2
        yield picture[(height - side) // 2 : (height + side) // 2, (width - side) // 2 : (width + side) // 2]


def files_of(folder: Path) -> dict[str, bytes]:
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert not any("zoe" in name for name in files)
    return files


def count(output: Path, table: str) -> int:
    return int(duckdb.sql(f"SELECT count(*) FROM read_parquet('{output}/{table}/*/*.parquet')").fetchall()[0][0])


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, Path]) -> Path:
    """An archive of two people, and an output with all that holds them: Zoe is in a folder, a tar and a film, another person stays."""
    folder = tmp_path_factory.mktemp("forget")
    (folder / "in" / "zoe").mkdir(parents=True)
    shutil.copy(photographs["grace_hopper"], folder / "in" / "zoe" / "1.jpg")
    shutil.copy(photographs["astronaut"], folder / "in" / "stays.jpg")
    (folder / "in" / "Zoe.jpg").write_bytes(b"\xff\xd8\xff broken")
    with tarfile.open(folder / "in" / "shard.tar", "w") as tar:
        tar.add(photographs["grace_hopper"], "zoe.jpg")
        tar.add(photographs["astronaut"], "stays.jpg")
    portrait = cv2.cvtColor(cv2.resize(read_bgr(photographs["grace_hopper"]), (256, 304)), cv2.COLOR_BGR2RGB)
    write_film(folder / "in" / "zoe.mp4", [np.asarray(portrait, np.uint8)] * 50)
    config = LabelConfig((str(folder / "in"),), str(folder / "out"), run_id="first", keep_crops=True)
    label_without_ray(config)
    label_without_ray(LabelConfig((str(folder / "in" / "zoe"),), str(folder / "out"), run_id="empty"))  # named in its settings alone
    (folder / "out" / "reports" / "first" / "faces.jpg").write_bytes(b"what --picture leaves")
    (folder / "out" / "reports" / "overview.html").write_bytes(b"one about all runs, of zoe too")
    write_crops(CropsConfig(str(folder / "out"), output=str(folder / "out" / "exported")))
    audit(AuditConfig(str(folder / "out"), str(folder / "out" / "audited"), faces=30))
    return folder


@pytest.fixture(scope="module")
def face(labeled: Path) -> Any:
    """Zoe's face, as her crops show it."""
    files = sorted((labeled / "out" / "crops").glob("*/*.parquet"))
    images = pq.read_table(next((labeled / "out" / "images").glob("*/*.parquet"))).to_pylist()
    (own,) = (row["image_id"] for row in images if row["image_uri"].endswith("zoe/1.jpg"))
    (jpeg,) = (row["jpeg"] for row in pq.read_table(files[0]).to_pylist() if row["image_id"] == own)
    return gray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR))


@pytest.fixture
def output(labeled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(labeled / "out", tmp_path / "out"))


def request(labeled: Path, tables: Path | str, **options: Any) -> ForgetConfig:
    """Everything of Zoe: a folder, a broken file, a member of a tar and a film."""
    addresses = tuple(f"{labeled}/in/{name}" for name in ("zoe/", "Zoe.jpg", "shard.tar#zoe.jpg", "zoe.mp4"))
    return ForgetConfig(str(tables), addresses=addresses, **options)


def test_no_byte_of_a_name_a_crop_or_a_sample_is_left_and_no_later_night_brings_it_back(labeled: Path, output: Path, face: Any) -> None:
    before = traces(files_of(output), face)
    kinds = {"runs", "images", "faces", "tracks", "crops", "reports", "_archives", "exported", "audited"}
    assert {name.partition("/")[0] for name in before} == kinds, "the search finds what there is to find"
    assert "reports/first/report.html" in before
    contents = files_of(output)
    assert "reports/first/faces.jpg" in contents
    dry, _ = forget(request(labeled, output, dry_run=True))
    assert (dry["images"], dry["unknown_addresses"], files_of(output)) == (5, 0, contents), "a dry run counts and writes nothing"
    summary, exit_code = forget(request(labeled, output))
    assert (summary["status"], exit_code) == ("done", 0)
    assert [summary[name] for name in ("images", "faces", "crops", "tracks", "reports")] == [5, 4, 4, 1, 2]
    assert traces(files_of(output), face) == set()
    kept = files_of(output)
    assert "reports/first/report.html" in kept, "the report is written anew"
    assert not {"reports/first/faces.jpg", "audited/audit.html"} & set(kept), "what cannot be is removed"
    assert len(list((output / "exported").glob("*.jpg"))) == 2, "what others show stays"
    assert [count(output, table) for table in ("images", "faces", "crops", "tracks")] == [2, 2, 2, 0]
    row = pq.read_table(output / "runs" / "first.parquet").to_pylist()[0]
    assert [row[name] for name in ("images_total", "images_ok", "images_failed", "faces_total")] == [2, 2, 0, 2]
    (labeled / "in" / "shard.tar").touch()  # its index is made again
    night, _ = label_without_ray(LabelConfig((str(labeled / "in"),), str(output), run_id="later", keep_crops=True, thumbnails=False))
    assert (night["images_total"], night["images_forgotten"]) == (1, 4)
    assert traces(files_of(output), face) == set()
    with pytest.raises(UsageError, match="nothing but what was forgotten"):
        label_without_ray(LabelConfig((str(labeled / "in" / "zoe"),), str(output)))


def test_forgetting_that_is_killed_at_any_step_goes_on_with_the_same_line(
    labeled: Path, tmp_path: Path, face: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "read_samples", lambda *_: {})
    steps = {"left": 0}

    def counted(name: str) -> None:
        whole = getattr(Storage, name)

        def step(self: Storage, *arguments: Any, **options: Any) -> Any:
            steps["left"] -= 1
            if steps["left"] == 0:
                raise StorageError("killed")
            return whole(self, *arguments, **options)

        monkeypatch.setattr(Storage, name, step)

    for name in ("write", "writing", "remove"):
        counted(name)
    for number in range(1, 100, 2):
        output = Path(shutil.copytree(labeled / "out", tmp_path / str(number)))
        steps["left"] = number
        try:
            forget(request(labeled, output))
        except StorageError:
            steps["left"] = 0
            assert forget(request(labeled, output))[1] == 0
        else:
            break
        finally:
            steps["left"] = 0
        assert traces(files_of(output), face) == set(), f"broken off at step {number}"
        assert [count(output, table) for table in ("images", "faces", "crops", "tracks")] == [2, 2, 2, 0]
        assert pq.read_table(output / "runs" / "first.parquet")["images_total"].to_pylist() == [2]
        assert (output / "reports" / "first" / "report.html").exists()
        assert '"images": 5' in next((output / "forgotten").glob("*.json")).read_text()
        shutil.rmtree(output)
    assert number > 10


def stop_at(monkeypatch: pytest.MonkeyPatch, step: str, work: Any) -> None:
    def stop(*_: Any) -> None:
        raise StorageError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(labeling, step, stop)
        with pytest.raises(FerRayError, match="stopped"):
            work()


def test_a_night_at_work_is_left_alone_and_leaves_out_what_is_forgotten_meanwhile(
    labeled: Path, tmp_path: Path, face: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, out = (str(labeled / "in"),), str(tmp_path / "out")
    config = LabelConfig(inputs, out, run_id="night", keep_crops=True, thumbnails=False, video_fps="0", workers=1)
    stop_at(monkeypatch, "publish_tables", lambda: label_without_ray(config))
    dropped = Path(shutil.copytree(tmp_path / "out", tmp_path / "dropped"))
    work = {name: content for name, content in files_of(tmp_path / "out").items() if name.startswith(("_manifest", "_staging"))}
    summary, exit_code = forget(request(labeled, tmp_path / "out"))
    assert (summary["status"], summary["unfinished_runs"], exit_code) == ("waiting", ["night"], 1)
    assert work.items() <= files_of(tmp_path / "out").items(), "a run that may be at work is not touched"
    assert label_without_ray(config)[0]["images_total"] == 2
    assert forget(request(labeled, tmp_path / "out"))[1] == 0
    assert traces(files_of(tmp_path / "out"), face) == set()
    assert forget(request(labeled, dropped, drop_unfinished=True))[1] == 0
    assert traces(files_of(dropped), face) == set()


def test_a_relabeling_at_work_is_waited_for_and_one_whose_rows_moved_is_planned_anew(
    labeled: Path, output: Path, face: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RelabelConfig(str(output), "fer2013", run_id="second", workers=1)
    stop_at(monkeypatch, "read_parts", lambda: relabel(config))
    summary, exit_code = forget(request(labeled, output))
    assert (summary["status"], exit_code, count(output, "images")) == ("waiting", 1, 7)
    with monkeypatch.context() as patched:  # as one that is planned while the tables are written anew
        patched.setattr(forgetting, "find_work", lambda *_: {})
        forget(request(labeled, output))
    assert count(output, "images") == 2
    assert relabel(config)["images_total"] == 2
    assert forget(request(labeled, output))[1] == 0
    assert traces(files_of(output), face) == set()
    assert unfinished.find_work(Storage(), str(output)) == {}


def test_old_versions_of_objects_are_gone_too(labeled: Path, s3_server: S3Server, face: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "read_samples", lambda *_: {})
    client = s3_server.client()
    client.create_bucket(Bucket="forgetful")
    client.put_bucket_versioning(Bucket="forgetful", VersioningConfiguration={"Status": "Enabled"})
    for name, content in files_of(labeled / "out").items():
        client.put_object(Bucket="forgetful", Key=f"tables/{name}", Body=content)
    client.put_object(Bucket="forgetful", Key="tables/_staging/old/1.parquet", Body=b"zoe")
    client.delete_object(Bucket="forgetful", Key="tables/_staging/old/1.parquet")
    client.put_object(Bucket="forgetful", Key="tables2/other", Body=b"zoe")
    summary, exit_code = forget(request(labeled, "s3://forgetful/tables", s3_endpoint=s3_server.endpoint))
    assert (summary["images"], summary["reports"], exit_code) == (5, 2, 0)
    listed = [one for found in client.get_paginator("list_object_versions").paginate(Bucket="forgetful") for one in found["Versions"]]
    files = {
        f"{one['Key']} {one['VersionId']}": client.get_object(Bucket="forgetful", Key=one["Key"], VersionId=one["VersionId"])["Body"].read()
        for one in listed
    }
    assert {name.partition(" ")[0] for name in traces(files, face)} == {"tables2/other"}
    kept = [one["Key"] for one in listed if not one["Key"].startswith("tables/forgotten/")]
    assert len(set(kept)) == len(kept)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("{output}/..", "lies in what is to be forgotten"),
        ("/photos/film.mp4#t=1.200", "is a frame: .* so name the film /photos/film.mp4"),
        ("/", "is everything: name a folder"),
        ("ftp://server/photo.jpg", "is not supported"),
    ],
)
def test_what_cannot_be_forgotten_is_refused_and_nothing_is_written(labeled: Path, output: Path, address: str, sentence: str) -> None:
    before = files_of(output)
    with pytest.raises(UsageError, match=sentence):
        forget(ForgetConfig(str(output), addresses=(address.format(output=output),)))
    assert files_of(output) == before
    with pytest.raises(UsageError, match="holds no tables"):
        forget(ForgetConfig(str(labeled / "in"), addresses=("/photos/1.jpg",)))
