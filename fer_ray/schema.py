"""The names and types of everything written: emotions, statuses, and the pyarrow schemas of the tables."""

import datetime
import hashlib
from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa

EMOTIONS = ("angry", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise")

_SPELLINGS = {
    "angry": ("anger",),
    "contempt": ("contemptuous",),
    "disgust": ("disgusted",),
    "fear": ("fearful", "afraid", "scared"),
    "happy": ("happiness", "joy"),
    "neutral": (),
    "sad": ("sadness",),
    "surprise": ("surprised",),
}
_EMOTION_OF = {spelling: emotion for emotion, others in _SPELLINGS.items() for spelling in (emotion, *others)}


class Status(StrEnum):
    """What became of an image."""

    OK = "ok"
    NO_FACE = "no_face"
    UNREADABLE = "unreadable"
    UNDECODABLE = "undecodable"
    TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One listed image. What cannot even be looked at has no size; its row will say why it is unreadable.

    An image inside a tar archive lies `data_offset` bytes into `archive_uri`; its etag and time are the archive's.
    """

    image_uri: str
    size_bytes: int | None
    modified_at: datetime.datetime | None
    etag: str | None = None
    archive_uri: str | None = None
    data_offset: int | None = None


def emotion_of(name: str) -> str | None:
    """The canonical emotion for a spelling such as `Angry`, `anger` or `happiness`; None when it names no emotion."""
    return _EMOTION_OF.get(name.strip().lower())


SCHEMA_VERSION = 1
LANDMARKS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
_TIMESTAMP = pa.timestamp("us", tz="UTC")


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_PROVENANCE = [
    _required("model_version", pa.string()),
    _required("detector_version", pa.string()),
    _required("run_id", pa.string()),
    _required("labeled_at", _TIMESTAMP),
    _required("schema_version", pa.int32()),
]

LISTING = pa.schema(
    [
        _required("image_uri", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("modified_at", _TIMESTAMP),
        pa.field("etag", pa.string()),
        pa.field("archive_uri", pa.string()),
        pa.field("data_offset", pa.int64()),
    ]
)
MANIFEST = pa.schema([_required("row_number", pa.int64()), *LISTING])

_FACE_FIELDS = [
    _required("face_index", pa.int32()),
    *(_required(f"bbox_{part}", pa.int32()) for part in ("x", "y", "width", "height")),
    _required("detection_score", pa.float32()),
    *(pa.field(f"{landmark}_{axis}", pa.float32()) for landmark in LANDMARKS for axis in "xy"),
    pa.field("sharpness", pa.float32()),
    _required("emotion", pa.string()),
    _required("confidence", pa.float32()),
    *(pa.field(f"prob_{emotion}", pa.float32()) for emotion in EMOTIONS),
]

_IMAGE_FIELDS = [
    _required("image_uri", pa.string()),
    _required("image_id", pa.string()),
    _required("status", pa.string()),
    pa.field("error", pa.string()),
    _required("face_count", pa.int32()),
    _required("left_out_count", pa.int32()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("size_bytes", pa.int64()),
    pa.field("modified_at", _TIMESTAMP),
    pa.field("etag", pa.string()),
    pa.field("content_sha256", pa.string()),
]

IMAGES = pa.schema([*_IMAGE_FIELDS, *_PROVENANCE])
FACES = pa.schema([_required("image_uri", pa.string()), _required("image_id", pa.string()), *_FACE_FIELDS, *_PROVENANCE])
STAGING = pa.schema([_required("row_number", pa.int64()), *IMAGES, _required("faces", pa.list_(pa.struct(_FACE_FIELDS)))])
RUNS = pa.schema(
    [
        _required("run_id", pa.string()),
        _required("run_date", pa.date32()),
        _required("started_at", _TIMESTAMP),
        _required("finished_at", _TIMESTAMP),
        _required("status", pa.string()),
        _required("input_uri", pa.string()),
        _required("config_json", pa.string()),
        _required("fer_ray_version", pa.string()),
        _required("ray_version", pa.string()),
        pa.field("git_commit", pa.string()),
        _required("model_version", pa.string()),
        _required("detector_version", pa.string()),
        *(_required(f"images_{what}", pa.int64()) for what in ("total", "ok", "no_face", "failed", "skipped")),
        _required("faces_total", pa.int64()),
        _required("faces_left_out", pa.int64()),
        _required("images_per_second", pa.float32()),
        _required("cpu_count", pa.int32()),
        _required("gpu_count", pa.int32()),
        _required("top_errors_json", pa.string()),
        _required("schema_version", pa.int32()),
    ]
)


def image_id(image_uri: str) -> str:
    """The join key of `images` and `faces`: the first 16 bytes of SHA-256 over the URI, in hex."""
    return hashlib.sha256(image_uri.encode()).hexdigest()[:32]
