"""The detector gives what OpenCV's own YuNet gives, and faces that fill the frame too."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from pictures import read_bgr, resized

from fer_ray.vision import detector
from fer_ray.vision.detector import FaceDetector


@pytest.mark.parametrize("name", ["astronaut", "grace_hopper", "camera"])
def test_faces_are_those_of_opencv_at_half_the_size(photographs: dict[str, Path], name: str) -> None:
    picture = read_bgr(photographs[name])
    image = resized(picture, 512 / max(picture.shape[:2]))
    image = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
    half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    path = Path(detector.__file__).parent / "yunet" / detector.MODEL_FILE
    oracle = cv2.FaceDetectorYN.create(str(path), "", half.shape[1::-1], 0.6, detector.NMS_IOU, detector.MAX_FACES)
    expected = oracle.detect(half)[1]
    found, doubtful = FaceDetector(640, 0.6).detect(image)
    assert len(found) == len(expected) == 1
    assert not doubtful
    assert found[0].bbox == pytest.approx(2 * expected[0][:4], abs=0.05)
    assert found[0].landmarks[[1, 0, 2, 4, 3]].ravel() == pytest.approx(2 * expected[0][4:14], abs=0.05)
    assert found[0].score == pytest.approx(expected[0][14], abs=1e-4)


def test_a_small_face_beside_a_large_one_is_found(photographs: dict[str, Path]) -> None:
    image = resized(read_bgr(photographs["astronaut"]), 0.9)
    face, _ = FaceDetector(640, 0.6).detect(image)
    side = round(image.shape[0] * 26 / face[0].bbox[3])  # so that the face is 26 pixels high: half of that is too little
    image[-side:, :side] = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    assert [round(found.bbox[3]) for found in FaceDetector(640, 0.6).detect(image)[0]][1:] == [pytest.approx(26, abs=5)]


def test_a_face_that_fills_the_frame_is_found(photographs: dict[str, Path]) -> None:
    close_up = resized(read_bgr(photographs["astronaut"])[60:185, 175:275], 4)
    assert len(FaceDetector(480, 0.6).detect(close_up)[0]) == 1


def test_tiny_and_odd_sizes_are_searched_without_complaint() -> None:
    searching = FaceDetector(480, 0.6)
    for height, width in ((1, 1), (1, 3000), (3000, 1), (7, 9), (33, 31), (479, 481)):
        assert searching.detect(np.zeros((height, width, 3), np.uint8)) == ([], 0)
