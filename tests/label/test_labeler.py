"""The library: faces where they are, the same answer however an image is handed in."""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pictures import read_bgr, resized
from PIL import Image

from fer_ray import LabeledImage, Labeler, UsageError
from fer_ray.config.crop import CropGeometry
from fer_ray.config.jobs.label import LabelingOptions
from fer_ray.schema import FACES, IMAGES, Status
from fer_ray.vision.crop import crop_face
from fer_ray.vision.detector import FaceDetector


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
        rgb, content = np.ascontiguousarray(read_bgr(path)[..., ::-1]), path.read_bytes()
        rgba = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
        forms: list[Any] = [
            path,
            str(path),
            content,
            bytearray(content),
            memoryview(content),
            io.BytesIO(content),
            rgb,
            rgba,
            Image.open(path),
        ]
        chosen: list[Any] = [*forms, rgb[None]] if path == paths[0] else [path, rgb]
        for form in chosen:
            answer = labeler.label(form)
            (alone,) = answer if isinstance(answer, list) else [answer]
            assert isinstance(answer, list) == (getattr(form, "ndim", 0) == 4), "a batch array is many images"
            assert [face.bbox for face in alone.faces] == [face.bbox for face in image.faces]
            for one, other in zip(alone.faces, image.faces, strict=True):
                assert list(one.probabilities.values()) == pytest.approx(list(other.probabilities.values()), abs=1e-4)


def test_a_photograph_lies_upright_whether_pillow_opened_it_or_not(labeler: Labeler, photographs: dict[str, Path]) -> None:
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.open(photographs["astronaut"]).convert("RGB").transpose(Image.Transpose.ROTATE_90).save(turned, "PNG", exif=exif)
    turned.seek(0)
    opened = Image.open(turned)
    expected = labeler.label(photographs["astronaut"])
    for image in (opened, turned.getvalue(), opened):
        assert labeler.label(image).faces[0].bbox == expected.faces[0].bbox
    gray = labeler.label(np.asarray(Image.open(photographs["astronaut"]).convert("L")))
    assert gray.faces[0].bbox == pytest.approx(expected.faces[0].bbox, abs=8)


def test_what_holds_no_image_is_refused_by_its_name(labeler: Labeler, photographs: dict[str, Path]) -> None:
    refused: dict[str, Any] = {
        r"array \(4, 4, 3\) of float64: give uint8": np.zeros((4, 4, 3)),
        r"array \(4, 4, 7\) of uint8": np.zeros((4, 4, 7), np.uint8),
        r"Image 0 is an array \(0, 4\)": [np.zeros((0, 4), np.uint8)],
        "cannot be a NoneType: give a path": None,
        "cannot be a dict": {"path": "one.jpg"},
        "cannot be a DataFrame": labeler.label(photographs["camera"]).to_pandas(),
        "Image 1 cannot be a list": [photographs["camera"], [1, 2]],
        "at an ftp:// address, which cannot be read": "ftp://example.org/one.jpg?token=secret",
        "does not give bytes: open it with mode 'rb'": io.StringIO("text"),
    }
    for complaint, image in refused.items():
        with pytest.raises(UsageError, match=complaint) as caught:
            labeler.label(image)
        assert "secret" not in str(caught.value)
    for settings in ({"min_face_sise": 40}, {"min_face_size": "small"}):
        with pytest.raises(UsageError, match=r"min_face_sise: did you mean min_face_size\?|min_face_size must be a whole number"):
            Labeler(**settings)


def test_answers_are_tables_with_the_names_of_the_job_s_tables(labeler: Labeler, photographs: dict[str, Path], tmp_path: Path) -> None:
    paths = [photographs["chelsea"], tmp_path / "gone.jpg", photographs["astronaut"]]
    answers = labeler.label(paths)
    faces, images = answers.to_arrow(), answers.to_arrow("images")
    assert set(faces.column_names) - {"image_index"} <= set(FACES.names)
    assert set(images.column_names) - {"image_index"} <= set(IMAGES.names)
    assert images["status"].to_pylist() == ["no_face", "unreadable", "ok"]
    assert images["image_uri"].to_pylist() == [str(path) for path in paths]
    (row,) = answers.to_pandas().to_dict("records")
    assert (row["image_index"], row["image_uri"], row["emotion"]) == (2, str(photographs["astronaut"]), "happy")
    assert tuple(row[f"bbox_{part}"] for part in ("x", "y", "width", "height")) == answers[2].faces[0].bbox
    assert labeler.label([]).to_pandas().columns.tolist() == faces.column_names, "also without a face"
    assert answers[2].to_arrow("images")["face_count"].to_pylist() == [1]


def test_answers_draw_and_cut_their_faces(labeler: Labeler, photographs: dict[str, Path]) -> None:
    answer = labeler.label(photographs["astronaut"].read_bytes())
    drawn, original = np.asarray(answer.draw()), read_bgr(photographs["astronaut"])[..., ::-1]
    x, y, width, height = answer.faces[0].bbox
    inside = (slice(y + 8, y + height - 8), slice(x + 8, x + width - 8))
    assert drawn.shape == original.shape
    assert (drawn[inside] == original[inside]).all(), "nothing lies on the face"
    assert (drawn != original).any()
    (crop,) = answer.crops(96)
    assert crop.shape == (96, 96, 3)
    again = labeler.label(cv2.resize(crop, (300, 300)))
    assert again.faces[0].bbox[3] > 150, "the crop is full of the face"
    with pytest.raises(UsageError, match="does not know its image"):
        LabeledImage(Status.OK).draw()


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
    (everything,) = Labeler(detector_side=1280).label([rgb])
    heights = [found.bbox[3] for found in everything.faces]
    assert len(heights) == 4
    assert heights == sorted(heights, reverse=True)
    (large,) = Labeler(options=LabelingOptions(detector_side=1280), min_face_size=80).label([rgb])
    assert len(large.faces) == 2
    assert large.left_out_count == everything.left_out_count + 2


def test_trouble_is_a_status_with_a_sentence(labeler: Labeler, photographs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    broken_off = Image.open(io.BytesIO(photographs["astronaut"].read_bytes()[:90_000]))
    answers = labeler.label([tmp_path / "gone.jpg", tmp_path, tmp_path / "text.jpg", b"", broken_off, np.zeros((1, 1), np.uint8)])
    unreadable, undecodable = Status.UNREADABLE, Status.UNDECODABLE
    assert [answer.status for answer in answers] == [unreadable, unreadable, undecodable, undecodable, undecodable, Status.NO_FACE]
    assert all(answer.error and answer.error.endswith(".") for answer in answers[:5])


def test_an_unsure_emotion_is_unknown_under_the_threshold(photographs: dict[str, Path]) -> None:
    (image,) = Labeler(unknown_below=1.0).label([photographs["astronaut"]])
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
