"""How heads are turned, from the five landmarks of each face."""

from __future__ import annotations

import numpy as np

from fer_ray.typing import Float32Array

# The landmarks of a face that looks at us, in centimetres, to the right, down and away: eyes (the middle of their corners), tip of
# the nose and corners of the mouth of MediaPipe's canonical face model (vertices 33, 133, 1, 61 and their mirror images).
_FACE = np.array(
    [
        (3.151, -2.625, -3.466),
        (-3.151, -2.625, -3.466),
        (0.0, 1.127, -7.476),
        (2.456, 4.343, -4.284),
        (-2.456, 4.343, -4.284),
    ]
)
_FROM_CENTRE = _FACE - _FACE.mean(axis=0)
_INVERSE = np.linalg.pinv(_FROM_CENTRE)  # (3, 5)
_MIN_SCALE = 1e-6  # pixels per centimetre: landmarks that lie in one point say nothing


def head_pose(landmarks: Float32Array) -> Float32Array:
    """Yaw, pitch and roll by scaled orthographic projection (POS of DeMenthon and Davis 1995) of a face of average shape.

    Args:
        landmarks: (n, 5, 2) in pixels: the subject's left and right eye, nose, left and right corner of the mouth.

    Returns:
        (n, 3) degrees: yaw above 0 towards the right edge of the image, pitch above 0 upwards, roll above 0 clockwise. They are the
        angles of a head that is first raised, then turned, then tilted in the image: turning the picture changes roll alone. NaN
        where landmarks say nothing.
    """
    points = landmarks.astype(np.float64)
    with np.errstate(invalid="ignore"):
        projection = np.einsum("npa,kp->nak", points - points.mean(axis=1, keepdims=True), _INVERSE)  # (n, 2, 3)
    known = np.isfinite(projection).all(axis=(1, 2)) & (np.abs(np.nan_to_num(projection)).max(axis=(1, 2), initial=0) > _MIN_SCALE)
    left, _, right = np.linalg.svd(projection[known], full_matrices=False)
    across, down = np.moveaxis(left @ right, 1, 0)  # the nearest rows of a rotation, each (n, 3)
    away = np.cross(across, down)
    pose = np.full((len(points), 3), np.nan)
    yaw = np.arcsin(np.clip(away[:, 0], -1, 1))
    pose[known] = np.degrees(np.stack([yaw, -np.arctan2(away[:, 1], away[:, 2]), np.arctan2(down[:, 0], across[:, 0])], axis=1))
    return pose.astype(np.float32)
