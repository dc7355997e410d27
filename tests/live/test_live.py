"""The live view as its user has it: a film stands for the camera, a real browser looks at the page."""

import http.client
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from browser import browsed, fits, needs_browser

from fer_ray.config.jobs.live import LiveConfig
from fer_ray.errors import UsageError
from fer_ray.label.result import Face
from fer_ray.live.camera import Camera
from fer_ray.live.recorder import Recorder
from fer_ray.live.smoothing import Follower

SECONDS = 60  # more than a test looks at


@pytest.fixture(scope="module")
def film(photographs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A camera that pans over a portrait."""
    file = tmp_path_factory.mktemp("film") / "pan.mp4"
    portrait = np.asarray(cv2.imread(str(photographs["astronaut"])))
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), 20, (320, 240))
    for i in range(20 * SECONDS):
        left = 80 + round(40 * np.sin(i / 15))
        writer.write(portrait[10:250, left : left + 320])
    writer.release()
    return file


@contextmanager
def live(*arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The command, and the address that it says."""
    line = [sys.executable, "-m", "fer_ray", "live", "--port", "0", *arguments]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            address = re.search(r"http://\S+:\d+/", said)
            assert address, said + process.stdout.read()
            yield process, address[0]
        finally:
            process.kill()


def status_of(address: str, path: str = "/", **headers: str) -> int:
    connection = http.client.HTTPConnection(address.split("/")[2], timeout=60)
    connection.request("GET", path, headers=headers)
    return connection.getresponse().status


@needs_browser
def test_the_page_shows_the_faces_of_the_camera_and_the_recording_is_whole_when_it_is_stopped(film: Path, tmp_path: Path) -> None:
    record = tmp_path / "faces.parquet"
    with live("--source", str(film), "--record", str(record)) as (process, address):
        with browsed(address) as page:
            page.wait_for_function("document.getElementById('state').textContent.startsWith('1 face,')")
            page.wait_for_function("document.querySelectorAll('.bars tr')[4].querySelector('meter').value > 0.5")
            assert page.evaluate("[document.getElementById('picture').width, document.getElementById('picture').height]") == [320, 240]
            assert fits(page)
        assert status_of(address, Host="evil.example") == 403, "a name of another site that leads here"
        assert status_of(address, "/etc/passwd") == 404
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0
    summary = json.loads(said.splitlines()[-1])
    rows = pq.read_table(record).to_pylist()
    assert len(rows) == summary["recorded_rows"] == summary["faces"] > 0
    assert summary["frames"] == summary["frames_labeled"] + summary["frames_dropped"]
    assert {row["track_id"] for row in rows} == {1}
    assert {row["emotion"] for row in rows} == {"happy"}


def test_from_another_machine_only_the_token_opens_the_page(film: Path) -> None:
    token = "open-sesame-123"
    with live("--source", str(film), "--host", "0.0.0.0", "--token", token) as (_, address):
        assert status_of(address) == 403
        assert status_of(address, "/frame?token=open-sesame-124") == 403
        assert status_of(address, f"/?token={token}") == 200
        assert status_of(address, "/frame", Cookie=f"fer_ray_live={token}") == 200


def test_a_slow_viewer_gets_the_newest_frame_and_a_film_ends_the_frames(film: Path) -> None:
    camera = Camera(str(film))
    frames = camera.frames()
    first = next(frames)
    with camera._changed:
        camera._changed.wait_for(lambda: camera._newest is not None and camera._newest.number >= first.number + 3, 30)
    assert next(frames).number >= first.number + 3
    camera.close()
    assert list(frames)[1:] == []


def test_a_face_keeps_its_number_and_its_emotions_follow_in_time() -> None:
    def face(x: int, happy: float) -> Face:
        return Face((x, 0, 50, 50), 0.9, np.zeros((5, 2), np.float32), 1.0, "happy", happy, {"happy": happy, "sad": 1 - happy})

    follower = Follower(seconds=0.5)
    left, right = follower.follow([face(0, 1.0), face(200, 0.0)], now=0.0)
    assert (left.number, right.number) == (1, 2)
    again = follower.follow([face(210, 0.0), face(10, 0.0)], now=0.1)
    assert [one.number for one in again] == [2, 1]
    assert again[1].probabilities["happy"] == pytest.approx(np.exp(-0.2))
    assert follower.follow([face(10, 0.0)], now=5.0)[0].number == 3, "who was away for long is somebody else"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"host": "0.0.0.0"}, "others can see the camera: give --token"),
        ({"token": "short"}, "12 characters or more"),
        ({"source": "missing.mp4"}, "is no file: give a camera's number"),
        ({"source": "{tmp}/words.mp4"}, "cannot be opened: is it a camera or a film"),
        ({"source": "97"}, "The source 97 cannot be opened"),
        ({"record": "{tmp}/words.mp4"}, "exists already"),
        ({"record": "{tmp}/no/such/folder.parquet"}, "cannot be written"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_a_sentence(tmp_path: Path, settings: dict[str, str], complaint: str) -> None:
    (tmp_path / "words.mp4").write_text("no film")
    with pytest.raises(UsageError, match=complaint):
        config = LiveConfig(**{name: value.format(tmp=tmp_path) for name, value in settings.items()})  # type: ignore[arg-type]
        with Recorder(config.record):
            Camera(config.source)
