"""The exported page in a real browser: what it says of photographs, of a camera, and without a network."""

import functools
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from browser import browsed, fits, needs_browser

from fer_ray.config.jobs.export import ExportConfig
from fer_ray.errors import UsageError
from fer_ray.export.job import export
from fer_ray.label.labeler import Labeler

pytestmark = [needs_browser, pytest.mark.skipif(shutil.which("npm") is None, reason="npm, which fetches ONNX Runtime, is not installed")]


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("web") / "page"
    export(ExportConfig(format="web", output=str(output)))
    return output


@pytest.fixture
def address(page: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Files, directory=str(page)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def camera(photographs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the browser takes for a camera: a portrait that stands still, as uncompressed 4:2:0."""
    portrait = np.asarray(cv2.imread(str(photographs["astronaut"])))[10:370, 60:540]
    frame = b"FRAME\n" + cv2.cvtColor(np.ascontiguousarray(portrait[:, : portrait.shape[1] // 2 * 2]), cv2.COLOR_BGR2YUV_I420).tobytes()
    file = tmp_path_factory.mktemp("camera") / "portrait.y4m"
    file.write_bytes(f"YUV4MPEG2 W{portrait.shape[1] // 2 * 2} H360 F20:1 Ip A1:1 C420jpeg\n".encode() + 10 * frame)
    return file


def wait_for(page: Any, words: str) -> None:
    """Wait until the page says this; its policy lets no other script look for it."""
    page.wait_for_selector(f"#state:has-text({json.dumps(words)})")


def test_photographs_have_the_faces_and_probabilities_of_the_labeler_and_the_page_works_without_a_network(
    address: str, photographs: dict[str, Path], labeler: Labeler, tmp_path: Path
) -> None:
    (tmp_path / "words.jpg").write_text("no photograph")
    names = ["astronaut", "grace_hopper", "coffee"]
    with browsed(address) as page:
        wait_for(page, "Ready")
        page.evaluate("navigator.serviceWorker.ready.then(() => true)")
        page.context.set_offline(True)
        page.reload()
        wait_for(page, "Ready")
        page.set_input_files("#files", [*(str(photographs[name]) for name in names), str(tmp_path / "words.jpg")])
        wait_for(page, "Done")
        figures = page.query_selector_all("figure")
        assert "is no photograph" in figures[0].inner_text()
        for name, figure in zip(reversed(names), figures[1:], strict=True):
            said = [json.loads(face.get_attribute("data-face")) for face in figure.query_selector_all(".face")]
            expected = labeler.label(photographs[name]).faces
            assert len(said) == len(expected), name
            for mine, theirs in zip(said, expected, strict=True):
                assert mine["bbox"] == pytest.approx(theirs.bbox, abs=2)
                assert mine["probabilities"] == pytest.approx(list(theirs.probabilities.values()), abs=0.02)
        assert fits(page)


def test_the_camera_is_labeled_in_the_page_until_it_is_stopped(address: str, camera: Path) -> None:
    fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", f"--use-file-for-fake-video-capture={camera}"]
    with browsed(address, arguments=fake) as page:
        wait_for(page, "Ready")
        page.click("#camera")
        wait_for(page, "1 face,")
        page.click("#camera")
        wait_for(page, "The camera is off.")
        assert not page.is_visible("#live")


def test_a_page_is_not_written_over_anything(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        export(ExportConfig(format="web", output=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []
