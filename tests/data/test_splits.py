"""A validation split that measures skill, not memory: what belongs together stays on one side, and copies are found however changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import skimage
from labeled import counts, fill, load, write_image

from fer_ray.errors import DatasetError, UsageError
from fer_ray.typing import UInt8Array


def write_frames(root: Path, sequences: int = 40) -> None:
    """CK+48: three frames of each sequence, in folders of emotions."""
    for number in range(sequences):
        for frame in range(3):
            write_image(root / ("fear" if number % 2 else "sad") / f"S{number:03d}_001_{20 + frame:08d}.png")


def sides(names: tuple[str, ...]) -> set[str]:
    return {name.rpartition("/")[2].split("_")[0] for name in names}


def test_frames_of_a_sequence_are_kept_on_one_side_and_said(tmp_path: Path) -> None:
    write_frames(tmp_path)
    data = load(tmp_path)
    assert counts(data) == {"train": 96, "validation": 24}
    assert not sides(data.train.names) & sides(data.validation.names)
    assert any("look like frames of sequences" in finding and "120 images in 40 groups" in finding for finding in data.findings)
    by_image = load(tmp_path, split_by="(.*)")
    assert sides(by_image.train.names) & sides(by_image.validation.names)
    fill(tmp_path / "plain", "sad", "fear", count=30)  # numbers count the images of a class
    assert not any("look like frames" in finding for finding in load(tmp_path / "plain").findings)


def test_pictures_of_one_person_are_kept_together_by_a_pattern_or_a_column(tmp_path: Path) -> None:
    lines = ["image,label,actor"]
    for number in range(60):
        write_image(tmp_path / f"faces/take{number:03d} by p{number % 6}.png")
        lines.append(f"take{number:03d} by p{number % 6}.png,{'sad' if number // 6 % 2 else 'fear'},{number % 6}")
    (tmp_path / "actors.csv").write_text("\n".join(lines))
    by_column = load(tmp_path / "faces", labels=(str(tmp_path / "actors.csv"),), split_by="actor")
    by_pattern = load(tmp_path / "faces", labels=(str(tmp_path / "actors.csv"),), split_by=r"by p(\d)")
    for data in (by_column, by_pattern):
        assert counts(data) == {"train": 50, "validation": 10}
        assert len({name[-5] for name in data.validation.names}) == 1
        assert any("1 group of images whole" in finding for finding in data.findings)
    assert by_column.validation.names == by_pattern.validation.names
    with pytest.raises(DatasetError, match=r"split_by fits no image such as .*take000 by p0\.png"):
        load(tmp_path / "faces", labels=(str(tmp_path / "actors.csv"),), split_by="nobody")
    with pytest.raises(UsageError, match="split_by is no regular expression"):
        load(tmp_path / "faces", labels=(str(tmp_path / "actors.csv"),), split_by="(")


def test_groups_that_leave_a_class_without_validation_are_refused(tmp_path: Path) -> None:
    for number in range(12):
        write_image(tmp_path / ("sad" if number % 2 else "fear") / f"{'ab'[number % 2]}{number}.png")
    with pytest.raises(DatasetError, match=r"The groups of --split-by leave .* without train image of (sad|fear): name smaller ones"):
        load(tmp_path, split_by="[ab]")


def test_persons_in_several_splits_are_said(tmp_path: Path) -> None:
    write_frames(tmp_path / "train", 24)
    write_frames(tmp_path / "validation", 12)
    findings = load(tmp_path).findings
    assert any("In several splits are 12 of 24 groups" in finding for finding in findings)


def photographs() -> dict[str, UInt8Array]:
    """Parts of photographs, which differ from one another as faces do."""
    picture = skimage.data.astronaut()[..., ::-1]
    return {
        f"{x}_{y}": np.ascontiguousarray(picture[y : y + 96, x : x + 96], np.uint8) for x in range(0, 384, 96) for y in range(0, 384, 96)
    }


def test_mirrored_and_re_encoded_copies_across_splits_are_left_out_of_training(tmp_path: Path) -> None:
    changes: dict[str, Callable[[UInt8Array], Any]] = {
        "mirrored.png": lambda face: np.ascontiguousarray(face[:, ::-1]),
        "poor.jpg": lambda face: cv2.imdecode(cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR),
        "small.png": lambda face: cv2.resize(face, (48, 48), interpolation=cv2.INTER_AREA),
        "bright.png": lambda face: cv2.convertScaleAbs(face, alpha=0.8, beta=10),
    }
    fill(tmp_path, "train/sad", "train/fear", "test/fear", count=9)
    for name, face in photographs().items():
        write_image(tmp_path / "test/sad" / f"{name}.png", face)
    copied = dict(list(photographs().items())[:2])
    for name, face in copied.items():
        for change, apply in changes.items():
            write_image(tmp_path / "train/sad" / f"{name}_{change}", np.asarray(apply(face), np.uint8))
    write_image(tmp_path / "train/fear/blank.png", np.full((48, 48), 128, np.uint8))
    write_image(tmp_path / "test/fear/blank.png", np.full((40, 40), 127, np.uint8))
    data, kept = load(tmp_path, "train", "test"), load(tmp_path, "train", "test", keep_duplicates=True)
    left_out = {*kept.train.names} - {*data.train.names}
    expected = {f"train/sad/{name}_{change}" for name in copied for change in changes}
    assert left_out | {*load(tmp_path).validation.names} >= expected
    assert not any(name in expected for name in data.train.names)
    assert "train/fear/blank.png" in {*data.train.names, *load(tmp_path).validation.names}
    assert any("mirrored, re-encoded or slightly changed they are in validation or test too" in finding for finding in data.findings)
