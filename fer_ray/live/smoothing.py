"""Faces that are followed from frame to frame, so that what is shown of them is calm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fer_ray.label.result import Face

MIN_OVERLAP = 0.2  # of two boxes (intersection over union): frames follow each other so fast that a face has hardly moved
LOST_SECONDS = 1.0  # a face that was not seen for so long is another one when it comes back


@dataclass
class Followed:
    """A face with its number, where it was last, and the smoothed probability of each emotion."""

    number: int
    bbox: tuple[int, int, int, int]
    seen: float
    probabilities: dict[str, float]


class Follower:
    """Gives each face of a frame the number and the smoothed emotions of the face that it was before.

    Args:
        seconds: the time constant of the smoothing; 0 turns it off.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._faces: list[Followed] = []
        self._count = 0

    def follow(self, faces: Sequence[Face], now: float) -> list[Followed]:
        """The faces of the next frame in their order, each matched with the one of before that it overlaps most."""
        self._faces = [face for face in self._faces if now - face.seen <= LOST_SECONDS]
        pairs = sorted(
            ((overlap(old.bbox, new.bbox), i, j) for i, old in enumerate(self._faces) for j, new in enumerate(faces)), reverse=True
        )
        found: dict[int, Followed] = {}
        taken: set[int] = set()
        for shared, i, j in pairs:
            if shared >= MIN_OVERLAP and i not in taken and j not in found:
                taken.add(i)
                found[j] = self._moved(self._faces[i], faces[j], now)
        for j, face in enumerate(faces):
            if j not in found:
                self._count += 1
                found[j] = Followed(self._count, face.bbox, now, dict(face.probabilities))
                self._faces.append(found[j])
        return [found[j] for j in range(len(faces))]

    def _moved(self, followed: Followed, face: Face, now: float) -> Followed:
        weight = 1 - math.exp(-(now - followed.seen) / self._seconds) if self._seconds else 1.0
        for emotion, probability in face.probabilities.items():
            followed.probabilities[emotion] += weight * (probability - followed.probabilities[emotion])
        followed.bbox, followed.seen = face.bbox, now
        return followed


def overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection over union of two boxes x, y, width, height."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)
