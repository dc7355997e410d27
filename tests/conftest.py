"""Shared parts: one Ray instance, the demo photographs, a small trained-like model, and the real data where it lies beside the project."""

import logging
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest
from faces import draw_faces
from pictures import SHARED_DATA
from stores import KEYS_PER_PAGE, S3Server

from fer_ray.cluster import start_with_known_address, start_with_retries
from fer_ray.data import demo_photos
from fer_ray.label.labeler import Labeler

# Two processes share the files, of which each has the next one ready: what takes a minute comes first, what takes none last.
LONGEST_FIRST = (
    "test_submission",
    "test_tune_job",
    "test_nightly",
    "test_train_job",
    "test_documented_commands",
    "test_bundle",
    "test_loop",
    "test_export",
    "test_label_job",
    "test_batches",
    "test_ensemble",
    "test_views",
    "test_evaluate_job",
    "test_storage",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return LONGEST_FIRST.index(item.path.stem) if item.path.stem in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=place)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """An S3-compatible store; its credentials are in the environment from now on, also in that of Ray's workers."""
    server = S3Server(KEYS_PER_PAGE)
    os.environ.update(server.environment)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def ray_cluster(s3_server: S3Server) -> Iterator[None]:
    import ray

    # As a search starts its own: Ray Train frees the CPUs of a trial that was stopped only where it knows the cluster's address.
    options: dict[str, object] = {"num_cpus": 2, "include_dashboard": True, "log_to_driver": False, "logging_level": logging.ERROR}
    start_with_retries(lambda: start_with_known_address(options))
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def photographs() -> dict[str, Path]:
    """The demo photographs by name: astronaut, camera, chelsea, coffee, grace_hopper."""
    return {Path(entry.image_uri).stem: Path(entry.image_uri) for entry in demo_photos.images()}


@pytest.fixture(scope="session")
def drawn_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two classes that a small network learns in seconds."""
    return draw_faces(tmp_path_factory.mktemp("faces"))


@pytest.fixture(scope="session")
def labeler() -> Labeler:
    return Labeler()


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The real data sets, unpacked, by name; empty on a machine without them."""
    folders = {}
    for name in ("awkward_images", "labeled_photos", "crowd_photos"):
        archive = SHARED_DATA / f"{name}.zip"
        if archive.exists():
            target = tmp_path_factory.mktemp(name)
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(target)
            folders[name] = target / name
    return folders
