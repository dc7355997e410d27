"""Public data sets are read as their publishers pack them, with one line; labels that nobody knows are refused in one sentence."""

import io
import json
import tarfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skimage
from labeled import counts, drawn, fill, load, write_image
from pictures import SHARED_CASES
from stores import S3Server

from fer_ray.config.crop import DEFAULT_CROP
from fer_ray.config.jobs.label import LabelingOptions
from fer_ray.data.dataset import Dataset
from fer_ray.errors import DatasetError, UsageError
from fer_ray.vision.crop import crop_face
from fer_ray.vision.detector import FaceDetector

NUMBERS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")  # of FER-2013 and ExpW
RAFDB = ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral")  # from 1


def encoded(name: str) -> bytes:
    return bytes(cv2.imencode(".png", drawn(name))[1].tobytes())


def answers(data: Dataset) -> dict[str, str]:
    """The emotion of each image, by the end of its name."""
    return {
        name.rpartition("/")[2]: data.classes[label]
        for split in data.splits.values()
        for name, label in zip(split.names, split.labels, strict=True)
    }


def write_rafdb(root: Path) -> dict[str, str]:
    lines = []
    for split, count in (("train", 14), ("test", 7)):
        for number in range(count):
            write_image(root / f"basic/Image/aligned/{split}_{number:05d}_aligned.jpg")
            lines.append(f"{split}_{number:05d}.jpg {number % 7 + 1}")
    (root / "basic/EmoLabel").mkdir()
    (root / "basic/EmoLabel/list_patition_label.txt").write_text("\n".join(lines))
    return {line.split(".")[0] + "_aligned.jpg": RAFDB[int(line[-1]) - 1] for line in lines}


def write_ckplus(root: Path) -> dict[str, str]:
    expected: dict[str, str] = {}
    for person, label, emotion in (("S005", 3, "disgust"), ("S010", 5, "happy"), ("S011", 3, "disgust"), ("S012", 5, "happy")):
        for frame in range(1, 5):
            write_image(root / f"cohn-kanade-images/{person}/001/{person}_001_{frame:08d}.png")
        (root / f"Emotion/{person}/001").mkdir(parents=True)
        (root / f"Emotion/{person}/001/{person}_001_00000004_emotion.txt").write_text(f"   {label}.0000000e+00\n")
        expected |= {f"{person}_001_00000001.png": "neutral", f"{person}_001_00000004.png": emotion}
    return expected


def write_kdef(root: Path) -> dict[str, str]:
    codes = {"AF": "fear", "AN": "angry", "DI": "disgust", "HA": "happy", "NE": "neutral", "SA": "sad", "SU": "surprise"}
    names = {f"{s}{p}{code}S.JPG": emotion for s in "AB" for p in ("F01", "M02") for code, emotion in codes.items()}
    for name in names:
        write_image(root / f"KDEF_and_AKDEF/KDEF/{name[:4]}/{name}")
    write_image(root / "KDEF_and_AKDEF/cover.jpg")
    return names


def write_jaffe(root: Path) -> dict[str, str]:
    names = {f"{p}.{code}1.{n}.tiff": emotion for n, p in enumerate(("KA", "KL")) for code, emotion in (("FE", "fear"), ("HA", "happy"))}
    for name in names:
        write_image(root / "jaffedbase" / name)
    return names


def write_affectnet(root: Path) -> dict[str, str]:
    for split in ("train_set", "val_set"):
        for number, label in enumerate((0, 1, 7, 7, 9)):
            write_image(root / split / f"images/{split}{number}.jpg")
            (root / split / "annotations").mkdir(exist_ok=True)
            np.save(root / split / f"annotations/{split}{number}_exp.npy", np.array(str(label)))
    names = ("neutral", "happy", "contempt", "contempt")
    return {f"{split}{number}.jpg": name for split in ("train_set", "val_set") for number, name in enumerate(names)}


def write_ferplus(root: Path) -> dict[str, str]:
    order = ("neutral", "happy", "surprise", "sad", "angry", "disgust", "fear", "contempt")
    expected: dict[str, str] = {}
    for start, folder in ((0, "FER2013Train"), (100, "FER2013Valid")):
        lines = []
        for number, emotion in enumerate(order):
            name = f"fer{start + number:07d}.png"
            write_image(root / folder / name)
            lines.append(f'{name},"(0, 0, 48, 48)",' + ",".join("8" if one == emotion else "0" for one in order) + ",2,0")
            expected[name] = emotion
        (root / folder / "label.csv").write_text("\n".join(lines))
    return expected


def write_parquet(root: Path) -> dict[str, str]:
    features = {"image": {"_type": "Image"}, "label": {"names": list(NUMBERS), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    expected: dict[str, str] = {}
    for split in ("train", "validation"):
        rows = [{"image": {"bytes": encoded(f"{split}{n}"), "path": None}, "label": n % 7} for n in range(14)]
        (root / "data").mkdir(exist_ok=True)
        file = f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(metadata), root / "data" / file, row_group_size=3)
        expected |= {f"{file}#{n:09d}": NUMBERS[n % 7] for n in range(14)}
    return expected


def write_webdataset(root: Path) -> dict[str, str]:
    expected: dict[str, str] = {}
    for shard in ("train-000", "train-001", "val-000"):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for number in range(4):
                pair = ((f"{shard}{number}.cls", b"happy" if number % 2 else b"sad"), (f"{shard}{number}.png", encoded(f"{shard}{number}")))
                for name, content in pair:
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                expected[f"{shard}{number}.png"] = "happy" if number % 2 else "sad"
    return expected


def write_numbers(root: Path) -> dict[str, str]:
    fill(root, *(f"DATASET/{split}/{number}" for split in ("train", "test") for number in range(1, 8)), count=2)
    (root / "train_labels.csv").write_text("image,label\n")
    return {}


def write_challenge(root: Path) -> dict[str, str]:
    for name, header, numbers in (("train.csv", "emotion,pixels", range(14)), ("test.csv", "pixels", range(3))):
        rows = [(f"{n % 7}," if name == "train.csv" else "") + " ".join(map(str, drawn(f"{n}").ravel())) for n in numbers]
        (root / name).write_text("\n".join([header, *rows]))
    (root / "example_submission.csv").write_text("emotion\n0\n")
    return {f"train.csv#{n:07d}": NUMBERS[n % 7] for n in range(14)}


def write_ckextended(root: Path) -> dict[str, str]:
    names = (*NUMBERS, "contempt")
    rows = [f"{n % 8},{' '.join(map(str, drawn(f'{n}', (200, 200)).ravel()))},{'Training' if n < 16 else 'PublicTest'}" for n in range(24)]
    (root / "ckextended.csv").write_text("\n".join(["emotion,pixels,Usage", *rows]))
    return {f"ckextended.csv#{n:07d}": names[n % 8] for n in range(24)}


@pytest.mark.parametrize(
    ("write", "settings"),
    [
        (write_rafdb, {}),
        (write_ckplus, {}),
        (write_kdef, {}),
        (write_jaffe, {}),
        (write_affectnet, {}),
        (write_ferplus, {}),
        (write_parquet, {}),
        (write_webdataset, {}),
        (write_challenge, {}),
        (write_ckextended, {}),
        (write_numbers, {"label_names": ("rafdb",)}),
    ],
)
def test_public_data_sets_are_read_as_they_are_published(
    tmp_path: Path, write: Callable[[Path], dict[str, str]], settings: dict[str, Any]
) -> None:
    expected = write(tmp_path)
    data = load(tmp_path, **settings)
    everything = load(tmp_path, "all", **settings)
    assert len(everything.splits["all"]) == (len(expected) or 28)
    assert len(data.train) > 0 < len(data.validation)
    assert everything.splits["all"].images.std(axis=(1, 2)).min() > 5  # pictures, none black
    if expected:
        assert answers(everything) == expected
        assert answers(data).items() <= expected.items()
    else:
        assert data.classes == tuple(sorted(RAFDB))


def test_a_list_of_labels_names_images_splits_and_boxes(tmp_path: Path) -> None:
    fill(tmp_path, "pictures", count=8)
    photo = np.zeros((60, 80, 3), np.uint8)
    photo[10:40, 20:50] = drawn("face", (30, 30, 3))
    write_image(tmp_path / "pictures/crowd.png", photo)
    rows = [f"pictures/{n}.png,{'joy' if n % 2 else 'afraid'},{'val' if n > 5 else 'Training'},,,," for n in range(8)]
    rows += ["crowd.png,joy,train,20,10,30,30", "crowd.png,afraid,train,0,0,5,5", "pictures/gone.png,joy,train,,,,"]
    (tmp_path / "faces.csv").write_text("\n".join(["file,emotion,split,x,y,width,height", *rows]))
    data = load(tmp_path, labels=(str(tmp_path / "faces.csv"),), size=30, color="rgb", keep_duplicates=True)
    assert counts(data) == {"train": 8, "validation": 2}
    crop = data.train.images[data.train.names.index("pictures/crowd.png")]
    assert np.abs(crop.astype(int) - photo[10:40, 20:50, ::-1]).mean() < 1
    assert any("they are not there: 1 image" in finding and "gone.png" in finding for finding in data.findings)
    (tmp_path / "plain.txt").write_text("\n".join(f"{n}.png {n % 2 + 5}" for n in range(7)))
    plain = load(tmp_path, "all", labels=(str(tmp_path / "plain.txt"),), label_names=("5=sad", "6=neutral"))
    assert plain.splits["all"].counts(plain.classes) == {"neutral": 3, "sad": 4}
    assert any("nothing labels them: 2 images" in finding for finding in plain.findings)


@pytest.mark.parametrize(
    ("content", "settings", "complaint"),
    [
        (
            "image,label\n0.png,3\n1.png,4\n",
            {},
            "Row 2 of labels.csv has the unknown label '3': say what the numbers mean with --label-names",
        ),
        ("image,label\n0.png,bored\n", {"label_names": ("sad=sad",)}, "unknown label 'bored': say what it means with --label-names bored="),
        ("image,label\na.png,sad\nb.png,sad\n", {}, r"lacks 2 images that labels.csv names \(a.png, b.png\)"),
        ("image,label,x,y,width,height\n0.png,sad,1,2,0,4\n", {}, r"Row 2 of labels.csv has a box that is none \(1, 2, 0, 4\)"),
        ("image,label,split\n0.png,sad,home\n", {}, "Row 2 of labels.csv has the split 'home'"),
        ("image,label\n0.png,sad\nsad/0.png,fear\n", {}, "gives sad/0.png two labels, sad and fear"),
        ("0.png,sad,1,2\n", {}, "has 4 columns and no header"),
        ("", {}, "is empty"),
        (None, {}, "There is no label file"),
    ],
)
def test_a_wrong_label_file_is_refused_in_one_sentence(
    tmp_path: Path, content: str | None, settings: dict[str, Any], complaint: str
) -> None:
    fill(tmp_path / "data", "sad", count=2)
    if content is not None:
        (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(DatasetError, match=complaint):
        load(tmp_path / "data", labels=(str(tmp_path / "labels.csv"),), **settings)


def test_folders_that_are_numbers_or_no_emotion_say_how_to_name_them(tmp_path: Path) -> None:
    fill(tmp_path / "numbers", "train/1", "train/2", "test/1", "test/2")
    with pytest.raises(DatasetError, match=r"numbers mean with --label-names, as a data set that it is like \(.*rafdb.*\), or 1=EMOTION"):
        load(tmp_path / "numbers")
    named = load(tmp_path / "numbers", "train", "test", label_names=("1=sad", "2=fear"))
    assert named.classes == ("fear", "sad")
    fill(tmp_path / "other", "sleepy", "sad", "happy_faces", "angry (1)")
    with pytest.raises(DatasetError, match=r"sleepy is not named after a known emotion: .* --label-names sleepy="):
        load(tmp_path / "other")
    data = load(tmp_path / "other", classes=("sad", "happy", "angry"))
    assert "The folder sleepy/ with 5 images is none of the classes and was left out." in data.findings
    assert load(tmp_path / "other", label_names=("sleepy=neutral",)).classes == ("angry", "happy", "neutral", "sad")
    with pytest.raises(UsageError, match="label_names has 'bored'"):
        load(tmp_path / "other", label_names=("bored",))


def test_photographs_are_cropped_to_the_face_as_label_crops_them(tmp_path: Path) -> None:
    portrait = np.asarray(cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2BGR), np.uint8)
    for number in range(4):
        write_image(tmp_path / f"{'sad' if number % 2 else 'happy'}/{number}.png", np.roll(portrait, 20 * number, axis=1))
    write_image(tmp_path / "happy/wall.png", np.full((200, 200, 3), 90, np.uint8))
    found = load(tmp_path, "all", find_faces=True, size=48).splits["all"]
    whole = load(tmp_path, "all", size=48).splits["all"]
    assert len(found) == 4 == len(whole) - 1
    face = FaceDetector(LabelingOptions().detector_side, LabelingOptions().min_face_score).detect(portrait)[0][0]
    assert np.abs(found.images[0].astype(int) - crop_face(portrait, face, 48, DEFAULT_CROP)).mean() < 1
    assert any("wall.png (No face was found in it)" in finding for finding in load(tmp_path, "all", find_faces=True, size=48).findings)


@pytest.mark.parametrize("write", [write_parquet, write_webdataset, write_rafdb])
def test_tables_tars_and_label_files_are_read_where_they_lie_in_s3(
    tmp_path: Path, write: Callable[[Path], dict[str, str]], s3_server: S3Server
) -> None:
    expected = write(tmp_path)
    client, bucket = s3_server.client(), f"b{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)
    for path in tmp_path.rglob("*.*"):
        client.put_object(Bucket=bucket, Key=f"my/{path.relative_to(tmp_path)}", Body=path.read_bytes())
    local, remote = load(tmp_path, "all"), load(f"s3://{bucket}/my", "all", s3_endpoint=s3_server.endpoint)
    assert answers(remote) == expected
    assert remote.sha256 == local.sha256


@pytest.mark.skipif(not SHARED_CASES.exists(), reason="needs the shared cases")
@pytest.mark.parametrize(
    ("folder", "images", "names"),
    [
        ("affectnet_numbers", 72, ("affectnet",)),
        ("ckextended", 40, ()),
        ("ckplus_original", 12, ()),
        ("decorated", 12, ()),
        ("expw", 14, ()),
        ("ferplus_generated", 72, ()),
        ("hf_parquet", 28, ()),
        ("jaffe", 14, ()),
        ("jfif", 12, ()),
        ("kaggle_challenge", 28, ()),
        ("kdef", 42, ()),
        ("pixels224", 14, ()),
        ("rafdb_kaggle", 63, ("rafdb",)),
        ("rafdb_original", 42, ()),
    ],
)
def test_the_layouts_that_others_found_unreadable_are_read_whole(folder: str, images: int, names: tuple[str, ...]) -> None:
    data = load(SHARED_CASES / "10_datasets" / folder, "all", label_names=names)
    assert len(data.splits["all"]) == images
