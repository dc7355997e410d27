"""The report of a search: the table comes back as it was, the right trial is first, what matters is found, strangers' text stays text."""

import dataclasses
import datetime
import html
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from browser import browsed, fits, needs_browser
from pages import Page

from fer_ray.cli.flags import parse
from fer_ray.config.jobs.train import TrainConfig
from fer_ray.errors import UsageError
from fer_ray.io.storage import Storage
from fer_ray.models.flops import Cost
from fer_ray.schema import meaning_of
from fer_ray.tune.importance import measure_importance, tried_values, typical_value, varied_settings
from fer_ray.tune.page import SearchSummary, search_page, write_report
from fer_ray.tune.results import COMPLETED, FAILED, STOPPED, TRIALS, Trial, TrialEpoch, leaderboard, pareto_front, read_trials, write_trials

HOSTILE = '"><script>alert(1)<\u202e$\\frac$\n\u6f22 & co'
STARTED = datetime.datetime(2026, 11, 21, 20, tzinfo=datetime.UTC)
COSTS = {
    "residual": Cost(25_800_000, 710_000, 0.9),
    "cnn_32_64_128": Cost(9_400_000, 680_000, 0.31),
    "mobilenet_v2": Cost(56_100_000, 2_260_000, 2.4),
}


def search(count: int) -> tuple[list[Trial], dict[str, Cost]]:
    """Trials of which the learning rate decides most, the architecture a little and label smoothing nothing; one in ten fails."""
    generator = np.random.default_rng(3)
    trials = [_trial(number, generator) for number in range(count)]
    return trials, {trial.trial_id: COSTS[trial.settings["architecture"]] for trial in trials}


def _trial(number: int, generator: np.random.Generator) -> Trial:
    settings: dict[str, Any] = {
        "architecture": str(generator.choice(list(COSTS))),
        "optimizer": str(generator.choice(["adamw", "sgd"])),
        "learning_rate": float(10 ** generator.uniform(-4.5, -1)),
        "dropout": float(generator.uniform(0, 0.6)),
        "batch_size": int(generator.choice([32, 64, 128, 256])),
        "label_smoothing": float(generator.uniform(0, 0.2)),
        "flip": bool(generator.integers(2)),
        "epochs": 20,
        "seed": number,
    }
    if settings["optimizer"] == "adamw":
        settings["weight_decay"] = float(10 ** generator.uniform(-3, -0.5))
    if settings["architecture"] == "residual":
        settings["widths"] = [[16, 32, 64], [32, 64, 128]][int(generator.integers(2))]
    distance = abs(math.log10(settings["learning_rate"]) + 2.7)
    reached = 0.71 - 0.11 * distance + 0.02 * (settings["architecture"] == "residual") - 0.05 * settings["dropout"] ** 2
    reached = max(0.25, reached + generator.normal(0, 0.006))
    if number % 10 == 7:
        kept = 3 if number % 20 == 7 else 0
        return _run(f"trial_{number:05}", FAILED, settings, reached, kept, f"Out of memory on worker {number}: lower batch_size.")
    stopped = reached < 0.62
    return _run(f"trial_{number:05}", STOPPED if stopped else COMPLETED, settings, reached, 4 if stopped else 20, None)


def _run(trial_id: str, status: str, settings: dict[str, Any], reached: float, epochs: int, error: str | None) -> Trial:
    rows = []
    for epoch in range(1, epochs + 1):
        share = 1 - math.exp(-epoch / 4)
        accuracy = reached * share + 0.14 * (1 - share) + 0.004 * math.sin(epoch * 17 + 50 * reached)
        row = TrialEpoch(
            epoch,
            accuracy,
            accuracy - 0.05,
            2.2 - 1.9 * accuracy,
            0.04,
            2.7 - 1.6 * share - reached,
            settings["learning_rate"],
            41.5,
            STARTED,
        )
        rows.append(row)
    return Trial(trial_id, status, settings, tuple(rows), error, settings["seed"])


def test_every_trial_comes_back_from_the_table_and_an_epoch_that_was_done_again_counts_once(tmp_path: Path) -> None:
    trials, _ = search(12)
    rows = [row for trial in trials for row in trial.rows()]
    again = {**trials[0].rows()[1], "accuracy": 0.5, "improved": True}
    storage = Storage()
    write_trials(storage, str(tmp_path), [*rows, again])
    table = pq.read_table(tmp_path / "trials.parquet")
    assert table.schema.equals(TRIALS)
    assert all(meaning_of(column) for column in table.schema)
    assert [row["accuracy"] for row in table.to_pylist() if row["epoch"] == 0] == [None] * sum(not trial.epochs for trial in trials)
    first = dataclasses.replace(trials[0].epochs[1], accuracy=0.5)
    expected = dataclasses.replace(trials[0], epochs=(trials[0].epochs[0], first, *trials[0].epochs[2:]))
    assert read_trials(storage, str(tmp_path)) == [expected, *trials[1:]]
    with pytest.raises(ValueError, match="lack seed, status"):
        write_trials(storage, str(tmp_path), [{"trial_id": "a", "epoch": 1, "config_json": "{}"}])


def test_a_table_that_is_none_of_a_search_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give the folder of a search"):
        read_trials(Storage(), str(tmp_path))
    row = search(1)[0][0].rows()[0]
    for broken in (
        pa.table({"a": [1]}),
        pa.Table.from_pylist([{**row, "config_json": "[1]"}]),
        pa.Table.from_pylist([{**row, "seed": "x"}]),
    ):
        pq.write_table(broken, tmp_path / "trials.parquet")
        with pytest.raises(UsageError, match="cannot be read as the trials of a search"):
            read_trials(Storage(), str(tmp_path))


def test_the_best_epoch_ranks_a_trial_equals_go_to_the_cheaper_and_failed_or_diverged_ones_never_win() -> None:
    def trial(name: str, *accuracies: float, status: str = COMPLETED) -> Trial:
        return Trial(name, status, {}, tuple(TrialEpoch(i, value, nll=1 - value) for i, value in enumerate(accuracies, start=1)))

    trials = [
        trial("dear", 0.5, 0.7, 0.6),
        trial("cheap", 0.7),
        trial("broken", 0.9, status=FAILED),
        trial("diverged", math.nan),
        trial("low", 0.4, math.nan, status=STOPPED),
    ]
    costs = {"dear": Cost(20, 1), "cheap": Cost(10, 1)}
    board = leaderboard(trials, "accuracy", costs)
    assert [(one.rank, one.trial.trial_id, one.epoch.epoch, one.value) for one in board] == [
        (1, "cheap", 1, 0.7),
        (2, "dear", 2, 0.7),
        (3, "low", 1, 0.4),
    ]
    assert [one.trial.trial_id for one in leaderboard(trials, "nll", costs)] == ["cheap", "dear", "low"]


def test_the_pareto_front_has_no_trial_that_another_beats() -> None:
    assert pareto_front([(3, 0.9), (1, 0.5), (2, 0.5), (2, 0.7), (3, 0.9), (4, 0.8)]) == [1, 3, 0]
    assert pareto_front([]) == []


def test_the_setting_that_decides_is_found_among_those_that_do_not_and_too_few_trials_give_no_answer() -> None:
    board = leaderboard(search(60)[0], "accuracy")
    parameters = varied_settings([one.trial for one in board])
    names = [one.name for one in parameters]
    assert "seed" not in names
    assert "epochs" not in names
    importance = measure_importance(parameters, np.array([one.value for one in board]))
    assert importance is not None
    assert sum(importance.shares.values()) == pytest.approx(1)
    assert importance.shares["learning_rate"] > 0.6
    assert importance.shares["label_smoothing"] < 0.1
    assert importance.explained > 0.4
    assert measure_importance(varied_settings([one.trial for one in board[:7]]), np.arange(7.0)) is None
    by_name = {one.name: one for one in parameters}
    assert by_name["learning_rate"].logarithmic
    assert not by_name["dropout"].logarithmic
    assert tried_values(by_name["widths"]) == "16-32-64, 32-64-128, not used"
    assert tried_values(by_name["weight_decay"]).endswith(", or not used")
    assert typical_value(by_name["batch_size"]) in {"32", "64", "96", "128"}


def test_the_report_shows_the_whole_search_and_its_best_settings_are_a_file_that_a_training_takes(tmp_path: Path) -> None:
    trials, costs = search(30)
    summary = SearchSummary("fer2013", "accuracy", seconds=7000, facts={"searcher": "tpe", "data": HOSTILE})
    write_report(Storage(), str(tmp_path), summary, trials, costs)
    content = (tmp_path / "index.html").read_text(encoding="utf-8")
    page = Page(content)
    best = leaderboard(trials, "accuracy", costs)[0].trial
    settings = html.unescape(content.partition("<pre>")[2].partition("</pre>")[0])
    assert yaml.safe_load(settings) == best.settings
    (tmp_path / "best.yaml").write_text(settings)
    given = ["--config", str(tmp_path / "best.yaml"), "--dataset", "d", "--output", "o"]
    assert parse(TrainConfig, given, "").recipe.optimization.learning_rate == best.settings["learning_rate"]
    for words in (
        "30",
        f"{sum(len(trial.epochs) for trial in trials)}",
        "Out of memory on worker 7",
        "Pareto front",
        "1.9\u00a0h",
        "searcher tpe",
    ):
        assert words in page.text, words
    assert page.text.count("Out of memory") == 1
    assert not (tmp_path / "learning_curves.png").exists(), "the charts are in the page"


@needs_browser
def test_a_browser_sorts_the_leaderboard_and_narrows_the_trials_and_the_page_fits_a_phone(tmp_path: Path) -> None:
    trials, costs = search(30)
    write_report(Storage(), str(tmp_path), SearchSummary("fer2013", "accuracy", seconds=7000), trials, costs)
    with browsed(tmp_path / "index.html") as page:
        headers = page.locator("#leaderboard ~ div th, .tall th").all_inner_texts()
        assert headers.index("learning_rate") < headers.index("optimizer") < headers.index("widths") < headers.index("dropout")
        column = headers.index("learning_rate")
        page.locator(".tall th").nth(column).click()
        rates = [float(row.locator("td").nth(column).inner_text()) for row in page.locator(".tall tbody tr").all()]
        assert rates in (sorted(rates), sorted(rates, reverse=True))
        assert len(rates) == 27
        last = page.locator("#parallel .handle").last
        last.scroll_into_view_if_needed()
        handle = last.bounding_box()
        middle = handle["x"] + handle["width"] / 2
        page.mouse.move(middle, handle["y"] + 6)
        page.mouse.down()
        page.mouse.move(middle, handle["y"] + handle["height"] / 3)
        page.mouse.up()
        left = page.locator(".tall tbody tr:visible").count()
        assert 0 < left < 27
        assert f"{left} of 27 trials" in page.locator("#readout").inner_text()
        assert fits(page)


@pytest.mark.parametrize("objective", ["macro_f1", "nll"])
def test_strange_settings_names_and_errors_are_text_and_the_page_fetches_and_runs_nothing(objective: str) -> None:
    trials, costs = search(12)
    strange = [dataclasses.replace(one, settings={**one.settings, HOSTILE: f"{HOSTILE}{i % 3}"}) for i, one in enumerate(trials)]
    strange += [Trial(HOSTILE, FAILED, {HOSTILE: HOSTILE}, (), HOSTILE), dataclasses.replace(strange[0], trial_id=HOSTILE + "2")]
    content = search_page(SearchSummary(HOSTILE, objective, best=HOSTILE + "2"), strange, costs)
    page = Page(content)
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "form", "img", "image", "use", "foreignobject"}
    assert [tag for tag, _ in page.tags].count("script") == content.count("<script>") == 2, "the page's own, named by their hashes"
    links = {attributes["href"] or "" for tag, attributes in page.tags if tag == "a"}
    assert {link for link in links if not link.startswith("#")} == {"best.yaml", "trials.parquet"}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "default-src 'none'" in html.unescape(content)
    assert page.text.count("<script>alert(1)<\\u202e") > 3


def test_a_search_without_success_without_trials_or_without_choices_still_has_a_page() -> None:
    failed = [Trial(f"t{i}", FAILED, json.loads('{"dropout": 0.1}'), (), None) for i in range(3)]
    alone = Trial("one", COMPLETED, {"dropout": 0.1}, (TrialEpoch(1, 0.5),))
    assert "no trial reached a figure" in search_page(SearchSummary("s", "accuracy"), [], {})
    assert "no reason was recorded" in Page(search_page(SearchSummary("s", "nll"), failed, {})).text
    page = Page(search_page(SearchSummary("s", "accuracy"), [*failed, alone], {})).text
    assert "The cost of these networks is not known." in page
    assert "There are not two trials with different settings to compare." in page
    few = [dataclasses.replace(alone, trial_id=f"t{i}", settings={"dropout": i / 10}) for i in range(4)]
    assert "there are 4" in Page(search_page(SearchSummary("s", "accuracy"), few, {"t1": Cost(5, 1)})).text
