"""The names and types of everything written: statuses, and the pyarrow schemas of the tables."""

import datetime
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import pyarrow as pa

from fer_ray.emotions import EMOTIONS


class Status(StrEnum):
    """What became of an image."""

    OK = "ok"
    NO_FACE = "no_face"
    UNREADABLE = "unreadable"
    UNDECODABLE = "undecodable"
    TOO_LARGE = "too_large"
    ARCHIVED = "archived"

    @property
    def is_failure(self) -> bool:
        """Whether the image could not be looked at: its row has the reason in `error`. What is archived only waits."""
        return self not in (Status.OK, Status.NO_FACE, Status.ARCHIVED)


class RunStatus(StrEnum):
    """What is to be said of a committed run as a whole."""

    DONE = "done"
    TOO_MANY_FAILED = "too_many_failed"
    FEWER_FACES = "fewer_faces"
    DRIFTED = "drifted"


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One listed image.

    An image inside an archive lies `data_offset` bytes into `archive_uri`; its etag and time are the archive's. In a zip that
    is where its header begins, and `packed_bytes` follow. What is known beforehand to give no image has the `status` and the
    `error` of its row, and is not read.
    """

    image_uri: str
    size_bytes: int | None
    modified_at: datetime.datetime | None
    etag: str | None = None
    archive_uri: str | None = None
    data_offset: int | None = None
    packed_bytes: int | None = None
    status: str | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        if self.modified_at is not None and not FIRST_YEAR <= self.modified_at.year <= LAST_YEAR:
            object.__setattr__(self, "modified_at", None)


COLD_CLASSES = ("GLACIER", "DEEP_ARCHIVE")  # storage classes of S3 whose objects must be restored before they can be read
FIRST_YEAR, LAST_YEAR = 1678, 2261  # whole years that every reader of the tables can hold, those that count nanoseconds too
SCHEMA_VERSION = 2  # 2: what came with release 0.2, each of its columns nullable
ENTRIES_PER_BATCH = 8192
# Names that are taken for images in data sets and tar archives; what is given as an input of `label` is tried whatever its name.
IMAGE_SUFFIXES = frozenset(
    (
        ".arw",
        ".avif",
        ".bmp",
        ".cr2",
        ".cr3",
        ".dng",
        ".gif",
        ".heic",
        ".heif",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".nef",
        ".nrw",
        ".orf",
        ".pbm",
        ".pef",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".raf",
        ".rw2",
        ".tif",
        ".tiff",
        ".webp",
    )
)
# Names that are taken for films, and not for images: containers of frames, as archives are containers of images.
VIDEO_SUFFIXES = frozenset((".3gp", ".avi", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm"))
LANDMARKS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
_TIMESTAMP = pa.timestamp("us", tz="UTC")


def _required(name: str, kind: pa.DataType, meaning: str = "") -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata={"comment": meaning} if meaning else None)


def _optional(name: str, kind: pa.DataType, meaning: str = "") -> pa.Field:
    return _required(name, kind, meaning).with_nullable(True)


def _since_2(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    """A column that rows of schema version 1 do not have: it reads as null there."""
    return pa.field(name, kind, metadata={"comment": meaning, "since": "2"})


_VERSIONS = [
    _required("model_version", pa.string(), "the model, named after a hash of its weights and metadata"),
    _required("detector_version", pa.string(), "the face detector with the settings that change what it finds"),
]
_SCHEMA_VERSION_FIELD = _required("schema_version", pa.int32(), "version of these columns, raised when one is added")
_MODEL_NAME = _since_2("model_name", pa.string(), "the name that the model was asked for by, such as ferplus, or of its folder")
_CROPS_RUN = _since_2("crops_run_id", pa.string(), "the run that kept the crops of the image's faces, as in crops; null where none did")
_PROVENANCE = [
    *_VERSIONS,
    _required("run_id", pa.string(), "the run that wrote the row, as in runs"),
    _required("labeled_at", _TIMESTAMP, "when the image was labeled"),
    _SCHEMA_VERSION_FIELD,
    _MODEL_NAME,
    _CROPS_RUN,
]

LISTING = pa.schema(
    [
        _required("image_uri", pa.string()),
        _optional("size_bytes", pa.int64()),
        _optional("modified_at", _TIMESTAMP),
        _optional("etag", pa.string()),
        _optional("archive_uri", pa.string()),
        _optional("data_offset", pa.int64()),
        _optional("packed_bytes", pa.int64()),
        _optional("status", pa.string()),
        _optional("error", pa.string()),
    ]
)
# A film that reads has a row for each of its stretches, which gives a row of `images` for each frame from start_ms to before end_ms.
STRETCH = pa.schema([_optional("start_ms", pa.int64()), _optional("end_ms", pa.int64()), _optional("frames", pa.int64())])
GONE = pa.schema(
    [
        _required("image_uri", pa.string(), "an image, or a film, that runs had labeled"),
        _required("gone", pa.bool_(), "whether the listing lacks it, or has it again"),
        _required("run_id", pa.string(), "the run that listed"),
    ]
)
MANIFEST = pa.schema([_required("row_number", pa.int64()), *LISTING, *STRETCH])

_BOX = {"x": "left edge", "y": "top edge", "width": "width", "height": "height"}
_FACE_FIELDS = [
    _required("face_index", pa.int32(), "place among the faces of the image, 0 is the largest"),
    *(_required(f"bbox_{part}", pa.int32(), f"{edge} of the face's box, pixels of the upright image") for part, edge in _BOX.items()),
    _required("detection_score", pa.float32(), "how sure the detector is that this is a face, 0 to 1"),
    *(
        _optional(f"{landmark}_{axis}", pa.float32(), f"{axis} of the subject's {landmark.replace('_', ' ')}, pixels of the upright image")
        for landmark in LANDMARKS
        for axis in "xy"
    ),
    _optional("sharpness", pa.float32(), "variance of the Laplacian of the gray crop that the model saw, low where the face is blurred"),
    _required("emotion", pa.string(), "the likeliest of the model's emotions, or unknown below the run's threshold"),
    _required("confidence", pa.float32(), "calibrated probability of the likeliest emotion, 0 to 1, also where emotion is unknown"),
    *(
        _optional(f"prob_{emotion}", pa.float32(), f"calibrated probability of {emotion}, 0 to 1, null when the model has no such class")
        for emotion in EMOTIONS
    ),
]
# What version 2 added stands last in its table: whoever reads columns by their place finds the old ones where they were.
_FACE_FIELDS_2 = [
    _since_2("yaw", pa.float32(), "degrees that the head is turned, above 0 towards the right edge of the image, from the landmarks"),
    _since_2("pitch", pa.float32(), "degrees that the head is raised, below 0 where it is bowed, from the landmarks"),
    _since_2(
        "roll", pa.float32(), "degrees that the head is tilted clockwise in the image, from the landmarks, which follow a tilt in part"
    ),
    _since_2("quality", pa.float32(), "how much of the answer to a faultless picture is left, 0 to 1, low for small, poor, covered faces"),
    _since_2("occluded", pa.float32(), "probability that mouth or eyes are covered (a mask, dark glasses, a hand), 0 to 1"),
]

_IDENTITY = [
    _required("image_uri", pa.string(), "where the image was read from; archive.tar#name inside a tar or zip, film.mp4#t=12.480 in a film"),
    _required("image_id", pa.string(), "join key: SHA-256 of image_uri, its first 16 bytes in hex"),
]
_IN_FILM = [
    _since_2("video_uri", pa.string(), "the film that the frame is from, or that failed; null for photographs"),
    _since_2("frame_time_ms", pa.int64(), "when the frame is shown, milliseconds from the film's beginning; null for what is no frame"),
]
_TRACK_ID = _since_2("track_id", pa.int32(), "the face's track in its film, which joins with run_id and video_uri; null for photographs")
_IMAGE_FIELDS = [
    *_IDENTITY,
    _required("status", pa.string(), "what became of the image: " + ", ".join(Status)),
    _optional("error", pa.string(), "the reason in a sentence, null when status is ok or no_face"),
    _required("face_count", pa.int32(), "rows of the image in faces"),
    _required("left_out_count", pa.int32(), "faces that were found but left out as too small or too doubtful"),
    _optional("width", pa.int32(), "pixels of the upright image (EXIF orientation applied), null when it was not decoded"),
    _optional("height", pa.int32(), "pixels of the upright image, null when it was not decoded"),
    _optional("size_bytes", pa.int64(), "size of the file in bytes, null when unknown"),
    _optional("modified_at", _TIMESTAMP, "when the file was last changed, null when unknown"),
    _optional("etag", pa.string(), "the object store's etag, null for files"),
    _optional("content_sha256", pa.string(), "SHA-256 of the file's bytes in hex, null when they were not read"),
]
_IMAGE_FIELDS_2 = [
    _since_2("format", pa.string(), "JPEG, PNG, HEIF, RAW and so on, by the bytes and whatever the name says; null when not known"),
    _since_2("relative_path", pa.string(), "the path below the input, the same wherever the input is mounted"),
    _since_2("folder", pa.string(), "the folder of relative_path, empty for images that lie in the input itself"),
    _since_2("taken_at", pa.timestamp("us"), "when the picture was taken by the clock of its camera (EXIF, XMP), never the file's time"),
    _since_2("taken_offset_minutes", pa.int32(), "minutes that this clock was ahead of UTC, null when the camera did not record it"),
    _since_2("camera_make", pa.string(), "maker of the camera as recorded"),
    _since_2("camera_model", pa.string(), "model of the camera as recorded"),
    _since_2("latitude", pa.float64(), "degrees north of the equator where it was taken; null unless asked for with --location"),
    _since_2("longitude", pa.float64(), "degrees east of Greenwich; null unless asked for with --location"),
]

IMAGES = pa.schema([*_IMAGE_FIELDS, *_PROVENANCE, *_IMAGE_FIELDS_2, *_IN_FILM])
FACES = pa.schema([*_IDENTITY, *_FACE_FIELDS, *_PROVENANCE, *_FACE_FIELDS_2, *_IN_FILM, _TRACK_ID])
FACE_STRUCT = pa.struct([*_FACE_FIELDS, *_FACE_FIELDS_2])
_STAGED = [_required("faces", pa.list_(FACE_STRUCT)), _optional("scene", pa.binary())]  # the colours of a frame, as in `video.frames`
STAGING = pa.schema([_required("row_number", pa.int64()), *IMAGES, *_STAGED])
TRACKS = pa.schema(
    [
        _since_2("video_uri", pa.string(), "the film"),
        _since_2("track_id", pa.int32(), "number of the face in its film, from 0 in the order of their first frames"),
        _since_2("start_ms", pa.int64(), "the first frame with the face, milliseconds from the film's beginning"),
        _since_2("end_ms", pa.int64(), "the last one"),
        _since_2("frames", pa.int32(), "frames with the face, rows in faces"),
        _since_2("seconds", pa.float64(), "how long the face is shown: each of its frames until the next that was looked at"),
        *(_since_2(f"bbox_{part}", pa.float32(), f"{edge} of the face's box, the mean of its frames") for part, edge in _BOX.items()),
        _since_2("emotion", pa.string(), "the emotion that leads for most of this time"),
        _since_2("confidence", pa.float32(), "its calibrated probability, the mean over this time"),
        *(
            _since_2(f"share_{emotion}", pa.float32(), f"share of this time in which {emotion} leads, smoothed over neighbouring frames")
            for emotion in EMOTIONS
        ),
        *(_since_2(field.name, field.type, field.metadata[b"comment"].decode()) for field in _PROVENANCE if field is not _CROPS_RUN),
    ]
)

_CROP_FIELDS = [
    _required("jpeg", pa.binary(), "the face with its surroundings, cut out upright, as a JPEG"),
    *(_required(f"box_{part}", pa.float32(), f"{edge} of the face's box, pixels of the crop") for part, edge in _BOX.items()),
]
CROP_STRUCT = pa.struct(_CROP_FIELDS)
CROPS = pa.schema(
    [
        _IDENTITY[1],
        _FACE_FIELDS[0],
        *_CROP_FIELDS,
        _required("run_id", pa.string(), "the run that kept the crop, crops_run_id in images and faces"),
        _SCHEMA_VERSION_FIELD,
    ]
)
STAGING_WITH_CROPS = STAGING.append(_required("crops", pa.list_(CROP_STRUCT)))

_IMAGE_COUNTS = {
    "total": "images labeled, one row each in images",
    "ok": "images with at least one face",
    "no_face": "images without a face",
    "failed": "images that are unreadable, undecodable or too large",
    "skipped": "images of the input that earlier runs had labeled already",
}
RUNS = pa.schema(
    [
        _required("run_id", pa.string(), "name of the run"),
        _required("run_date", pa.date32(), "date of the run, the run_date=... folder of its rows"),
        _required("started_at", _TIMESTAMP, "when the run was first started"),
        _required("finished_at", _TIMESTAMP, "when the run was committed, later than all runs before"),
        _required("status", pa.string(), "done, or what an operator should look at: " + ", ".join(list(RunStatus)[1:])),
        _required("input_uri", pa.string(), "what was labeled, several inputs joined by a comma"),
        _required(
            "config_json",
            pa.string(),
            "the request and all settings, images_ignored (files that were no image by their names) and images_forgotten, JSON",
        ),
        _required("fer_ray_version", pa.string(), "version of fer_ray"),
        _required("ray_version", pa.string(), "version of Ray"),
        _optional("git_commit", pa.string(), "commit of the code, null outside a checkout"),
        *_VERSIONS,
        *(_required(f"images_{what}", pa.int64(), meaning) for what, meaning in _IMAGE_COUNTS.items()),
        _required("faces_total", pa.int64(), "faces labeled, one row each in faces"),
        _required("faces_left_out", pa.int64(), "faces left out as too small or too doubtful"),
        _required("images_per_second", pa.float32(), "rate of the start that finished the run, 0 when it had nothing left to label"),
        _required("cpu_count", pa.int32(), "CPUs of the cluster, or of the machine for a few images; 0 when there was nothing to label"),
        _required("gpu_count", pa.int32(), "GPUs of the cluster"),
        _required("top_errors_json", pa.string(), "the commonest errors with their counts, JSON"),
        _SCHEMA_VERSION_FIELD,
        _MODEL_NAME,
        _since_2("latest_model_version", pa.string(), "the model that images_latest and faces_latest show from this run on"),
        _since_2("images_gone", pa.int64(), "images that earlier runs labeled and that this listing lacks; null when it was not complete"),
        _since_2("error_share", pa.float32(), "share of the images that failed, of those that were tried, 0 to 1"),
        _since_2(
            "drift_psi",
            pa.float32(),
            "PSI of the folder whose emotions moved most since earlier runs, 0 by chance, null when unknown",
        ),
        _since_2("drift_folder", pa.string(), "that folder; null where none moved, or small ones together"),
        _since_2("mix_psi", pa.float32(), "PSI of emotions that comes from this run's mix of folders alone; null with too few faces"),
        _since_2("faces_ratio", pa.float32(), "faces per image against earlier runs in the same folders, 1 where nothing changed"),
    ]
)


def archived(entry: ImageEntry, storage_class: str) -> ImageEntry:
    """The entry of an object that is not asked for before it is restored."""
    return replace(entry, status=Status.ARCHIVED, error=f"The object is archived ({storage_class}): restore it, and it will be labeled.")


def time_of(seconds: float) -> datetime.datetime | None:
    """The time in UTC so many seconds after 1970; None where that is no year of a calendar."""
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return None


def as_batches(entries: Iterable[ImageEntry]) -> Iterator[pa.RecordBatch]:
    """The entries as Arrow batches of the schema LISTING."""
    columns: dict[str, list[Any]] = {name: [] for name in LISTING.names}
    appends = [(columns[name].append, name) for name in LISTING.names]
    count = 0
    for entry in entries:
        for append, name in appends:
            append(getattr(entry, name))
        count += 1
        if count == ENTRIES_PER_BATCH:
            yield _batch(columns)
            for values in columns.values():
                values.clear()
            count = 0
    if count:
        yield _batch(columns)


def _batch(columns: dict[str, list[Any]]) -> pa.RecordBatch:
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in LISTING], schema=LISTING)


def image_id(image_uri: str) -> str:
    """The join key of `images` and `faces`: the first 16 bytes of SHA-256 over the URI, in hex."""
    return hashlib.sha256(image_uri.encode()).hexdigest()[:32]


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns of the schema in their order: null in those that an older version did not have.

    Raises:
        KeyError: it lacks a column that is never null.
    """
    columns = [
        pa.nulls(len(table), field.type) if field.nullable and field.name not in table.column_names else table[field.name].cast(field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def since(field: pa.Field) -> int:
    """The schema version that a column of `IMAGES`, `FACES` or `RUNS` came with."""
    return int(field.metadata.get(b"since", b"1"))


def meaning_of(field: pa.Field) -> str:
    """What a column of `IMAGES`, `FACES` or `RUNS` means, in a phrase; it also stands in the metadata of the Parquet files."""
    return str(field.metadata[b"comment"].decode())
