"""The library: faces where they are, the same answer however an image is handed in."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from pictures import read_bgr, resized

from fer_ray import Labeler
from fer_ray.config.crop import CropGeometry
from fer_ray.config.label import LabelingConfig
from fer_ray.schema import Status
from fer_ray.vision.detector import FaceDetector, crop_face


def test_the_demo_faces_are_found_where_they_are_and_smile(labeler: Labeler, photographs: dict[str, Path]) -> None:
    astronaut, cat, coffee = labeler.label([photographs[name] for name in ("astronaut", "chelsea", "coffee")])
    (face,) = astronaut.faces
    x, y, width, height = face.bbox
    assert x < 224 < x + width
    assert y < 120 < y + height
    assert 70 < height < 150
    assert face.emotion == "happy"
    assert face.confidence == max(face.probabilities.values()) > 0.6
    assert sum(face.probabilities.values()) == pytest.approx(1)
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    assert left_eye[0] > nose[0] > right_eye[0]  # the subject's own left is on the right of the picture
    assert left_mouth[0] > right_mouth[0]
    assert left_eye[1] < nose[1] < left_mouth[1]
    assert (cat.status, cat.faces, coffee.status) == (Status.NO_FACE, [], Status.NO_FACE)


def test_an_image_gives_the_same_answer_alone_in_a_batch_and_in_any_form(labeler: Labeler, photographs: dict[str, Path]) -> None:
    paths = list(photographs.values())
    batch = labeler.label(paths * 3)
    for path, image in zip(paths * 3, batch, strict=True):
        rgb = read_bgr(path)[..., ::-1]
        for alone in labeler.label([path]) + labeler.label([path.read_bytes()]) + labeler.label([rgb]):
            assert [face.bbox for face in alone.faces] == [face.bbox for face in image.faces]
            for one, other in zip(alone.faces, image.faces, strict=True):
                assert list(one.probabilities.values()) == pytest.approx(list(other.probabilities.values()), abs=1e-4)


def test_a_large_photograph_gives_the_same_face_in_its_own_pixels(labeler: Labeler, photographs: dict[str, Path]) -> None:
    _, large = cv2.imencode(".jpg", resized(read_bgr(photographs["astronaut"]), 5))
    (image,) = labeler.label([large.tobytes()])
    (reference,) = labeler.label([photographs["astronaut"]])
    assert (image.width, image.height) == (2560, 2560)
    assert np.array(image.faces[0].bbox) / 5 == pytest.approx(np.array(reference.faces[0].bbox), abs=6)
    assert image.faces[0].landmarks / 5 == pytest.approx(reference.faces[0].landmarks, abs=6)
    assert image.faces[0].emotion == reference.faces[0].emotion


def test_many_faces_come_largest_first_and_small_ones_are_counted(photographs: dict[str, Path]) -> None:
    face = read_bgr(photographs["astronaut"])[20:220, 130:330]
    canvas = np.full((600, 900, 3), 127, np.uint8)
    for x, y, side in ((20, 20, 300), (400, 30, 200), (650, 100, 120), (400, 400, 60)):
        canvas[y : y + side, x : x + side] = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
    rgb = canvas[..., ::-1]
    (everything,) = Labeler(config=LabelingConfig(detector_side=1280)).label([rgb])
    heights = [found.bbox[3] for found in everything.faces]
    assert len(heights) == 4
    assert heights == sorted(heights, reverse=True)
    (large,) = Labeler(config=LabelingConfig(detector_side=1280, min_face_size=80)).label([rgb])
    assert len(large.faces) == 2
    assert large.left_out_count == everything.left_out_count + 2


def test_trouble_is_a_status_with_a_sentence(labeler: Labeler, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    wrong_array = np.zeros((4, 4, 7), np.uint8)
    answers = labeler.label([tmp_path / "gone.jpg", tmp_path, tmp_path / "text.jpg", b"", wrong_array, np.zeros((1, 1), np.uint8)])
    unreadable, undecodable = Status.UNREADABLE, Status.UNDECODABLE
    assert [answer.status for answer in answers] == [unreadable, unreadable, undecodable, undecodable, undecodable, Status.NO_FACE]
    assert all(answer.error and answer.error.endswith(".") for answer in answers[:5])


def test_an_unsure_emotion_is_unknown_under_the_threshold(photographs: dict[str, Path]) -> None:
    (image,) = Labeler(config=LabelingConfig(unknown_below=1.0)).label([photographs["astronaut"]])
    assert image.faces[0].emotion == "unknown"
    assert image.faces[0].confidence < 1


def test_a_crop_follows_the_face_at_every_size_turn_and_edge(photographs: dict[str, Path]) -> None:
    photograph = read_bgr(photographs["astronaut"])
    detector = FaceDetector(480, 0.6)
    geometry = CropGeometry()
    (face,), _ = detector.detect(photograph)
    reference = crop_face(photograph, face, 48, geometry).astype(int)
    for factor in (0.5, 2, 6):
        scaled = type(face)(tuple(factor * v for v in face.bbox), face.landmarks * np.float32(factor), face.score)  # type: ignore[arg-type]
        assert np.abs(crop_face(resized(photograph, factor), scaled, 48, geometry) - reference).mean() < 5
    x, y, _, height = (int(v) for v in face.bbox)
    cut = photograph[y + height // 2 :, x:]  # only a quarter of the face is left
    moved = type(face)((0.0, -height / 2, *face.bbox[2:]), face.landmarks - np.array([x, y + height // 2], np.float32), face.score)
    assert crop_face(cut, moved, 48, geometry).shape == (48, 48)
