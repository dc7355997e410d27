"""A camera, a network camera or a film as a source of the newest frame: frames that come too fast are dropped, never queued."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from fer_ray.errors import UsageError
from fer_ray.text import sanitize
from fer_ray.typing import UInt8Array

NETWORK = ("rtsp://", "rtsps://")
MAX_SIDE = 8192  # pixels: no camera has more
SILENCE_SECONDS = 20.0  # without a frame: the camera is gone


@dataclass(frozen=True)
class Frame:
    """A picture (h, w, 3) uint8 BGR, its number from 1, and when it was taken by `time.monotonic()`."""

    pixels: UInt8Array
    number: int
    taken: float


class Camera:
    """Reads in a thread of its own and holds the newest frame.

    Args:
        source: the number of a camera, an rtsp:// address, or the path of a film, which is played at its own speed.

    Raises:
        UsageError: it cannot be opened.
    """

    def __init__(self, source: str) -> None:
        self.name = sanitize(source.rpartition("@")[2] if "@" in source else source)  # without a password
        is_file = not source.isdigit() and not source.startswith(NETWORK)
        if is_file and not Path(source).is_file():
            raise UsageError(f"The source {self.name} is no file: give a camera's number, an address such as rtsp://..., or a film.")
        self._capture = cv2.VideoCapture(int(source)) if source.isdigit() else cv2.VideoCapture(source, cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            raise UsageError(f"The source {self.name} cannot be opened: is it a camera or a film, and is it free?")
        self._is_file = is_file
        self._newest: Frame | None = None
        self._changed = threading.Condition()
        self._has_ended = False
        self._thread = threading.Thread(target=self._read, name="camera", daemon=True)
        self._thread.start()

    def frames(self) -> Iterator[Frame]:
        """The newest frame, again and again, until the source ends; those that came in between are lost."""
        seen = 0
        while True:
            with self._changed:
                changed = self._changed.wait_for(partial(self._is_after, seen), SILENCE_SECONDS)
                frame = self._newest
            if not changed:
                raise UsageError(f"The source {self.name} gave no frame for {SILENCE_SECONDS:.0f} seconds: is it still there?")
            if frame is None or frame.number <= seen:
                return
            seen = frame.number
            yield frame

    def _is_after(self, number: int) -> bool:
        return self._has_ended or (self._newest is not None and self._newest.number > number)

    def close(self) -> None:
        """End the thread and free the camera."""
        with self._changed:
            self._has_ended = True
        self._thread.join(SILENCE_SECONDS)
        self._capture.release()

    def _read(self) -> None:
        started, number = time.monotonic(), 0
        while not self._has_ended:
            good, pixels = self._capture.read()
            if not good or max(pixels.shape) > MAX_SIDE:
                break
            if self._is_file:
                due = started + self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                time.sleep(max(0.0, due - time.monotonic()))
            number += 1
            with self._changed:
                self._newest = Frame(np.asarray(pixels, np.uint8), number, time.monotonic())
                self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()
