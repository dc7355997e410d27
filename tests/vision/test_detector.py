"""The detector gives what OpenCV's own YuNet gives, and faces that fill the frame too."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from pictures import read_bgr, resized

from fer_ray.vision import detector
from fer_ray.vision.detector import FaceDetector


@pytest.mark.parametrize(("name", "factor"), [("astronaut", 0.9), ("grace_hopper", 0.5), ("grace_hopper", 0.37), ("camera", 0.8)])
def test_faces_are_those_of_opencv(photographs: dict[str, Path], name: str, factor: float) -> None:
    image = resized(read_bgr(photographs[name]), factor)
    path = Path(detector.__file__).parent / "yunet" / detector.MODEL_FILE
    oracle = cv2.FaceDetectorYN.create(str(path), "", (image.shape[1], image.shape[0]), 0.6, detector.NMS_IOU, detector.MAX_FACES)
    expected = oracle.detect(image)[1]
    found, _ = FaceDetector(640, 0.6).detect(image)
    assert len(found) == len(expected) == 1
    assert found[0].bbox == pytest.approx(expected[0][:4], abs=0.02)
    assert found[0].landmarks[[1, 0, 2, 4, 3]].ravel() == pytest.approx(expected[0][4:14], abs=0.02)
    assert found[0].score == pytest.approx(expected[0][14], abs=1e-4)


def test_a_face_that_fills_the_frame_is_found(photographs: dict[str, Path]) -> None:
    close_up = resized(read_bgr(photographs["astronaut"])[60:185, 175:275], 4)
    assert len(FaceDetector(480, 0.6).detect(close_up)[0]) == 1


def test_tiny_and_odd_sizes_are_searched_without_complaint() -> None:
    searching = FaceDetector(480, 0.6)
    for height, width in ((1, 1), (1, 3000), (3000, 1), (7, 9), (33, 31), (479, 481)):
        assert searching.detect(np.zeros((height, width, 3), np.uint8)) == ([], 0)
