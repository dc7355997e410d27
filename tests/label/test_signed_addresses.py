"""Images behind signed addresses are labeled, and the signatures stand in no file and no line."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from web_server import Answer, WebServer

from fer_ray.config.jobs.label import LabelConfig
from fer_ray.label.incremental import Counts, find_due
from fer_ray.label.job import label
from fer_ray.label.plan import write_plan
from fer_ray.label.run import identify
from fer_ray.schema import time_of


@pytest.fixture
def server() -> Iterator[WebServer]:
    serving = WebServer({})
    yield serving
    serving.stop()


def write_list(file: Path, server: WebServer, photographs: dict[str, Path], signature: str) -> None:
    """A list of addresses that are signed anew, and answered for GET with this signature alone, as S3 does."""
    query = f"?X-Amz-Credential=5ecre7&X-Amz-Date={signature}&X-Amz-Signature=5ecre7{signature}"
    server.answers.clear()
    for name in ("astronaut", "coffee"):
        server.answers[f"/{name}.jpg{query}"] = Answer(photographs[name].read_bytes())
    rows = [f"{server.endpoint}/{name}.jpg{query}" for name in ("astronaut", "coffee")]
    file.write_text("\n".join(["url", *rows, f"{server.endpoint}/missing.jpg?token=5ecre7", ""]))


def test_a_signature_stands_in_no_file_and_no_line_and_its_run_is_resumed(
    tmp_path: Path, server: WebServer, photographs: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "fer_ray")
    names, output = tmp_path / "list.csv", tmp_path / "tables"
    config = LabelConfig((str(names), f"{server.endpoint}/astronaut.jpg?sig=5ecre7"), str(output))
    server.answers["/astronaut.jpg?sig=5ecre7"] = Answer(b"")
    write_list(names, server, photographs, "1")
    server.answers["/astronaut.jpg?sig=5ecre7"] = Answer(photographs["astronaut"].read_bytes())
    run = identify(config)
    counts = Counts()
    planned = write_plan(run, find_due(run, counts), counts, time_of(0))  # type: ignore[arg-type]
    assert planned.images == 3
    write_list(names, server, photographs, "2")
    server.answers["/astronaut.jpg?sig=5ecre7"] = Answer(photographs["astronaut"].read_bytes())
    summary, _ = label(config)
    assert (summary["run_id"], summary["images_total"], summary["images_failed"]) == (run.run_id, 3, 1)
    rows = ds.dataset(output / "images", partitioning=None).to_table().to_pylist()
    assert {row["image_uri"].rpartition("/")[2]: row["status"] for row in rows} == {
        "astronaut.jpg": "ok",
        "coffee.jpg": "no_face",
        "missing.jpg": "unreadable",
    }
    files = [file for file in output.rglob("*") if file.is_file()]
    assert len(files) > 5
    assert [file for file in files if b"5ecre7" in file.read_bytes()] == []
    assert "5ecre7" not in caplog.text
