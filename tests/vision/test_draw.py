"""Drawn labels cover no face, wherever the faces are."""

import numpy as np

from fer_ray.emotions import EMOTION_COLORS, EMOTIONS, UNKNOWN
from fer_ray.vision.draw import Box, draw_faces


def test_labels_cover_no_face_in_a_crowd_and_are_named_below_where_there_is_no_room() -> None:
    crowd = [Box((x, y, 60, 70), EMOTIONS[(x + y) % 8], 0.8) for x in range(20, 560, 145) for y in range(45, 330, 125)]
    packed = [Box((x, y, 50, 50), EMOTIONS[(x // 50 + y // 50) % 8], 0.5) for x in range(0, 600, 50) for y in range(0, 400, 50)]
    for faces, is_higher in ((crowd, False), (packed, True), ([Box((0, 0, 600, 400), "sad", 0.9)], True), ([], False)):
        drawn = np.asarray(draw_faces(np.full((400, 600, 3), 7, np.uint8), faces))
        assert drawn.shape[1:] == (600, 3)
        assert (drawn.shape[0] > 400) == is_higher
        for face in faces:
            x, y, width, height = face.bbox
            assert (drawn[y + 6 : y + height - 6, x + 6 : x + width - 6] == 7).all()
    assert len(set(EMOTION_COLORS.values())) == len({*EMOTIONS, UNKNOWN}) == len(EMOTION_COLORS)
