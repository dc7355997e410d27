"""What is seen of a face: its quality, and whether mouth or eyes are covered."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from pictures import SHARED_DATA

from fer_ray import Labeler
from fer_ray.label.result import Face
from fer_ray.typing import Float32Array, UInt8Array
from fer_ray.vision import degradation
from fer_ray.vision.quality import OUTPUTS, describe, probability


def said(crops: UInt8Array, name: str) -> Float32Array:
    return probability(describe(crops), name)


@pytest.fixture(scope="module")
def faces(labeler: Labeler, photographs: dict[str, Path]) -> UInt8Array:
    """Crops of three people, (3, 160, 160, 3)."""
    images = labeler.label([photographs[name] for name in ("astronaut", "grace_hopper", "camera")])
    return np.stack([cut for image in images for cut in image.crops()][:3])


def test_a_mask_and_dark_glasses_are_told_from_a_free_face_in_any_cloth(faces: UInt8Array) -> None:
    generator = np.random.default_rng(0)
    gray = np.stack([cv2.resize(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), (48, 48), interpolation=cv2.INTER_AREA) for face in faces[:2]])
    assert said(gray, "occluded").max() < 0.3
    masked = np.stack([degradation.mask(face, generator) for face in gray for _ in range(20)])
    assert (said(masked, "occluded") > 0.5).mean() >= 0.9
    glasses = gray.copy()
    glasses[:, 15:23, 6:42] = 25
    assert said(glasses, "occluded").min() > 0.5


def test_quality_falls_with_pixels_and_noise_in_colour_as_in_gray(faces: UInt8Array) -> None:
    generator = np.random.default_rng(0)
    assert said(faces, "quality").min() > 0.85
    small = [np.stack([degradation.downscale(face, side) for face in faces]) for side in (80, 30, 20, 10)]
    noisy = [np.stack([degradation.noise(degradation.downscale(face, 80), sigma, generator) for face in faces]) for sigma in (0, 30, 60)]
    for poorer in (small, noisy):
        means = [float(said(crops, "quality").mean()) for crops in poorer]
        assert means == sorted(means, reverse=True), means
    assert said(small[2], "quality").max() < said(faces, "quality").min()


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs the real photographs")
def test_masks_in_street_photographs_are_seen(labeler: Labeler) -> None:
    with (SHARED_DATA / "crowd_photos.csv").open() as table, zipfile.ZipFile(SHARED_DATA / "crowd_photos.zip") as photos:
        rows = [row for row in csv.DictReader(table) if row["image"].startswith("masks_") and int(row["height"]) >= 60]
        files = {name.rpartition("/")[2]: name for name in photos.namelist()}
        names = sorted({row["image"] for row in rows})[:60]
        images = dict(zip(names, labeler.label([photos.read(files[name]) for name in names]), strict=True))
    worn: dict[str, list[Face]] = {"con_mascarilla": [], "sin_mascarilla": []}
    for row in rows:
        x, y = int(row["x"]) + int(row["width"]) / 2, int(row["y"]) + int(row["height"]) / 2
        for face in images[row["image"]].faces if row["image"] in images else []:
            left, top, width, height = face.bbox
            if left < x < left + width and top < y < top + height and row["label"] in worn:
                worn[row["label"]].append(face)
    assert min(map(len, worn.values())) >= 5
    covered = {label: np.mean([face.occluded or 0 for face in faces]) for label, faces in worn.items()}
    assert covered["con_mascarilla"] > 0.6 > 0.3 > covered["sin_mascarilla"], covered


def test_no_faces_are_described_as_none() -> None:
    assert describe(np.empty((0, 48, 48), np.uint8)).shape == (0, len(OUTPUTS))
