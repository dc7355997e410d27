"""Every layout that people have, what is wrong with a data set said before it is trained on, FER+ as its paper counts, S3 as local."""

import csv
import io
import json
import logging
import shutil
import uuid
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import kagglehub
import numpy as np
import PIL.Image
import pytest
import requests
from labeled import counts, drawn, fill, load, write_image
from pictures import SHARED_DATA
from stores import S3Server

from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.jobs.inspect import InspectConfig
from fer_ray.config.recipe import RGB
from fer_ray.data.inspect import inspect
from fer_ray.data.sample import Layout, Sample
from fer_ray.data.splits import split_and_label
from fer_ray.emotions import EMOTIONS
from fer_ray.errors import DatasetError, MissingSplitError
from fer_ray.io.storage import Storage
from fer_ray.schema import IMAGE_SUFFIXES
from fer_ray.typing import UInt8Array

HEADER = "neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"


@pytest.mark.parametrize(
    ("train", "others"),
    [
        ("train", {"validation": "validation", "test": "test"}),
        ("Training/Training", {"test": "Testing/Testing"}),
        ("images/train", {"validation": "images/validation"}),
        ("archive/fer 2013/Train", {"validation": "archive/fer 2013/val"}),
        (".", {}),
        ("archive/faces", {}),
    ],
)
def test_faces_are_found_in_the_layouts_that_people_download(tmp_path: Path, train: str, others: dict[str, str]) -> None:
    for folder in (train, *others.values()):
        fill(tmp_path, f"{folder}/Happiness", f"{folder}/0_suprise", count=10)
    write_image(tmp_path / "__MACOSX" / train / "hungry" / "._0.png")
    write_image(tmp_path / train / ".thumbnails" / "0.png")
    (tmp_path / "README.txt").write_text("junk")
    data = load(tmp_path, "train", "validation", *(["test"] if "test" in others else []))
    drawn_share = 0 if "validation" in others else 4
    assert data.classes == ("happy", "surprise")
    assert counts(data) == {"train": 20 - drawn_share, "validation": drawn_share or 20, **({"test": 20} if "test" in others else {})}
    assert all((tmp_path / name).is_file() for split in data.splits.values() for name in split.names)
    first = data.train.names[0]
    assert np.array_equal(data.train.images[0], np.asarray(cv2.imread(str(tmp_path / first), cv2.IMREAD_GRAYSCALE)))
    assert data.train.labels.tolist() == sorted(data.train.labels.tolist())
    assert np.array_equal(data.train.targets, np.eye(2)[data.train.labels])


def test_a_validation_share_is_stratified_and_the_same_wherever_the_data_set_lies(tmp_path: Path) -> None:
    fill(tmp_path / "a", "sad", count=30)
    fill(tmp_path / "a", "fear", count=10)
    for path in sorted((tmp_path / "a").rglob("*.png"), reverse=True):  # another order on disk, spelled otherwise, and wrapped
        write_image(tmp_path / "b/wrapped/Train" / path.parent.name.upper() / path.name, drawn(str(path)))
    first, again = load(tmp_path / "a"), load(tmp_path / "b")
    assert first.validation.counts(first.classes) == {"fear": 2, "sad": 6}
    assert np.array_equal(first.validation.images, again.validation.images)
    other = load(tmp_path / "a", split_seed=1, validation_share=0.5)
    assert other.validation.counts(other.classes) == {"fear": 5, "sad": 15}
    assert {*other.train.names, *other.validation.names} == {*first.train.names, *first.validation.names}
    assert not {*first.train.names} & {*first.validation.names}
    few = load(tmp_path / "a", limit=3)
    assert few.train.names == tuple(name for emotion in ("fear/", "sad/") for name in [n for n in first.train.names if emotion in n][:3])


def _both(root: Path, *folders: str) -> None:
    fill(root, *(f"{split}/{folder}" for split in ("train", "test") for folder in folders))


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda root: None, "no images"),
        (lambda root: shutil.rmtree(root), "not a folder that can be listed"),
        (lambda root: _both(root, "sad", "hungry"), "hungry is not named after"),
        (lambda root: _both(root, "sad"), "only the class sad"),
        (lambda root: _both(root, "sad", "0-Sadness"), "merge them"),
        (lambda root: fill(root, "train/sad", "train/fear", "val/sad"), r"validation has no fear"),
        (lambda root: fill(root, "test/sad", "test/fear"), "no train split, only test"),
        (lambda root: fill(root, "train/sad", "Training/fear"), "both the train split"),
        (lambda root: fill(root, "train/sad", "sad"), "both split folders and emotion folders"),
        (lambda root: fill(root, "one/train/sad", "two/train/sad"), "give --dataset one of them"),
        (lambda root: fill(root, "."), "no emotion folders"),
        (lambda root: fill(root, "train", "validation"), "no emotion folders"),
        (lambda root: [(root / name).mkdir() or (root / name / "a.txt").touch() for name in ("sad", "happy")], "happy holds no images"),
        (lambda root: (root / "fer2013.csv").write_text("emotion,usage\n"), "no column pixels"),
        (lambda root: (root / "fer2013.csv").write_text("emotion,pixels\n7,0 0 0 0\n"), "emotion '7'"),
        (lambda root: (root / "fer2013.csv").write_text("emotion,pixels,Usage\n1,0 0 0 0,Home\n"), "Usage 'Home'"),
    ],
)
def test_a_wrong_data_set_is_refused_by_name(tmp_path: Path, build: Callable[[Path], object], complaint: str) -> None:
    (tmp_path / "data").mkdir()
    build(tmp_path / "data")
    with pytest.raises(DatasetError, match=complaint):
        load(tmp_path / "data")


def test_classes_choose_among_the_emotions_and_resolve_splits_that_differ(tmp_path: Path) -> None:
    fill(tmp_path, "train/sad", "train/fear", "train/joy", "val/sad", "val/fear")
    data = load(tmp_path, classes=("sad", "fear"))
    assert data.classes == ("fear", "sad")
    assert counts(data) == {"train": 10, "validation": 10}
    assert "5 images of train" in data.findings[0]
    with pytest.raises(DatasetError, match="No training image is left of neutral"):
        load(tmp_path, classes=("sad", "neutral"))


def test_broken_images_are_left_out_and_named_and_a_mostly_broken_class_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "train/sad", "train/fear", "val/sad", "val/fear", count=9)
    broken = ["empty.png", "text.png", "bomb.png", "sp ace ü.PNG"]
    chunks = (b"IHDR" + (10_000).to_bytes(4) * 2 + b"\x08\0\0\0\0", b"IDAT" + zlib.compress(b""))
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join((len(c) - 4).to_bytes(4) + c + zlib.crc32(c).to_bytes(4) for c in chunks)
    for name, content in zip(broken, (b"", b"hello", bomb, b"\x89PNG\r\n\x1a\n"), strict=True):
        (tmp_path / "train/sad" / name).write_bytes(content)
    (tmp_path / "train/fear/gone.jpg").symlink_to("nowhere")
    (tmp_path / "train/fear/notes.txt").touch()
    data = load(tmp_path)
    assert data.train.counts(data.classes) == {"fear": 9, "sad": 9}
    assert "train/fear/notes.txt" in data.findings[0]
    assert "5 images of train" in data.findings[1]
    assert "train/fear/gone.jpg" in data.findings[1]
    assert "train/sad/bomb.png (The image has 10000 x 10000 pixels, the limit is 64 megapixels)" in data.findings[1]
    for number in range(7):
        (tmp_path / "val/sad" / f"{number}.png").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"Of 9 validation images of sad 7 cannot be used, such as val/sad/0\.png"):
        load(tmp_path)


def test_training_images_that_stand_in_validation_or_test_are_left_out_by_their_pixels(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{split}/{emotion}" for split in ("train", "validation", "test") for emotion in ("sad", "fear")))
    leaks = {"train/fear/in_test.bmp": "test/sad/0.png", "train/sad/in_validation.bmp": "validation/sad/1.png"}
    for copy, original in {**leaks, "train/fear/twin.bmp": "train/sad/4.png", "test/fear/both.bmp": "validation/fear/0.png"}.items():
        write_image(tmp_path / copy, np.asarray(cv2.imread(str(tmp_path / original)), np.uint8))
    data, kept = load(tmp_path), load(tmp_path, keep_duplicates=True)
    assert not {*data.train.names} & {*leaks}
    assert {*kept.train.names} == {*data.train.names, *leaks}
    assert any(
        "Left out of train" in finding and "2 images" in finding and "train/fear/in_test.bmp" in finding for finding in data.findings
    )
    assert any("Used in training" in finding and "2 images" in finding for finding in kept.findings)
    assert "Copies within train: 1 image; under several labels: 1 picture." in data.findings
    assert "In both validation and test: 1 picture." in load(tmp_path, "train", "validation", "test").findings
    assert np.array_equal(data.train.images[data.train.names.index("train/sad/0.png")], drawn(str(tmp_path / "train/sad/0.png")))


def test_images_come_in_the_size_and_colour_that_the_network_takes(tmp_path: Path) -> None:
    fill(tmp_path, "train/sad", "train/fear", "val/sad", "val/fear", count=2)
    colour = np.zeros((40, 60, 3), np.uint8)
    colour[..., 2] = 200  # red, since OpenCV writes BGR
    write_image(tmp_path / "train/fear/red.png", colour)
    data = load(tmp_path, size=32, color=RGB)
    assert data.train.images.shape == (5, 32, 32, 3)
    assert data.train.images[data.train.names.index("train/fear/red.png")][16, 16].tolist() == [200, 0, 0]
    gray = data.train.images[data.train.names.index("train/sad/0.png")]
    assert (gray[..., 0] == gray[..., 2]).all()
    assert load(tmp_path, size=32).train.images.shape == (5, 32, 32)


RAW_SUFFIXES = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2")  # a picture inside counts, in TIFF mostly


def test_a_data_set_takes_every_kind_of_image_that_labeling_takes_from_a_tar(tmp_path: Path) -> None:
    fill(tmp_path, "sad", count=4)
    formats = {".jfif": "JPEG", ".jpe": "JPEG", ".heic": "HEIF", ".heif": "HEIF", ".j2k": "JPEG2000", ".pbm": "PPM", ".pnm": "PPM"}
    for suffix in IMAGE_SUFFIXES:
        picture = PIL.Image.fromarray(drawn(suffix, (64, 64, 3)))
        picture = picture.convert("1") if suffix == ".pbm" else picture
        write_to = tmp_path / "fear" / f"{suffix[1:]}{suffix.upper() if len(suffix) > 4 else suffix}"
        write_to.parent.mkdir(exist_ok=True)
        picture.save(write_to, formats.get(suffix) or ("TIFF" if suffix in RAW_SUFFIXES else None))
    data = load(tmp_path, validation_share=0.01)
    read = {Path(name).suffix.lower() for split in data.splits.values() for name in split.names}
    assert read == IMAGE_SUFFIXES
    assert not any("cannot be read" in finding or "no images" in finding for finding in data.findings)


def write_pixel_csv(path: Path, rows: list[tuple[int, str, UInt8Array]], header: str = "emotion,pixels,Usage") -> None:
    order = [name.strip().lower() for name in header.split(",")]
    cells = [{"emotion": emotion, "usage": usage, "pixels": " ".join(map(str, pixels.ravel()))} for emotion, usage, pixels in rows]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([header, *(",".join(str(row[name]) for name in order) for row in cells)]) + "\n")


@pytest.mark.parametrize(("name", "header"), [("fer2013.csv", "emotion,pixels,Usage"), ("icml_face_data.csv", "emotion, Usage, pixels")])
def test_the_csv_of_pixels_gives_the_same_faces_as_image_files(tmp_path: Path, name: str, header: str) -> None:
    usages = {"Training": "train", "PublicTest": "validation", "PrivateTest": "test"}
    rows = [(emotion, usage, drawn(f"{emotion} {usage} {n}")) for n in range(3) for emotion in (0, 3, 6) for usage in usages]
    write_pixel_csv(tmp_path / name, rows, header)
    (tmp_path / "example_submission.csv").write_text("id\n")
    data = load(tmp_path, "train", "validation", "test")
    assert data.classes == ("angry", "happy", "neutral")
    assert counts(data) == {"train": 9, "validation": 9, "test": 9}
    assert data.splits["test"].names[0] == f"{name}#0000002"
    assert np.array_equal(data.validation.images[0], drawn("0 PublicTest 0"))
    assert load(tmp_path / name).train.images.tolist() == data.train.images.tolist()
    with pytest.raises(MissingSplitError, match="no train split, only test: add rows of that Usage"):
        write_pixel_csv(tmp_path / "test_only" / "fer2013.csv", [row for row in rows if row[1] == "PrivateTest"])
        load(tmp_path / "test_only")
    with (tmp_path / name).open("a") as file:
        file.write("0,Training,1 2 x 4\n" if "icml" in name else "0,1 2 x 4,Training\n")
    assert any("27" in finding and "no square of numbers" in finding for finding in load(tmp_path / name).findings)


VOTES = {
    "clear": "0,8,0,0,1,0,0,0,1,0",  # single votes are outliers, so 8 of 8
    "mixed": "5,0,0,4,0,0,0,0,1,0",  # 5 of 9
    "torn": "4,0,0,3,3,0,0,0,0,0",  # emotions, but none with more than half
    "half": "5,0,0,0,0,0,0,0,5,0",  # emotions have half, not more
    "unknown": "2,0,0,0,0,0,0,0,7,1",
    "face_not": "0,0,0,0,0,0,0,0,0,10",
    "scattered": "1,1,1,1,1,1,1,1,1,1",
    "sneer": "0,0,0,2,0,0,0,6,2,0",
}


def write_votes(path: Path, split: str) -> str:
    path.write_text("\n".join([f"image,{HEADER}", *(f"{split}/sad/{split}_{name}.png,{votes}" for name, votes in VOTES.items())]))
    return str(path)


@pytest.fixture
def voted(tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    """Images whose folders say one thing and whose votes another."""
    for split in ("train", "validation"):
        for name in (*VOTES, "unasked"):
            write_image(tmp_path / "data" / split / "sad" / f"{split}_{name}.png")
    return tmp_path / "data", tuple(write_votes(tmp_path / f"{split}.csv", split) for split in ("train", "validation"))


def test_ferplus_votes_become_labels_as_the_paper_says(voted: tuple[Path, tuple[str, ...]]) -> None:
    root, files = voted
    classes = ("contempt", "happy", "neutral", "sad")
    soft = load(root, ferplus=files, classes=classes)
    targets = {name.rpartition("_")[2]: row.tolist() for name, row in zip(soft.train.names, soft.train.targets, strict=True)}
    assert targets["clear.png"] == [0, 1, 0, 0]
    assert targets["mixed.png"] == pytest.approx([0, 0, 5 / 9, 4 / 9])
    assert targets["torn.png"] == pytest.approx([0, 0, 4 / 7, 3 / 7])  # angry is none of the classes
    assert targets["sneer.png"] == pytest.approx([6 / 8, 0, 0, 2 / 8])
    assert len(targets) == 4
    assert [name.rpartition("_")[2] for name in soft.validation.names] == ["clear.png", "mixed.png", "sneer.png"]
    assert soft.validation.targets.max(axis=1).tolist() == pytest.approx([1, 5 / 9, 6 / 8])
    majority = load(root, ferplus=files, classes=classes[:3], ferplus_labels="majority")
    assert [classes[label] for label in majority.train.labels] == ["happy", "neutral", "contempt"]
    assert np.array_equal(majority.validation.targets, np.eye(3)[majority.validation.labels])
    assert any("FER+ votes: 2 images" in finding and "unasked" in finding for finding in soft.findings)
    assert any("5 of 8 images of validation" in finding for finding in soft.findings)
    with pytest.raises(DatasetError, match="No training image is left of disgust"):
        load(root, ferplus=files)
    shutil.copytree(root / "train" / "sad", root / "train" / "fear")
    with pytest.raises(DatasetError, match="cannot tell"):
        load(root, ferplus=files, classes=classes)
    with pytest.raises(DatasetError, match="twice"):
        load(root, ferplus=(*files, files[0]))


def test_microsofts_votes_are_matched_by_row_since_its_names_skip_some(tmp_path: Path) -> None:
    rows = [(0, usage, drawn(f"{usage} {n}")) for usage in ("Training", "PublicTest") for n in range(3)]
    write_pixel_csv(tmp_path / "fer2013.csv", rows)
    not_a_face, neutral, happy = "0,0,0,0,0,0,0,0,0,10", "10,0,0,0,0,0,0,0,0,0", "0,10,0,0,0,0,0,0,0,0"
    names = ["", "fer0000000.png", "fer0000001.png"] * 2
    names[3:] = ["", "fer0000002.png", "fer0000003.png"]
    lines = [f"{usage},{name},{votes}" for (_, usage, _), name, votes in zip(rows, names, [not_a_face, neutral, happy] * 2, strict=True)]
    votes = tmp_path / "fer2013new.csv"
    votes.write_text("\n".join([f"Usage,Image name,{HEADER}", *lines]))
    data = load(tmp_path / "fer2013.csv", ferplus=(str(votes),), classes=("happy", "neutral"))
    assert data.train.names == ("fer2013.csv#0000001", "fer2013.csv#0000002")
    assert data.train.labels.tolist() == [1, 0]
    assert np.array_equal(data.validation.images, [drawn("PublicTest 1"), drawn("PublicTest 2")])
    votes.write_text("\n".join([f"Usage,Image name,{HEADER}", *reversed(lines)]))
    with pytest.raises(DatasetError, match="of different splits"):
        load(tmp_path / "fer2013.csv", ferplus=(str(votes),))
    with pytest.raises(DatasetError, match=r"fer2013new\.csv"):
        load(tmp_path / "fer2013.csv", ferplus=(write_votes(tmp_path / "ours.csv", "train"),))


@pytest.mark.skipif(not (SHARED_DATA / "ferplus_train.csv").exists(), reason="needs the shared data")
def test_real_ferplus_keeps_as_many_images_as_the_published_protocol() -> None:
    files = tuple(str(SHARED_DATA / f"ferplus_{split}.csv") for split in ("train", "validation"))
    paths = [row["image"] for file in files for row in csv.DictReader(io.StringIO(Path(file).read_text()))]
    samples = tuple(Sample(path, path, *path.split("/")[:2]) for path in sorted(paths))
    classes, labeled, _ = split_and_label(Layout(samples), DatasetConfig("fer2013", files), Storage())
    assert classes == EMOTIONS
    assert {split: len(part.labels) for split, part in labeled.items()} == {"train": 28_413, "validation": 3_199}
    assert np.allclose(labeled["train"].targets.sum(axis=1), 1)
    strict = split_and_label(Layout(samples), DatasetConfig("fer2013", files, "majority"), Storage())[1]
    assert len(strict["train"].labels) == 25_057


def test_s3_gives_the_same_data_set_and_hash_as_a_folder(voted: tuple[Path, tuple[str, ...]], s3_server: S3Server) -> None:
    root, files = voted
    client, bucket = s3_server.client(), f"b{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    for path in (*root.rglob("*.png"), *map(Path, files)):
        client.put_object(Bucket=bucket, Key=f"my/{path.relative_to(root.parent)}", Body=path.read_bytes())
    classes = ("contempt", "happy", "neutral")
    local = load(root, ferplus=files, classes=classes)
    remote_files = tuple(f"s3://{bucket}/my/{Path(file).name}" for file in files)
    remote = load(f"s3://{bucket}/my/data", ferplus=remote_files, s3_endpoint=s3_server.endpoint, classes=classes)
    assert remote.sha256 == local.sha256
    assert np.array_equal(remote.train.images, local.train.images)
    assert remote.train.names == local.train.names
    write_image(root / "train/sad/train_clear.png", drawn("another"))
    changed = load(root, ferplus=files, classes=classes)
    assert changed.sha256 != local.sha256
    assert load(root, ferplus=files, ferplus_labels="majority", classes=classes).sha256 != changed.sha256


def test_a_data_set_is_fetched_from_kaggle_and_a_failing_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "1/train/sad", "1/train/fear", "1/test/sad", "1/test/fear")
    fetched = {"msambare/fer2013": str(tmp_path)}
    monkeypatch.setattr(kagglehub, "dataset_download", fetched.__getitem__)
    data = load("kaggle:msambare/fer2013")
    assert counts(data) == {"train": 8, "validation": 2}
    assert str(tmp_path) not in "".join((*data.train.names, *data.findings))

    def fail(handle: str) -> str:
        raise requests.ConnectionError("no route\nto host")

    monkeypatch.setattr(kagglehub, "dataset_download", fail)
    with pytest.raises(DatasetError, match=r"kaggle:msambare/fer2013 cannot be fetched from Kaggle \(no route\)"):
        load("kaggle:msambare/fer2013")


def test_an_inspection_shows_counts_findings_duplicates_and_faces(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fer_ray")
    fill(tmp_path, "train/sad", "train/fear", "validation/sad", "validation/fear", "test/sad", "test/fear")
    shutil.copy(tmp_path / "test/sad/0.png", tmp_path / "train/fear/=copy\x1b.png")
    (tmp_path / "train/sad/broken.png").write_bytes(b"x")
    summary = inspect(InspectConfig(str(tmp_path / "out"), data=DatasetConfig(str(tmp_path))))
    shown = "\n".join(caplog.messages)
    assert ["sad", "5", "5", "5", "15"] in [line.split() for line in caplog.messages]
    assert caplog.messages[-1].startswith("Look at the sample faces in ")
    assert "train/sad/broken.png" in shown
    assert summary["counts"]["train"] == {"fear": 6, "sad": 5}
    assert summary["train_images_in_validation_or_test"] == 1
    assert json.loads(json.dumps(summary)) == summary
    rows = list(csv.DictReader((tmp_path / "out" / "duplicates.csv").open(encoding="utf-8")))
    assert Counter(row["picture"] for row in rows) == {"0": 2}
    assert {row["image"] for row in rows} == {"test/sad/0.png", "train/fear/=copy\\x1b.png"}
    sheet = np.asarray(cv2.imread(str(tmp_path / "out" / "samples.png")), np.uint8)
    assert all(len(np.unique(sheet[:, x : x + 96])) > 200 for x in range(120, 120 + 5 * 104, 104))
