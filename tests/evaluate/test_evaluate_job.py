"""Judging models as a user does, on drawn faces: the figures are right, the page is whole, and strangers' names stay text."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from browser import browsed, fits, needs_browser
from histories import write_history
from pages import Page

from fer_ray.cli.flags import parse
from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.jobs.evaluate import EvaluateConfig
from fer_ray.config.recipe import ModelConfig
from fer_ray.data.dataset import load_dataset
from fer_ray.errors import DatasetError, UsageError
from fer_ray.evaluate.groups import read_groups
from fer_ray.evaluate.job import evaluate
from fer_ray.io.storage import Storage
from fer_ray.models import bundle, keras_bundle
from fer_ray.models.architectures import build
from fer_ray.models.conversion import add_onnx
from fer_ray.reporting.responsible_use import RESPONSIBLE_USE
from fer_ray.vision.degradation import CONDITIONS

HOSTILE = '"><script>alert(1)<\u202e$\\frac$\n\u6f22 & co'
SMALL = ModelConfig(architecture="residual", stem=8, widths=(8,), depths=(1,), image_size=32)
MIN_TEXT = 11  # pixels of words in a chart on a phone


def save_bundle(folder: Path, classes: tuple[str, ...], model: ModelConfig = SMALL) -> Path:
    folder.mkdir(parents=True)
    members = [bundle.Member(keras_bundle.KerasNetwork(build(model, len(classes))), model)]
    keras_bundle.save(str(folder), members, keras_bundle.Description(classes, 1.5, {"accuracy": 0.5}, {}))
    add_onnx(str(folder))
    return folder


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Discs, bright ones happy and dark ones sad; one of them has a name that is markup."""
    root, generator = tmp_path_factory.mktemp("faces"), np.random.default_rng(0)
    for split, emotion, number in [(s, e, n) for s in ("train", "test") for e in ("happy", "sad") for n in range(12)]:
        face = generator.integers(0, 60, (48, 48)).astype(np.uint8)
        cv2.circle(face, (24, 24), 16, 220 if emotion == "happy" else 90, cv2.FILLED)
        file = root / split / emotion / (f"{HOSTILE}.png" if (split, number) == ("test", 3) else f"{number}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(cv2.imencode(".png", face)[1].tobytes())
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle of an untrained network."""
    return str(save_bundle(tmp_path_factory.mktemp("bundle") / "model", ("happy", "sad")))


@pytest.fixture(scope="module")
def evaluated(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Two models with other classes and other sizes of crops, side by side, on degraded faces and by group; the first has a history."""
    root = tmp_path_factory.mktemp("evaluated")
    first = save_bundle(root / "models" / HOSTILE, ("happy", "sad"))
    second = save_bundle(root / "models" / "second", ("angry", "sad", "happy"), ModelConfig("cnn_32_64_128", widths=(8, 8, 8), dense=(8,)))
    write_history(first, learning_rate=[1e-2, 1e-2, 1e-3])
    names = [str(file.relative_to(faces)) for file in sorted(faces.glob("test/*/*"))]
    with (root / "cameras.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "camera", "day"), *((name, ("old", HOSTILE)[i % 2], "1") for i, name in enumerate(names))])
    models, groups = (str(first), str(second)), str(root / "cameras.csv")
    config = EvaluateConfig(
        models, str(root / "out"), degrade=True, group_by=("camera", "day"), groups=groups, samples=15, data=DatasetConfig(str(faces))
    )
    return root / "out", evaluate(config)


def test_every_model_gets_its_figures_and_answers_and_the_summary_names_them_all(evaluated: tuple[Path, dict[str, Any]]) -> None:
    output, summary = evaluated
    keys = ["accuracy", "macro_f1", "weighted_f1", "ece", "nll", "samples", "model_version", "output", "degraded", "groups"]
    assert list(summary) == [*keys, "models"]
    assert [list(one) for one in summary["models"]] == [keys, keys]
    content = json.loads((output / "evaluation.json").read_text())
    names = [one["name"] for one in content["models"]]
    assert {path.name for path in output.iterdir()} == {*names, "index.html", "evaluation.json"}
    for name, one, row in zip(names, content["models"], summary["models"], strict=True):
        answers = pq.read_table(output / name / "predictions.parquet").to_pandas()
        assert (answers["label"] == answers["predicted"]).mean() == pytest.approx(row["accuracy"], abs=1e-6)
        assert np.allclose(answers[[f"prob_{emotion}" for emotion in one["classes"]]].sum(axis=1), 1)
        assert row["samples"] == len(answers) == np.sum(one["confusion"]["counts"]) == 24
        assert one["intervals"]["accuracy"][0] <= one["figures"]["accuracy"] <= one["intervals"]["accuracy"][1]
    assert answers["name"].str.contains("script").sum() == 2
    (test,) = content["comparison"]
    difference = test["only_first_correct"] - test["only_second_correct"]
    assert test["accuracy_difference"] == pytest.approx(difference / 24)


def test_degraded_faces_and_groups_have_figures_with_intervals_in_summary_json_and_page(evaluated: tuple[Path, dict[str, Any]]) -> None:
    output, summary = evaluated
    one, text = json.loads((output / "evaluation.json").read_text())["models"][0], Page((output / "index.html").read_text()).text
    clean = one["degraded"][0]
    assert [row["condition"] for row in one["degraded"]] == list(CONDITIONS) == list(summary["degraded"])
    assert {name: clean["figures"][name] for name in ("accuracy", "ece", "macro_f1")}.items() <= one["figures"].items()
    assert clean["intervals"] == one["intervals"]
    assert len({row["figures"]["confidence"] for row in one["degraded"]}) == len(CONDITIONS), "other pixels, other answers"
    camera, day = one["groups"]["camera"], one["groups"]["day"]
    assert [row["samples"] for row in camera["groups"]] == [12, 12]
    assert sum(12 * row["figures"]["accuracy"] for row in camera["groups"]) == pytest.approx(24 * one["figures"]["accuracy"])
    assert summary["groups"]["day"]["groups"]["1"]["accuracy"] == one["figures"]["accuracy"]
    assert camera["largest_gap"] is day["largest_gap"] is None
    for words in ("On poorer pictures", "By camera", "No two groups have 20 faces", "accuracy where the faces are", *CONDITIONS):
        assert words in text, words


def test_the_page_stands_alone_is_whole_and_shows_strange_names_as_text(evaluated: tuple[Path, dict[str, Any]]) -> None:
    page = Page((evaluated[0] / "index.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "form"}
    assert [tag for tag, _ in page.tags].count("script") == 1, "the page's own, named by its hash"
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert all((image["src"] or "").startswith("data:image/webp;base64,") and image["alt"] for image in images)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    links = {attributes["href"] or "" for tag, attributes in page.tags if tag == "a"}
    files = {link for link in links if not link.startswith("#")}
    assert len(files) == 3
    assert all((evaluated[0] / file).exists() for file in files), "the figures, and the answers of each model"
    assert "<script>alert(1)<\\u202e" in page.text
    for words in (*RESPONSIBLE_USE, "McNemar", "came without the history of its training", "of angry here", "\N{EN DASH}"):
        assert words in page.text, words


def table_cells(page: Any, selector: str) -> list[list[str]]:
    rows: list[list[str]] = page.evaluate(
        "(selector) => [...document.querySelector(selector).rows].map((row) => [...row.cells].map((cell) => cell.textContent.trim()))",
        selector,
    )
    return rows


@needs_browser
def test_the_page_of_several_models_is_light_short_and_shows_each_random_face_once(evaluated: tuple[Path, dict[str, Any]]) -> None:
    file, content = evaluated[0] / "index.html", json.loads((evaluated[0] / "evaluation.json").read_text())
    assert file.stat().st_size < 500_000
    with browsed(file) as page:
        assert page.evaluate("document.documentElement.scrollHeight") < 4000, "the models are folded below the comparison"
        shown = page.locator(".faces:has(.by) figure")
        assert shown.count() == 15, "the random faces, with both answers"
        assert page.locator(".faces .by").count() == 2 * 15
        tables = [pq.read_table(evaluated[0] / one["name"] / "predictions.parquet").to_pandas() for one in content["models"]]
        predicted = [dict(zip(table["name"], table["predicted"], strict=True)) for table in tables]
        plain = [one for one in shown.all() if one.get_attribute("title") in predicted[0]]
        assert len(plain) >= 13, "all but those with the strange names"
        for figure in plain:
            label, *said, _ = figure.locator("figcaption > *").all_text_contents()
            for words, answers in zip(said, predicted, strict=True):
                answer = answers[figure.get_attribute("title")]
                assert words.startswith(answer if answer == label else f"\u2717 {answer}")
        page.locator("details.model > summary").first.click()
        confusion = content["models"][0]["confusion"]
        head, *rows = table_cells(page, ".confusion")[1:]
        assert head == ["label", *confusion["predicted"]]
        for row, label, shares, counts in zip(rows, confusion["labels"], confusion["shares"], confusion["counts"], strict=True):
            assert row == [label, *(f"{100 * share:.0f}{count}" for share, count in zip(shares, counts, strict=True))]


@needs_browser
def test_on_a_phone_the_page_keeps_its_width_its_charts_their_words_and_the_dark_its_colours(
    evaluated: tuple[Path, dict[str, Any]],
) -> None:
    with browsed(evaluated[0] / "index.html") as page:
        page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
        assert fits(page)
        sizes = page.evaluate(
            "[...document.querySelectorAll('svg text')].map((one) => parseFloat(getComputedStyle(one).fontSize) * one.getScreenCTM().a)"
        )
        assert len(sizes) > 50
        assert min(sizes) >= MIN_TEXT
        assert page.locator(".confusion").first.bounding_box()["width"] <= 390
        colors = {}
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            colors[scheme] = page.evaluate(
                "['svg text', 'svg polyline', '.confusion td', '.faces figcaption'].map((one) => {"
                "const style = getComputedStyle(document.querySelector(one));"
                "return [style.color, style.fill, style.stroke, style.backgroundColor].join() })"
            )
        assert all(light != dark for light, dark in zip(colors["light"], colors["dark"], strict=True))
        assert page.evaluate("[...document.images].every((one) => getComputedStyle(one).filter === 'none')"), "each face as it is"


def test_one_model_is_judged_from_the_command_line_on_the_split_that_was_asked_for(faces: Path, model: str, tmp_path: Path) -> None:
    paths = {name: os.path.relpath(path, faces) for name, path in (("model", model), ("output", tmp_path / "out"))}
    command = [f"--{name}={path}" for name, path in paths.items()] + ["--dataset=.", "--split=train", "--flip"]
    job = Path(__file__).parents[2] / "jobs" / "evaluate.py"
    answer = subprocess.run([sys.executable, str(job), *command], cwd=faces, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    *_, advice, last = answer.stdout.splitlines()
    assert f"Open {paths['output']}/index.html to see" in advice
    summary = json.loads(last)
    assert list(summary) == ["accuracy", "macro_f1", "weighted_f1", "ece", "nll", "samples", "model_version", "output"]
    assert summary["model_version"].endswith("-flip")
    loaded = bundle.load(model, flip=True)
    split = load_dataset(DatasetConfig(str(faces)), 32, splits=("train",)).splits["train"]
    assert summary["accuracy"] == pytest.approx((loaded.probabilities(split.images).argmax(1) == split.labels).mean(), abs=1e-4)
    page = Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    assert {"evaluation.json", "predictions.parquet"} <= {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"index.html", "evaluation.json", "predictions.parquet"}


def test_a_data_set_with_emotions_that_the_model_lacks_is_refused_and_nothing_is_written(faces: Path, model: str, tmp_path: Path) -> None:
    shutil.copytree(faces / "test", tmp_path / "faces" / "test")
    (tmp_path / "faces" / "test" / "sad").rename(tmp_path / "faces" / "test" / "fear")
    config = EvaluateConfig((model,), str(tmp_path / "out"), data=DatasetConfig(str(tmp_path / "faces")))
    with pytest.raises(DatasetError, match=r"has fear, which .* does not know: leave them out with --classes happy"):
        evaluate(config)
    assert not (tmp_path / "out").exists()


def test_a_data_set_without_the_split_is_answered_with_one_that_it_has(faces: Path, model: str, tmp_path: Path) -> None:
    shutil.copytree(faces / "train", tmp_path / "untested" / "train")
    shutil.copytree(faces / "test", tmp_path / "untrained" / "test")
    for place, split, remedy in (("untested", "test", "validation"), ("untrained", "validation", "test")):
        config = EvaluateConfig((model,), str(tmp_path / "out"), split, data=DatasetConfig(str(tmp_path / place)))
        with pytest.raises(DatasetError, match=rf"has no {split} split: give --split {remedy}\."):
            evaluate(config)
    assert not (tmp_path / "out").exists()


NAMES = ("test/happy/0.png", "test/happy/1.png", "test/sad/0.png")


def grouped(tmp_path: Path, content: str, names: tuple[str, ...] = NAMES) -> dict[str, list[str]]:
    (tmp_path / "groups.csv").write_text(content, encoding="utf-8")
    config = EvaluateConfig(("m",), "o", data=DatasetConfig("/faces"), groups=str(tmp_path / "groups.csv"), group_by=("age",))
    return read_groups(Storage(), config, names)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            "image,age\nhappy/0.png,old\nhappy/1.png,\n",
            r"age of .* lacks 2 images of the test split \(test/happy/1\.png, test/sad/0\.png\)",
        ),
        ("image,age\n0.png,old\n1.png,old\n", r"does not tell test/happy/0\.png and test/sad/0\.png apart"),
        ("image,age\nhappy/0.png,old\nhappy/0.png,young\n", r"names happy/0\.png twice"),
        ("image,sex\nhappy/0.png,f\n", r"has no column age, only image, sex"),
        ("age\nold\n", r"names no images: call the column of their names image"),
        ("", r"names no images"),
    ],
)
def test_groups_that_do_not_cover_the_images_are_refused_in_a_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    with pytest.raises(DatasetError, match=sentence):
        grouped(tmp_path, content)


def test_groups_are_found_by_any_spelling_of_an_images_name_and_values_are_no_groups(tmp_path: Path) -> None:
    spellings = "\ufeffAge ; image ;age\nx;/faces/test/happy/0.png;old\nx;happy\\1.png; young \nx;other.png;\nx;./sad/0.png;old\n"
    assert grouped(tmp_path, spellings) == {"age": ["old", "young", "old"]}
    accents = grouped(tmp_path, "file,age\ntest/e\u0301,old\n1,young\n", ("test/\u00e9", "test/happy/1.png"))
    assert accents == {"age": ["old", "young"]}
    with pytest.raises(DatasetError, match="has 60 values: make at most 50 groups"):
        grouped(tmp_path, "image,age\n" + "".join(f"{n},{n}\n" for n in range(60)), tuple(f"{n}.png" for n in range(60)))


def test_groups_of_other_images_are_refused_before_any_work(faces: Path, model: str, tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("image,age\nother.png,old\n")
    groups = str(tmp_path / "groups.csv")
    with pytest.raises(DatasetError, match="lacks 24 images of the test split"):
        evaluate(EvaluateConfig((model,), str(tmp_path / "out"), data=DatasetConfig(str(faces)), groups=groups, group_by=("age",)))
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused_before_any_work(faces: Path, model: str, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(UsageError, match="no folder"):
        evaluate(EvaluateConfig((model,), str(taken), data=DatasetConfig(str(faces))))
    assert taken.read_text() == "mine"


def test_models_are_named_one_by_one_or_together_and_wrong_settings_are_refused() -> None:
    given = ["--dataset", "d", "--output", "o"]
    for models in (["--model", "a", "--model", "b"], ["--model", "a", "b"]):
        assert parse(EvaluateConfig, [*given, *models], "").model == ("a", "b")
    for wrong in (
        [],
        ["--model", "a", "--samples", "0"],
        ["--model", "a", "--seed", "-1"],
        ["--model", "a", "--split", "tests"],
        ["--model", "a", "--group-by", "age"],
    ):
        with pytest.raises(UsageError):
            parse(EvaluateConfig, [*given, *wrong], "")


def test_without_tensorflow_a_model_is_judged_and_the_page_says_why_there_are_no_heat_maps(
    faces: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fer_ray.evaluate.job.find_spec", lambda name: None)
    evaluate(EvaluateConfig((model,), str(tmp_path / "out"), data=DatasetConfig(str(faces))))
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "There are no heat maps: they take TensorFlow" in Page(page).text
    assert "Filter 1" not in page
