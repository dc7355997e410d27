"""What the labeler says about images: faces with emotions, as objects, as tables and as pictures."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from fer_ray.config.crop import CropGeometry
from fer_ray.config.recipe import RGB
from fer_ray.emotions import EMOTIONS
from fer_ray.errors import UsageError
from fer_ray.schema import CROP_STRUCT, FACE_STRUCT, IMAGES, LANDMARKS, Status
from fer_ray.typing import Float32Array, UInt8Array
from fer_ray.vision.crop import KeptCrop, crop_face
from fer_ray.vision.decode import DecodedImage
from fer_ray.vision.draw import Box, draw_faces
from fer_ray.vision.pose import head_pose

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

Table = Literal["faces", "images"]

_CROP_SIDE = 160  # pixels: enough to see an expression
_IMAGE_COLUMNS = (
    "image_uri",
    "status",
    "error",
    "face_count",
    "left_out_count",
    "width",
    "height",
    "size_bytes",
    "content_sha256",
    "format",
    "taken_at",
    "taken_offset_minutes",
    "camera_make",
    "camera_model",
    "latitude",
    "longitude",
)


@dataclass(frozen=True)
class Face:
    """One face. `bbox` is x, y, width, height and `landmarks` (5, 2) float32 points, in pixels of the upright original.

    Landmarks are left eye, right eye, nose, left and right corner of the mouth; left and right are the subject's own.
    `probabilities` are calibrated and add up to 1; `emotion` is the likeliest, `unknown` below the given threshold.
    `quality` says how much of the face can be read, `occluded` how likely mouth or eyes are covered (`fer_ray.vision.quality`).
    `kept` is the crop for later models, where one was asked for.
    """

    bbox: tuple[int, int, int, int]
    detection_score: float
    landmarks: Float32Array
    sharpness: float
    emotion: str
    confidence: float
    probabilities: dict[str, float]
    quality: float | None = None
    occluded: float | None = None
    kept: KeptCrop | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class LabeledImage:
    """What became of an image: its status, the faces with the largest first, and how many were too small or too doubtful.

    `format` and what the camera recorded (`taken_at` by its clock, `taken_offset_minutes` ahead of UTC) are None where they are not
    known, latitude and longitude also without the option `location`.
    `image_uri` is the path or address that was given, None for an image that came without one. A frame of a film has its time in
    it, and the colours of its scene. An answer of `Labeler.label`
    holds on to what it was given (a path, the bytes, the pixels), so that it can be drawn and cut.
    """

    status: Status
    error: str | None = None
    width: int | None = None
    height: int | None = None
    size_bytes: int | None = None
    content_sha256: str | None = None
    faces: list[Face] = field(default_factory=list)
    left_out_count: int = 0
    image_uri: str | None = None
    format: str | None = None
    taken_at: datetime.datetime | None = None
    taken_offset_minutes: int | None = None
    camera_make: str | None = None
    camera_model: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    frame_time_ms: int | None = None
    scene: bytes | None = field(default=None, repr=False)
    _read_again: Callable[[], DecodedImage] | None = field(default=None, repr=False, compare=False)

    def draw(self) -> Image.Image:
        """The image with a box and a label for each face, in the colour of its emotion; no label covers a face.

        Returns:
            A new picture, upright and in full size, higher than the image where labels had no room in it.

        Raises:
            ImageError: the image cannot be read, or not any more.
            UsageError: the answer does not come from `Labeler.label`.
        """
        return draw_faces(self._pixels()[..., ::-1], [Box(face.bbox, face.emotion, face.confidence) for face in self.faces])

    def crops(self, side: int = _CROP_SIDE) -> list[UInt8Array]:
        """The faces cut out, in their order: squares (side, side, 3) uint8 RGB with the eyes level.

        Raises:
            ImageError: the image cannot be read, or not any more.
            UsageError: the answer does not come from `Labeler.label`.
        """
        pixels = self._pixels() if self.faces else np.empty((0, 0, 3), np.uint8)
        return [crop_face(pixels, face, side, CropGeometry(), RGB) for face in self.faces]

    def to_arrow(self, table: Table = "faces") -> pa.Table:
        """A row for each face, or the row of the image; see `LabeledImages.to_arrow`."""
        return LabeledImages([self]).to_arrow(table)

    def to_pandas(self, table: Table = "faces") -> pd.DataFrame:
        """A row for each face, or the row of the image; see `LabeledImages.to_arrow`."""
        return LabeledImages([self]).to_pandas(table)

    def _pixels(self) -> UInt8Array:
        if self._read_again is None:
            raise UsageError("This answer does not know its image: draw and cut answers of Labeler.label.")
        return self._read_again().pixels


class LabeledImages(list[LabeledImage]):
    """The answers for many images, in their order: a list that is a table too."""

    def to_arrow(self, table: Table = "faces") -> pa.Table:
        """The answers as a table, with the columns of the tables that `fer-ray label` writes.

        Args:
            table: `faces` for a row per face, `images` for a row per image, whatever happened to it.

        Returns:
            `image_index`, the place of the image among the answers, which joins the two; `image_uri`, null for an image
            that came without a path; and the columns that are about the face or the image.

        Raises:
            UsageError: there is no such table.
        """
        if table == "images":
            return pa.table({"image_index": pa.array(range(len(self)), pa.int32()), **image_columns(self)})
        if table != "faces":
            raise UsageError(f"There is no table {table!r}: name faces or images.")
        owners = [(index, image.image_uri) for index, image in enumerate(self) for _ in image.faces]
        faces = face_structs(self)
        return pa.table(
            {
                "image_index": pa.array([index for index, _ in owners], pa.int32()),
                "image_uri": pa.array([uri for _, uri in owners], pa.string()),
                **dict(zip([field.name for field in FACE_STRUCT], faces.flatten(), strict=True)),
            }
        )

    def to_pandas(self, table: Table = "faces") -> pd.DataFrame:
        """The same as a data frame."""
        frame: pd.DataFrame = self.to_arrow(table).to_pandas()
        return frame


def image_columns(images: Sequence[LabeledImage]) -> dict[str, pa.Array]:
    """What is known about each image itself, by column of the table `images`."""
    columns: dict[str, list[Any]] = {name: [] for name in _IMAGE_COLUMNS}
    for image in images:
        for name in _IMAGE_COLUMNS:
            columns[name].append(len(image.faces) if name == "face_count" else getattr(image, name))
    return {name: pa.array(values, IMAGES.field(name).type) for name, values in columns.items()}


def nested_faces(images: Sequence[LabeledImage]) -> pa.ListArray:
    """For each image the list of its faces, each a struct with the columns of the table `faces`."""
    return _per_image(images, face_structs(images))


def nested_crops(images: Sequence[LabeledImage]) -> pa.ListArray:
    """For each image the list of its faces' kept crops, each a struct with the columns of the table `crops`."""
    kept = [face.kept for image in images for face in image.faces if face.kept]
    boxes = np.array([crop.box for crop in kept], np.float32).reshape(-1, 4)
    columns = [pa.array([crop.jpeg for crop in kept], pa.binary()), *(pa.array(boxes[:, i]) for i in range(4))]
    return _per_image(images, pa.StructArray.from_arrays(columns, fields=list(CROP_STRUCT)))


def _per_image(images: Sequence[LabeledImage], values: pa.StructArray) -> pa.ListArray:
    ends = np.cumsum([0, *(len(image.faces) for image in images)])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values)


def face_structs(images: Sequence[LabeledImage]) -> pa.StructArray:
    """The faces of all images, column by column: rows of dicts would cost more than detection."""
    faces = [face for image in images for face in image.faces]
    boxes = np.array([face.bbox for face in faces], np.int32).reshape(-1, 4)
    landmarks = np.array([face.landmarks for face in faces], np.float32).reshape(-1, 2 * len(LANDMARKS))
    poses = head_pose(landmarks.reshape(-1, len(LANDMARKS), 2))
    columns: dict[str, Any] = {
        "face_index": [index for image in images for index in range(len(image.faces))],
        **{f"bbox_{part}": boxes[:, i] for i, part in enumerate(("x", "y", "width", "height"))},
        "detection_score": [face.detection_score for face in faces],
        **{f"{name}_{axis}": landmarks[:, 2 * i + j] for i, name in enumerate(LANDMARKS) for j, axis in enumerate("xy")},
        "sharpness": [face.sharpness for face in faces],
        "quality": [face.quality for face in faces],
        "occluded": [face.occluded for face in faces],
        "emotion": [face.emotion for face in faces],
        "confidence": [face.confidence for face in faces],
        **{f"prob_{emotion}": [face.probabilities.get(emotion) for face in faces] for emotion in EMOTIONS},
    }
    columns |= {name: pa.array(poses[:, i], from_pandas=True) for i, name in enumerate(("yaw", "pitch", "roll"))}
    fields = list(FACE_STRUCT)
    nothing = [None] * len(faces)
    return pa.StructArray.from_arrays([pa.array(columns.get(field.name, nothing), field.type) for field in fields], fields=fields)
