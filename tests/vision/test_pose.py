"""How heads are turned: what is drawn at known angles comes back, and a turned picture changes roll alone."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fer_ray.label.labeler import Labeler
from fer_ray.typing import Float64Array
from fer_ray.vision.pose import _FACE, head_pose

POSES = [(0, 0, 0), (30, 0, 0), (-40, 10, 20), (10, -25, -35), (50, 15, 170), (0, 0, -90)]


def seen(yaw: float, pitch: float, roll: float, distance: float) -> Float64Array:
    """The landmarks of the average face so many centimetres away from a pinhole camera."""
    raised, turned, tilted = (cv2.Rodrigues(np.radians(axis))[0] for axis in ([-pitch, 0.0, 0], [0, -yaw, 0.0], [0.0, 0, roll]))
    points = _FACE @ (tilted @ turned @ raised).T + [2, -3, distance]
    return np.asarray(points[:, :2] / points[:, 2:] * distance * 8 + 300)


def test_a_head_at_known_angles_is_measured_from_afar_and_about_measured_from_near() -> None:
    for distance in (1e6, 80):
        found = head_pose(np.array([seen(*pose, distance) for pose in POSES], np.float32))
        assert np.abs((found - POSES + 180) % 360 - 180).max() < (0.01 if distance == 1e6 else 5)


def test_landmarks_that_say_nothing_have_no_angles() -> None:
    assert np.isnan(head_pose(np.zeros((2, 5, 2), np.float32))).all()
    assert np.isnan(head_pose(np.full((1, 5, 2), np.inf, np.float32))).all()
    assert head_pose(np.empty((0, 5, 2), np.float32)).shape == (0, 3)


def test_a_turned_photograph_changes_roll_and_a_mirrored_one_the_side(labeler: Labeler, photographs: dict[str, Path]) -> None:
    pixels = np.asarray(Image.open(photographs["astronaut"]).convert("RGB"))
    height, width = pixels.shape[:2]
    tilted = cv2.warpAffine(pixels, cv2.getRotationMatrix2D((width / 2, height / 2), -20, 1), (width, height))
    (yaw, pitch, roll), after, mirrored = (
        [labeler.label(image).to_arrow()[name][0].as_py() for name in ("yaw", "pitch", "roll")]
        for image in (pixels, tilted, pixels[:, ::-1].copy())
    )
    assert after[:2] == pytest.approx([yaw, pitch], abs=6)
    assert roll + 3 < after[2] < roll + 23  # the detector's landmarks follow a tilt by a part of it
    assert mirrored == pytest.approx([-yaw, pitch, -roll], abs=10)
