"""The live job: frames of a camera through the labeler into a page, until the camera or the viewer ends it."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import cv2

from fer_ray.config.jobs.live import LiveConfig
from fer_ray.emotions import EMOTION_COLORS
from fer_ray.label.labeler import Labeler
from fer_ray.label.result import Face
from fer_ray.live.camera import Camera
from fer_ray.live.recorder import Recorder
from fer_ray.live.server import LiveServer
from fer_ray.live.smoothing import Followed, Follower
from fer_ray.reporting import html

RATE_FRAMES = 30  # over so many, frames per second are counted

LOGGER = logging.getLogger(__name__)


def live(config: LiveConfig) -> dict[str, Any]:
    """Label what a camera sees, and show it, until it ends, Ctrl-C, SIGTERM or the limit.

    Returns:
        The summary: frames seen, labeled and dropped, faces, frames per second, and the median milliseconds from a frame to its labels.

    Raises:
        UsageError: the source, the page's address or the recording cannot be used, or the camera fell silent.
    """
    stopped = _stop_on_signals()
    labeler = Labeler(config.model or None, config.labeling, threads=1)
    with closing(Camera(config.source)) as camera, Recorder(config.record) as recorder:
        server = LiveServer(config, _page(camera.name, labeler))
        LOGGER.info("Open %s%s", server.address, "?token=..." if config.token else "")
        started, follower, delays = time.monotonic(), Follower(config.smoothing), deque[float](maxlen=1000)
        rate, labeled, faces, last = deque[float](maxlen=RATE_FRAMES), 0, 0, 0
        for frame in camera.frames():
            image = labeler.label(cv2.cvtColor(frame.pixels, cv2.COLOR_BGR2RGB))
            now = time.monotonic()
            followed = follower.follow(image.faces, now)
            delays.append(1000 * (now - frame.taken))
            rate.append(now)
            facts = {
                "number": frame.number,
                "size": [image.width, image.height],
                "fps": round((len(rate) - 1) / (rate[-1] - rate[0]), 1) if len(rate) > 1 else 0.0,
                "dropped": frame.number - labeled - 1,
                "seconds": round(now - started, 3),
                "faces": [_described(*pair) for pair in zip(image.faces, followed, strict=True)],
            }
            server.show(frame, facts)
            recorder.add(frame.number, image, [one.number for one in followed])
            labeled, faces, last = labeled + 1, faces + len(image.faces), frame.number
            if stopped.is_set() or labeled == config.limit:
                break
        seconds = time.monotonic() - started
        server.shutdown()
    return {
        "frames": last,
        "frames_labeled": labeled,
        "frames_dropped": last - labeled,
        "faces": faces,
        "frames_per_second": labeled / seconds,
        "median_delay_ms": sorted(delays)[len(delays) // 2] if delays else None,
        "recorded_rows": recorder.rows if config.record else None,
        "record": config.record or None,
    }


def _stop_on_signals() -> threading.Event:
    """To be stopped is how this job ends: what was recorded is then completed."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    return stopped


def _described(face: Face, followed: Followed) -> dict[str, Any]:
    """A face as the page draws it."""
    return {
        "id": followed.number,
        "bbox": face.bbox,
        "emotion": max(followed.probabilities, key=lambda emotion: followed.probabilities[emotion]),
        "probabilities": [round(value, 3) for value in followed.probabilities.values()],
    }


def _page(source: str, labeler: Labeler) -> str:
    emotions: Sequence[tuple[str, str]] = [(name, EMOTION_COLORS[name]) for name in labeler.classes]
    return html.render(
        "fer_ray.live",
        "live.html.j2",
        ["live.css"],
        ["live.js"],
        own_origin=True,
        title=f"Live: {source}",
        emotions=emotions,
        model_version=labeler.model_version,
    )
