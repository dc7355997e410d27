"""What an archive's owner trusts an audit with: the truth inside its intervals, and a calibration that labels."""

import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from browser import browsed, fits, needs_browser
from crop_tables import multiply
from rayless import label_without_ray

from fer_ray.audit.estimates import Stratum, adapt, estimate
from fer_ray.audit.job import audit
from fer_ray.audit.sample import draw
from fer_ray.config.jobs.audit import AuditConfig
from fer_ray.config.jobs.label import LabelConfig
from fer_ray.config.jobs.relabel import RelabelConfig
from fer_ray.emotions import EMOTIONS
from fer_ray.errors import UsageError
from fer_ray.models import bundle
from fer_ray.models.calibration import fit_to_archive
from fer_ray.models.metrics import negative_log_likelihood
from fer_ray.relabel.job import relabel
from fer_ray.typing import Float64Array, Int64Array

FACES = 3000
RESAMPLINGS = 40


def faces_of_another_mixture(generator: np.random.Generator) -> tuple[Float64Array, Int64Array]:
    """What a model says, and the truth, of faces whose mixture of emotions is not the one that it was calibrated for."""
    truth = generator.choice(8, FACES, p=generator.dirichlet(np.full(8, 1.5)))
    habits = generator.dirichlet(np.full(8, 0.3), 8) * 2.5 + 3 * np.eye(8)
    logits = habits[truth] + 1.5 * generator.normal(size=(FACES, 8))
    probabilities = np.exp(1.5 * logits)
    return probabilities / probabilities.sum(axis=1, keepdims=True), truth.astype(np.int64)


def drawn(probabilities: Float64Array, seed: int) -> tuple[Any, list[int]]:
    """A sample of 300, and the rows of its faces."""
    columns = {f"prob_{emotion}": probabilities[:, place] for place, emotion in enumerate(EMOTIONS)}
    numbers = np.arange(len(probabilities))
    faces = {"image_id": [f"{n:032d}" for n in numbers], "image_uri": [f"/a/{n % 7}/{n}.jpg" for n in numbers], "number": numbers}
    with duckdb.connect() as connection:
        connection.register("columns", pa.table({**columns, **faces, "confidence": probabilities.max(axis=1)}))
        connection.execute("""
            CREATE TABLE faces_latest AS SELECT *, 0 AS face_index, now() AS labeled_at, '' AS crops_run_id, 'm-1' AS model_version,
                'm' AS model_name, 0 AS bbox_x, 0 AS bbox_y, 20 + number % 50 AS bbox_width, 30 AS bbox_height FROM columns""")
        sample, rows = draw(connection, 300, seed)
    return sample, [int(row["image_id"]) for row in rows]


def test_the_truth_is_inside_the_intervals_of_corrected_shares() -> None:
    inside, error_counted, error_corrected = [], [], []
    for seed in range(RESAMPLINGS):
        probabilities, truth = faces_of_another_mixture(np.random.default_rng(seed))
        sample, rows = drawn(probabilities, seed)
        assert len(rows) == len(set(rows)) == 300
        assert sum(one.faces for one in sample.strata) == FACES
        answers = np.zeros((len(sample.strata), 8), np.int64)
        np.add.at(answers, ([face.stratum for face in sample.faces], truth[rows]), 1)
        strata = [
            Stratum(EMOTIONS.index(one.predicted), one.faces, np.array(one.mean), answers[number])
            for number, one in enumerate(sample.strata)
        ]
        found = estimate(strata, seed)
        shares = np.bincount(truth, minlength=8) / FACES
        inside += [one.low <= share <= one.high for one, share in zip(found.shares, shares, strict=True)]
        inside.append(found.accuracy.low <= (probabilities.argmax(axis=1) == truth).mean() <= found.accuracy.high)
        error_corrected.append(np.abs([one.value - share for one, share in zip(found.shares, shares, strict=True)]).mean())
        error_counted.append(np.abs(np.bincount(probabilities.argmax(axis=1), minlength=8) / FACES - shares).mean())
    assert np.mean(inside) >= 0.85
    assert np.mean(error_corrected) < np.mean(error_counted) / 2


def test_a_calibration_for_an_archive_knows_its_mixture_and_adapts_to_that_of_a_folder() -> None:
    generator = np.random.default_rng(1)
    probabilities, truth = faces_of_another_mixture(generator)
    fitted = fit_to_archive(probabilities[:300], truth[:300], np.ones(300))
    after = fitted.apply(probabilities[300:])
    assert negative_log_likelihood(np.log(after), truth[300:]) < negative_log_likelihood(np.log(probabilities[300:]), truth[300:])
    known = fit_to_archive(probabilities, truth, np.ones(FACES)).apply(probabilities)
    archive = np.bincount(truth, minlength=8) / FACES
    folder = generator.choice(FACES, 1500, p=(weights := np.where(truth == truth[0], 6.0, 1.0)) / weights.sum())
    shares = np.bincount(truth[folder], minlength=8) / len(folder)
    assert np.abs(adapt(known[folder], archive) - shares).max() < np.abs(known[folder].mean(axis=0) - shares).max() / 2


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, Path]) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    (folder / "in").mkdir()
    for name in ("astronaut", "grace_hopper"):
        shutil.copy(photographs[name], folder / "in")
    label_without_ray(LabelConfig((str(folder / "in"),), str(folder / "out"), run_id="first", keep_crops=True, thumbnails=False))
    multiply(folder / "out", "first", 30)
    return folder / "out"


def answer_all(audited: Path, target: Path, **changed: Any) -> Path:
    """Answers of the page: every face is happy but the first two, of which one is sad and one unclear."""
    sample = json.loads((audited / "sample.json").read_text())
    answers = {f"{face['image_id']}-{face['face_index']}": "happy" for face in sample["faces"]}
    answers |= dict(zip(answers, ("sad", "unclear"), strict=False))
    target.write_text(json.dumps({"audit": sample["audit"], "answers": answers} | changed))
    return target


def test_answers_become_figures_and_a_model_that_label_and_relabel_take(tables: Path, tmp_path: Path) -> None:
    output = tmp_path / "audited"
    drawn = audit(AuditConfig(str(tables), output=str(output), faces=50))
    assert drawn["faces"] == 50
    answers = answer_all(output, tmp_path / "answers.json")
    result = audit(AuditConfig(str(tables), output=str(output), answers=str(answers)))
    assert (result["answers"], result["unclear"], result["faces"]) == (49, 1, 60)
    assert result["emotions"]["happy"]["corrected_share"]["low"] > 0.85
    assert result["model"]["model_version"] not in ("", drawn["model_version"])
    tasks = json.loads((output / "label_studio_tasks.json").read_text())
    told = json.loads(answers.read_text())["answers"]
    export = [{**one, "annotations": [{"result": [{"value": {"choices": [told[one["data"]["key"]]]}}]}]} for one in tasks]
    (tmp_path / "export.json").write_text(json.dumps(export))
    again = audit(AuditConfig(str(tables), output=str(output), answers=str(tmp_path / "export.json")))
    assert again["emotions"] == result["emotions"]
    relabeled = relabel(RelabelConfig(str(Path(shutil.copytree(tables, tmp_path / "copy"))), result["model"]["folder"]))
    assert (relabeled["model_version"], relabeled["faces_total"]) == (result["model"]["model_version"], 60)
    with pytest.raises(UsageError, match=r"^The audit is about the model .*, and the tables show .*: draw another audit\.$"):
        audit(AuditConfig(str(tmp_path / "copy"), output=str(output), answers=str(answers)))


def test_answers_for_something_else_are_refused_and_nothing_is_written(tables: Path, tmp_path: Path) -> None:
    output = tmp_path / "audited"
    audit(AuditConfig(str(tables), output=str(output), faces=40))
    before = sorted(output.iterdir())
    answers = tmp_path / "answers.json"
    for content, sentence in (
        ({"audit": "another"}, "are about another audit"),
        ({"answers": {"nobody-0": "happy"}}, "which this audit does not know"),
        ({"answers": {}}, "are about 0 faces: answer 30 at least"),
        ({"answers": 3}, "cannot be read"),
    ):
        answer_all(output, answers, **content)
        with pytest.raises(UsageError, match=sentence):
            audit(AuditConfig(str(tables), output=str(output), answers=str(answers)))
    answer_all(output, answers)
    with pytest.raises(UsageError, match="The model fer2013 is not residual"):
        audit(AuditConfig(str(tables), output=str(output), answers=str(answers), model=bundle.BUNDLED[0]))
    with pytest.raises(UsageError, match="is there already"):
        audit(AuditConfig(str(tables), output=str(output)))
    assert sorted(output.iterdir()) == before


@needs_browser
def test_the_page_takes_keys_keeps_them_and_saves_what_the_command_reads(tables: Path, tmp_path: Path) -> None:
    output = tmp_path / "audited"
    audit(AuditConfig(str(tables), output=str(output), faces=40))
    with browsed(output / "audit.html") as page:
        for key in "5" * 38:
            page.keyboard.press(key)
        page.reload()
        assert page.inner_text("#place") == "Face 39 of 40, 38 answered"
        page.keyboard.press("0")
        page.click("text=sad")
        assert page.is_visible("#done")
        assert fits(page)
        with page.expect_download() as download:
            page.keyboard.press("s")
        download.value.save_as(tmp_path / "answers.json")
    result = audit(AuditConfig(str(tables), output=str(output), answers=str(tmp_path / "answers.json")))
    assert (result["answers"], result["unclear"]) == (39, 1)
