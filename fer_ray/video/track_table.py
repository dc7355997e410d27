"""The table `tracks`, and the column `track_id` of `faces`: made of a run's rows when they are published, film after film."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from fer_ray.emotions import EMOTIONS
from fer_ray.schema import FACES, TRACKS
from fer_ray.typing import Float64Array
from fer_ray.video.tracks import Track, Tracker

_BOX = ("bbox_x", "bbox_y", "bbox_width", "bbox_height")
_PROBABILITIES = [f"prob_{emotion}" for emotion in EMOTIONS]
_SMOOTHING = (0.25, 0.5, 0.25)  # a frame's neighbours count half as much as itself


class TrackTable:
    """Takes the rows of films in the order of their times, a table after the other; a film may reach over several tables."""

    def __init__(self) -> None:
        self._film: str | None = None
        self._tracker = Tracker()
        self._provenance: dict[str, Any] = {}
        self._rows: list[dict[str, Any]] = []

    def follow(self, images: pa.Table, faces: pa.Table) -> pa.Table:
        """The faces of these images, in their order, with their tracks."""
        tracks = np.full(len(faces), -1, np.int32)
        films, times = images["video_uri"], images["frame_time_ms"]
        if times.null_count < len(times):
            boxes, scores = _matrix(faces, _BOX), faces["detection_score"].to_numpy()
            probabilities = np.nan_to_num(_matrix(faces, _PROBABILITIES))
            ends = np.cumsum(images["face_count"].to_numpy())
            scenes = images["scene"]
            # By their names 10 s come before 2 s, and so does a run that labels kept crops anew.
            rows = [(films[row].as_py(), times[row].as_py(), row) for row in np.flatnonzero(times.is_valid().to_numpy()).tolist()]
            for film, time_ms, row in sorted(rows):
                if film != self._film:
                    self._finish()
                    self._film, self._tracker = film, Tracker()
                    self._provenance = {name: images[name][row].as_py() for name in TRACKS.names if name in images.column_names[1:]}
                own = slice(int(ends[row - 1]) if row else 0, int(ends[row]))
                tracks[own] = self._tracker.follow(time_ms, boxes[own], scores[own], probabilities[own], scenes[row].as_py())
            self._keep(self._tracker.ended())
        column = pa.array(tracks, pa.int32(), mask=tracks < 0)
        return faces.set_column(faces.schema.get_field_index("track_id"), FACES.field("track_id"), column)

    def rows(self, is_last: bool = False) -> pa.Table:
        """The tracks that have ended since this was asked last; with `is_last` all of them."""
        if is_last:
            self._finish()
        rows, self._rows = self._rows, []
        return pa.Table.from_pylist(rows, TRACKS)

    def _finish(self) -> None:
        self._keep(self._tracker.finish())

    def _keep(self, tracks: Iterable[Track]) -> None:
        self._rows += [{**self._provenance, **summarize(track), "video_uri": self._film} for track in tracks]


def summarize(track: Track) -> Mapping[str, Any]:
    """A track as a row, without where it is from; frames weigh as much as the time that they are shown."""
    shown = np.array(track.shown_ms, np.float64)
    weights = shown / shown.sum() if shown.sum() else np.full(len(shown), 1 / len(shown))
    probabilities = np.stack(track.probabilities)
    leading = _smoothed(probabilities).argmax(1)
    shares = np.bincount(leading, weights, len(EMOTIONS))
    means = weights @ probabilities
    emotion = int(np.lexsort((means, shares))[-1])
    return {
        "track_id": track.number,
        "start_ms": track.times_ms[0],
        "end_ms": track.times_ms[-1],
        "frames": len(shown),
        "seconds": shown.sum() / 1000,
        **dict(zip(_BOX, np.stack(track.boxes).mean(0).tolist(), strict=True)),
        "emotion": EMOTIONS[emotion],
        "confidence": means[emotion],
        **{f"share_{name}": share for name, share in zip(EMOTIONS, shares.tolist(), strict=True)},
    }


def _smoothed(probabilities: Float64Array) -> Float64Array:
    """(n, classes) averaged over neighbouring frames."""
    around = np.concatenate([probabilities[:1], probabilities, probabilities[-1:]])
    return sum(weight * around[place : place + len(probabilities)] for place, weight in enumerate(_SMOOTHING))  # type: ignore[return-value]


def _matrix(faces: pa.Table, names: Sequence[str]) -> Float64Array:
    return np.stack([faces[name].to_numpy().astype(np.float64) for name in names], axis=1)
