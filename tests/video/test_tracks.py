"""Faces followed through films: one face is one track, whoever crosses its way, until its scene ends."""

from __future__ import annotations

import numpy as np
import pytest

from fer_ray.emotions import EMOTIONS
from fer_ray.video.frames import scene_of
from fer_ray.video.track_table import summarize
from fer_ray.video.tracks import Tracker

HAPPY = np.eye(len(EMOTIONS))[EMOTIONS.index("happy")]
SAD = np.eye(len(EMOTIONS))[EMOTIONS.index("sad")]


def follow(tracker: Tracker, time_ms: int, *boxes: tuple[float, float, float, float], scene: bytes | None = None) -> list[int]:
    count = len(boxes)
    return tracker.follow(time_ms, np.array(boxes, np.float64).reshape(-1, 4), np.full(count, 0.9), np.tile(HAPPY, (count, 1)), scene)


@pytest.mark.parametrize("frames_per_second", [1, 5, 30])
def test_three_faces_that_cross_keep_their_tracks_through_noise_misses_and_being_hidden(frames_per_second: int) -> None:
    noise, tracker = np.random.default_rng(0), Tracker()
    tracks: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
    for number in range(20 * frames_per_second):
        time = number / frames_per_second
        places = [(100 + 50 * time, 300 + 5 * np.sin(time)), (1100 - 50 * time, 310.0), (600 + 200 * np.sin(time / 2), 100 + 20 * time)]
        seen = [
            face
            for face, (x, y) in enumerate(places)
            if noise.random() > 0.03 and not any(abs(places[other][0] - x) < 60 > abs(places[other][1] - y) for other in range(face))
        ]
        boxes = [(*(np.array(places[face]) + noise.normal(0, 1.5, 2)), *noise.normal((100, 120), 2)) for face in seen]
        for face, track in zip(seen, follow(tracker, round(time * 1000), *boxes), strict=True):
            tracks[face].add(track)
    assert tracks == {0: {0}, 1: {1}, 2: {2}}


def test_a_cut_of_the_scene_ends_tracks_and_a_pan_does_not() -> None:
    meadow, wall = np.full((90, 160, 3), (40, 160, 60), np.uint8), np.full((90, 160, 3), (120, 110, 100), np.uint8)
    turned = np.roll(np.concatenate([meadow[:, :80], wall[:, :80]], axis=1), 20, axis=1)
    tracker = Tracker()
    seen = [
        follow(tracker, time, (50, 50, 40, 40), scene=scene_of(picture)) for time, picture in enumerate((meadow, meadow, turned, turned))
    ]
    assert seen == [[0]] * 4
    assert follow(tracker, 4, (50, 50, 40, 40), scene=scene_of(np.full_like(meadow, (210, 40, 60)))) == [1]


def test_a_track_says_how_long_its_face_is_shown_and_which_emotion_leads_at_any_rate_of_frames() -> None:
    tracker = Tracker()
    for time_ms, probabilities in ((0, HAPPY), (100, HAPPY), (200, SAD), (300, HAPPY), (1300, SAD), (2300, SAD)):
        tracker.follow(time_ms, np.array([[10.0, 10, 50, 50]]), np.ones(1), probabilities[None], None)
    tracker.follow(3300, np.empty((0, 4)), np.empty(0), np.empty((0, len(EMOTIONS))), None)
    (row,) = (summarize(track) for track in tracker.finish())
    assert (row["start_ms"], row["end_ms"], row["frames"], row["seconds"]) == (0, 2300, 6, 3.3)
    assert row["emotion"] == "sad"
    assert row["share_happy"] + row["share_sad"] == pytest.approx(1)
    assert row["share_sad"] > 2 / 3.3 - 0.01
    assert row["confidence"] == pytest.approx(2.1 / 3.3)
