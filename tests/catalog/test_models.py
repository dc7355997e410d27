"""A team sees its models with their figures, and a nightly line names the one that an alias stands for."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from stores import S3Server

from fer_ray import Labeler
from fer_ray.catalog.job import models
from fer_ray.config.jobs.models import ModelsConfig
from fer_ray.errors import UsageError
from fer_ray.io.storage import Storage
from fer_ray.models import bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two whole bundles, one of them in a search, one that is broken, and what trainings keep for themselves."""
    for name, place in (("fer2013", "first"), ("ferplus", "search/best_model")):
        shutil.copytree(bundle.resolve(name), tmp_path / place)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bundle.json").write_text('{"metrics": {"validation": {"accuracy": "high"}}}')
    shutil.copytree(tmp_path / "first", tmp_path / "search" / "trials" / "checkpoint_0" / "best")
    return tmp_path


def test_models_are_listed_with_their_figures_and_the_alias_of_one_labels(
    folder: Path, photographs: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="fer_ray")
    summary = models(ModelsConfig(str(folder), alias=("champion=search/best_model", "last-year=first")))
    assert [one["name"] for one in summary["models"]] == ["broken", "first", "search/best_model"]
    saved = json.loads((folder / "first" / "bundle.json").read_text())
    assert summary["models"][1]["accuracy"] == saved["metrics"]["validation"]["accuracy"]
    lines = [line.split() for line in caplog.messages]
    assert lines[2][1] == f"{saved['metrics']['validation']['accuracy']:.4f}"
    assert [line[-1] for line in lines] == ["alias", "read", "@last-year", "@champion"]
    (image,) = Labeler(f"{folder}/@champion").label([photographs["astronaut"]])
    assert image.faces[0].emotion == "happy"
    assert bundle.resolve(f"{folder}/@last-year") == f"{folder}/first"
    changed = models(ModelsConfig(str(folder), alias=("champion=first",), remove_alias=("last-year",)))
    assert changed["aliases"] == {"champion": "first"}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"alias": ("champion=nowhere",)}, "nowhere is missing"),
        ({"alias": ("champion=broken",)}, "broken is broken"),
        ({"alias": ("champion=../elsewhere",)}, "must stand for a model below the folder"),
        ({"alias": ("a/b=first",)}, "An alias is made of letters"),
        ({"alias": ("champion",)}, "takes ALIAS=NAME"),
        ({"remove_alias": ("champion",)}, "There is no alias champion"),
    ],
)
def test_an_alias_never_stands_for_what_cannot_label(folder: Path, options: dict[str, tuple[str, ...]], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        models(ModelsConfig(str(folder), **options))  # type: ignore[arg-type]
    assert not (folder / "aliases.json").exists()


def test_a_list_of_aliases_from_strangers_leads_nowhere_else(folder: Path) -> None:
    (folder / "aliases.json").write_text('{"champion": "../../secrets"}')
    with pytest.raises(UsageError, match=r"aliases.json is no list of aliases"):
        bundle.resolve(f"{folder}/@champion")


def test_an_alias_in_a_store_is_followed_there(s3_server: S3Server, folder: Path) -> None:
    s3_server.client().create_bucket(Bucket="models")
    storage = Storage(s3_server.endpoint)
    storage.put_folder(folder / "first", "s3://models/team/first", last=bundle.METADATA_FILE)
    models(ModelsConfig("s3://models/team", alias=("champion=first",), s3_endpoint=s3_server.endpoint))
    assert bundle.resolve("s3://models/team/@champion", storage) == "s3://models/team/first"
    with pytest.raises(UsageError, match="no alias @other in s3://models/team: it has champion"):
        bundle.resolve("s3://models/team/@other", storage)
