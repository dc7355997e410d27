"""Faces followed from frame to frame of a film: which of them are one face, by place, size and motion. Nobody is recognised.

The idea is ByteTrack's (Zhang et al. 2022, arXiv:2110.06864): boxes are matched with where tracks should be by now, the certain ones
first, and the doubtful ones with the tracks that are left. There is no picture here: a track ends with its scene.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from fer_ray.typing import Float64Array

CERTAIN_SCORE = 0.8  # of a detection: these are matched first
SECONDS_UNSEEN = 2.0  # that a track waits for its face, or frames where these are further apart
FRAMES_UNSEEN = 2
REACH_AT_ONCE, REACH_PER_SECOND, MAX_REACH = 0.5, 0.7, 1.2  # how far a face may be from where it should be, in sides of it
MAX_GROWTH = 0.7  # of the logarithm of its side: by a factor of two
SECONDS_OF_MOTION = 0.5  # over which its speed is averaged
SECONDS_AHEAD = 0.6  # beyond this a face may as well have stayed where it was
CUT = 0.5  # share of a picture's colours that change with the scene
_FULL = 255.0  # what the numbers of a scene add up to, about


@dataclass(eq=False)
class Track:
    """A face over time: its frames, their boxes (n, 4), the probabilities (n, classes), and how long each frame is shown."""

    number: int
    times_ms: list[int] = field(default_factory=list)
    boxes: list[Float64Array] = field(default_factory=list)
    probabilities: list[Float64Array] = field(default_factory=list)
    shown_ms: list[int] = field(default_factory=list)
    speed: Float64Array = field(default_factory=lambda: np.zeros(2))  # of the centre, pixels a second

    def add(self, time_ms: int, box: Float64Array, probabilities: Float64Array) -> None:
        if self.times_ms:
            seconds = (time_ms - self.times_ms[-1]) / 1000
            moved = (_centre(box) - _centre(self.boxes[-1])) / seconds
            weight = 1 - np.exp(-seconds / SECONDS_OF_MOTION) if len(self.times_ms) > 1 else 1.0
            self.speed = (1 - weight) * self.speed + weight * moved
        self.times_ms.append(time_ms)
        self.boxes.append(box)
        self.probabilities.append(probabilities)
        self.shown_ms.append(0)


class Tracker:
    """Follows the faces of one film; tracks are numbered from 0 in the order in which they begin."""

    def __init__(self) -> None:
        self._running: list[Track] = []
        self._ended: list[Track] = []
        self._count = 0
        self._time_ms: int | None = None
        self._step_ms = 0
        self._scene: Float64Array | None = None
        self._seen: list[Track] = []  # in the last frame

    def follow(
        self, time_ms: int, boxes: Float64Array, scores: Float64Array, probabilities: Float64Array, scene: bytes | None
    ) -> list[int]:
        """The numbers of the tracks that the faces of the next frame belong to.

        Args:
            time_ms: When it is shown, later than the frame before.
            boxes: (n, 4) x, y, width, height.
            scores: (n,) of the detector.
            probabilities: (n, classes).
            scene: The frame's colours, as `frames.scene_of` gives them.
        """
        if self._time_ms is not None:
            self._step_ms = time_ms - self._time_ms
            for track in self._seen:
                track.shown_ms[-1] = self._step_ms
        self._time_ms = time_ms
        if self._is_cut(scene):
            self._end(self._running)
        unseen_ms = max(1000 * SECONDS_UNSEEN, FRAMES_UNSEEN * self._step_ms)
        self._end([track for track in self._running if time_ms - track.times_ms[-1] > unseen_ms + self._step_ms])
        found: list[Track | None] = [None] * len(boxes)
        for stage in (scores >= CERTAIN_SCORE, scores < CERTAIN_SCORE):
            self._match(time_ms, boxes, np.flatnonzero(stage).tolist(), found)
        self._seen = []
        for place, box in enumerate(boxes):
            track = found[place] or self._begin()
            track.add(time_ms, box, probabilities[place])
            self._seen.append(track)
        return [track.number for track in self._seen]

    def ended(self) -> Iterator[Track]:
        """The tracks that have ended since this was asked last."""
        ended, self._ended = self._ended, []
        yield from ended

    def finish(self) -> Iterator[Track]:
        """The film is over: all that is left."""
        for track in self._seen:
            track.shown_ms[-1] = self._step_ms
        self._end(self._running)
        yield from self.ended()

    def _match(self, time_ms: int, boxes: Float64Array, places: Sequence[int], found: list[Track | None]) -> None:
        """The nearest pairs first."""
        taken = {track.number for track in found if track}
        free = [track for track in self._running if track.number not in taken]
        if not free or not len(places):
            return
        distances = _distances(free, time_ms, boxes[places])
        near = np.argwhere(np.isfinite(distances))
        for row, column in near[np.argsort(distances[near[:, 0], near[:, 1]], kind="stable")]:
            track, place = free[row], int(places[column])
            if found[place] is None and track.number not in taken:
                found[place] = track
                taken.add(track.number)

    def _begin(self) -> Track:
        track = Track(self._count)
        self._count += 1
        self._running.append(track)
        return track

    def _end(self, tracks: Sequence[Track]) -> None:
        self._ended += tracks
        gone = {track.number for track in tracks}
        self._running = [track for track in self._running if track.number not in gone]

    def _is_cut(self, scene: bytes | None) -> bool:
        before, self._scene = self._scene, None if scene is None else np.frombuffer(scene, np.uint8) / _FULL
        return before is not None and self._scene is not None and float(np.abs(before - self._scene).sum()) / 2 > CUT


def _distances(tracks: Sequence[Track], time_ms: int, boxes: Float64Array) -> Float64Array:
    """How far boxes are from where faces should be, in sides of these: (tracks, boxes), infinite where it cannot be the same face."""
    last = np.stack([track.boxes[-1] for track in tracks])
    seconds = np.array([(time_ms - track.times_ms[-1]) / 1000 for track in tracks])[:, None]
    stayed = _centre(last)
    moved = stayed + np.stack([track.speed for track in tracks]) * seconds
    away = np.linalg.norm(moved[:, None] - _centre(boxes), axis=2)
    if_stayed = np.linalg.norm(stayed[:, None] - _centre(boxes), axis=2)
    away = np.where(seconds > SECONDS_AHEAD, np.minimum(away, if_stayed), away)
    sides, others = _side(last)[:, None], _side(boxes)
    away, growth = away / np.maximum(sides, others), np.abs(np.log(others / sides))
    reach = np.minimum(MAX_REACH, REACH_AT_ONCE + REACH_PER_SECOND * seconds)
    return np.where((away <= reach) & (growth <= MAX_GROWTH), away + growth, np.inf)


def _centre(boxes: Float64Array) -> Float64Array:
    return np.asarray(boxes[..., :2] + boxes[..., 2:] / 2)


def _side(boxes: Float64Array) -> Float64Array:
    return np.asarray(np.maximum(1.0, np.sqrt(boxes[..., 2] * boxes[..., 3])))
