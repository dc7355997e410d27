"""Figures of a running job for Prometheus, through Ray's metrics; docs/operate.md says what each means and when to worry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ray.util import metrics

from fer_ray.label.result import LabeledImage


class LabelingMetrics:
    """Counters of one labeling process; Ray sums them up by node and adds `ray_` to their names."""

    def __init__(self) -> None:
        self._images = metrics.Counter("fer_ray_images_total", "images that got a row, by status", ("status",))
        self._faces = metrics.Counter("fer_ray_faces_total", "faces that got a row")
        self._left_out = metrics.Counter("fer_ray_faces_left_out_total", "faces found, but too small or too doubtful for a row")
        self._bytes = metrics.Counter("fer_ray_bytes_total", "bytes of the images read")
        self._seconds = metrics.Counter("fer_ray_stage_seconds_total", "seconds of the labeling processes, by stage", ("stage",))
        self._before: dict[str, float] = {}

    def add(self, images: Sequence[LabeledImage], stage_seconds: Mapping[str, float]) -> None:
        """Count a batch; `stage_seconds` are those since the process began."""
        for status, count in Counter(image.status.value for image in images).items():
            self._images.inc(count, {"status": status})
        amounts = (
            (self._faces, sum(len(image.faces) for image in images)),
            (self._left_out, sum(image.left_out_count for image in images)),
            (self._bytes, sum(image.size_bytes or 0 for image in images)),
        )
        for counter, amount in amounts:
            if amount:  # Ray refuses 0
                counter.inc(amount)
        for stage, seconds in stage_seconds.items():
            more = seconds - self._before.get(stage, 0.0)
            if more > 0:
                self._seconds.inc(more, {"stage": stage})
        self._before = dict(stage_seconds)
