"""Searches on this machine; tests/system/test_submission.py has one on a cluster whose parts die."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from faces import draw_face
from optuna.storages.journal import JournalFileBackend

from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.jobs.tune import TuneConfig
from fer_ray.errors import TrainingError, UsageError
from fer_ray.io.storage import Storage
from fer_ray.models import bundle
from fer_ray.tune import progress
from fer_ray.tune.job import _earlier_trials, concurrent_trials, tune
from fer_ray.tune.progress import SearchProgress
from fer_ray.tune.results import read_trials
from fer_ray.tune.searchers import SETTINGS, make_searcher
from fer_ray.tune.space.search_space import parse_space
from fer_ray.tune.study import STUDY_FILE
from fer_ray.tune.trial import run_trial
from fer_ray.tune.trial_dirs import collect

SPACE = """
stem: {choice: [4, 8]}
widths: [8]
depths: [1]
learning_rate: {log: [1.0e-3, 1.0e-2]}
weight_average: 0.9
batch_size: 16
"""
OF_0_1 = b"\x80\x04cfer_ray.searching\n_Proposer\n."  # a pickle that names a module of version 0.1, as its searches did


class Shown:
    """What a terminal would show: how much is done, of how much, and the note."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, int, str]] = []

    def start(self, what: str) -> None: ...

    def update(self, done: int, total: int, note: str = "", unit: str = "") -> None:
        self.updates.append((done, total, note))

    def close(self) -> None: ...


def search(tmp_path: Path, faces: Path, space: str = SPACE, progress: Shown | None = None, **options: object) -> dict[str, object]:
    (tmp_path / "space.yaml").write_text(space)
    options = {"data": DatasetConfig(str(faces), keep_duplicates=True), **options}
    return tune(TuneConfig(str(tmp_path / "search"), space=str(tmp_path / "space.yaml"), **options), progress)  # type: ignore[arg-type]


def draw_faces_with_votes(root: Path) -> None:
    """A folder faces and a file votes.csv, as FER+ has them."""
    header = "Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"
    generator, lines = np.random.default_rng(0), [header]
    for number in range(120):
        happy, split = number % 2 == 0, "train" if number < 80 else "validation"
        draw_face(root / "faces" / split / ("happy" if happy else "sad"), happy, generator, number)
        lines.append(f"{number}.png,0,{10 * happy},0,{10 * (not happy)},0,0,0,0,0,0")
    (root / "votes.csv").write_text("\n".join(lines))


def test_a_search_whose_trials_all_fail_alike_ends_with_the_reason_and_the_next_of_two_workers_each_leaves_all_that_was_asked_for(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    draw_faces_with_votes(tmp_path)
    monkeypatch.chdir(tmp_path)  # the workers have another working directory
    monkeypatch.setattr(progress, "MAX_EQUAL_FAILURES", 1)
    caplog.set_level(logging.INFO, logger="fer_ray")
    data = DatasetConfig("faces", ("votes.csv",), classes=("happy", "sad"), keep_duplicates=True)
    hopeless = "learning_rate: 4.0e+9\nweight_average: 0\n" + SPACE.split("learning")[0] + "batch_size: 16\n"
    alike = r"1 trials in a row failed in the same way \(The loss is no longer a number in epoch 1: .*\): the search was stopped; see"
    with pytest.raises(TrainingError, match=alike):
        search(tmp_path, Path("faces"), hopeless, data=data, trials=20, epochs=1, max_concurrent=1)
    assert len(list((tmp_path / "search" / "trials").glob("*/failure.txt"))) == 1

    asked: dict[str, Any] = {"data": data, "trials": 1, "epochs": 2, "scheduler": "none", "low_cost": True, "train_best": 1}
    asked |= {"workers_per_trial": 2, "cpus_per_worker": 0.5}
    assert concurrent_trials(TuneConfig("unused", **asked)) == 2, "two trials of two workers share the two CPUs"
    shown = Shown()
    summary = search(tmp_path, Path("faces"), progress=shown, **asked)
    assert (summary["trials"], summary["completed"]) == (1, 1)
    trials = read_trials(Storage(), str(tmp_path / "search"))
    assert [len(trial.epochs) for trial in trials] == [2]
    assert (tmp_path / "search" / "trained_model" / "model.keras").is_file()
    *_, (done, total, live) = (update for update in shown.updates if "trials" in update[2])
    assert (done, total) == (2, 2)
    best = f"accuracy {summary['best_value']:.4f} by {summary['best_trial']} at epoch"
    assert best in live, "what was best at the end of the search is recommended"
    assert shown.updates[-1][:2] == (1, 1), "the training of the best is shown too"
    assert "fer-ray train --config" in caplog.messages[-1]
    with pytest.raises(UsageError, match="exists already: resume the search with --resume"):
        search(tmp_path, Path("faces"), **asked)

    asked |= {"trials": 2, "ensemble": 2, "train_best": 0}
    assert search(tmp_path, Path("faces"), **asked, resume=True)["completed"] == 2
    more = read_trials(Storage(), str(tmp_path / "search"))
    assert [trial for trial in more if trial in trials] == trials, "those that were there are not trained again"
    assert not (tmp_path / "search" / "trained_model").exists(), "what was made of the best so far is not shown as that of the best"
    front = sorted((tmp_path / "search" / "front").iterdir())
    assert front[-1].read_text().splitlines()[2:] == (tmp_path / "search" / "best.yaml").read_text().splitlines()[1:]
    assert len(bundle.load(str(tmp_path / "search" / "ensemble")).members) == 2
    with pytest.raises(UsageError, match="begun with --trials 2: give as many or more"):
        search(tmp_path, Path("faces"), **(asked | {"trials": 1}), resume=True)
    learns_from_an_earlier_search(tmp_path / "search", data)
    is_a_study_of_optuna(tmp_path / "search")

    name_what_is_damaged(tmp_path / "search", more[0].trial_id)
    (tmp_path / "search" / "tune" / "tuner.pkl").write_bytes(OF_0_1)
    with pytest.raises(UsageError, match="begun by another version of fer_ray: finish it with that version, or name a new folder"):
        search(tmp_path, Path("faces"), **asked, resume=True)


def learns_from_an_earlier_search(earlier: Path, data: DatasetConfig) -> None:
    config = TuneConfig("unused", warm_start=str(earlier), data=data)
    space = parse_space(SPACE, "s.yaml")
    taught = make_searcher(config, space, _earlier_trials(config))._ot_study.trials
    found = read_trials(Storage(), str(earlier))
    told = [json.loads(json.dumps(space.settings(trial.params))) for trial in taught]
    assert told == [trial.settings for trial in found]
    assert [trial.value for trial in taught] == [trial.epochs[-1].accuracy for trial in found]
    narrow = parse_space(SPACE.replace("[4, 8]", "[2, 16]"), "s.yaml")
    with pytest.raises(UsageError, match=r"None of the 2 trials in .* lies in this space"):
        make_searcher(config, narrow, _earlier_trials(config))


def is_a_study_of_optuna(output: Path) -> None:
    """What optuna-dashboard shows, those of the first start included."""
    backend = JournalFileBackend(str(output / STUDY_FILE))
    study = optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend))
    trials = {trial.trial_id: trial for trial in read_trials(Storage(), str(output))}
    shown = {trial.user_attrs["trial"]: trial for trial in study.trials}
    assert set(shown) == set(trials)
    for name, trial in trials.items():
        assert shown[name].state.name in ("COMPLETE", "RUNNING")
        assert shown[name].intermediate_values == {epoch.epoch: epoch.accuracy for epoch in trial.epochs}
        assert shown[name].params["stem"] == trial.settings["stem"]


def name_what_is_damaged(output: Path, trial_id: str) -> None:
    folder = output / "trials" / trial_id
    history = max(folder.glob(f"**/{bundle.HISTORY_FILE}"), key=lambda file: file.stat().st_mtime_ns)
    for damaged, removed in ((history, history.parents[1]), (folder / "settings.json", folder)):
        damaged.write_text("{")
        with pytest.raises(TrainingError, match=rf"The file {damaged} cannot be read \(.*\): remove {removed} to do without it"):
            collect(Storage(), str(output), run_trial, 1)
        shutil.rmtree(removed)
        assert [len(trial.epochs) for trial in collect(Storage(), str(output), run_trial, 2)][-1:] == [2]


def test_a_search_shows_the_best_epoch_of_all_trials_not_the_last_and_counts_a_stopped_trial_as_done(tmp_path: Path) -> None:
    shown = Shown()
    progress.show_on(shown)
    told = SearchProgress(TuneConfig(str(tmp_path), epochs=8, objective="nll", data=DatasetConfig("faces")), str(tmp_path), expected=3)
    ended: set[str] = set()
    first, second = (
        SimpleNamespace(
            trial_id=name, status="RUNNING", config={SETTINGS: f'{{"stem": {stem}}}'}, is_finished=lambda name=name: name in ended
        )
        for name, stem in (("first", 4), ("second", 8))
    )
    for number, (trial, nll) in enumerate([(first, 0.5), (second, 0.7), (first, 0.9), (second, float("nan"))]):
        told.on_trial_result(number, [first, second], trial, {"epoch": number // 2 + 1, "nll": nll, "accuracy": 0.5})
        assert shown.updates[-1] == (number + 1, 24, "0 of 3 trials ended, nll 0.5000 by first at epoch 1")
    ended.add("first")
    told.on_trial_result(5, [first, second], second, {"epoch": 3, "nll": 0.4, "accuracy": 0.5})
    assert shown.updates[-1] == (8 + 3, 24, "1 of 3 trials ended, nll 0.4000 by second at epoch 3")


def test_failures_count_that_are_alike_and_in_a_row(tmp_path: Path) -> None:
    told = SearchProgress(TuneConfig(str(tmp_path), data=DatasetConfig("faces")), str(tmp_path), expected=9)

    def fails(reason: str, name: str) -> None:
        told.on_trial_error(0, [], SimpleNamespace(trial_id=name, get_error=lambda: f"fer_ray.errors.TrainingError: {reason} in {name}"))

    for name in ("t01", "t02", "t03"):
        fails("The loss is no longer a number", name)
    told.on_trial_complete(0, [], None)
    for name in ("t04", "t05", "t06"):
        fails("The loss is no longer a number", name)
    fails("The folder cannot be read", "t07")
    for name in ("t08", "t09"):
        fails("The folder cannot be read", name)
    with pytest.raises(TrainingError, match="4 trials in a row failed in the same way"):
        fails("The folder cannot be read", "t10")


def test_a_population_continues_from_its_best(ray_cluster: None, drawn_faces: Path, tmp_path: Path) -> None:
    space = SPACE.replace("{log: [1.0e-3, 1.0e-2]}", "{choice: [1.0e-6, 3.0e-3]}")  # with the first nothing is learnt
    search(tmp_path, drawn_faces, space, scheduler="pbt", trials=2, epochs=2, pbt_interval=1)
    trials = read_trials(Storage(), str(tmp_path / "search"))
    assert [len(trial.epochs) for trial in trials] == [2, 2]
    assert len({trial.epochs[0] for trial in trials}) == 1, "one of the two has taken over the first epoch of the other"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"low_cost": True, "seeds": 2}, "low_cost needs"),
        ({"cpus_per_worker": 1.5}, "cpus_per_worker must be a fraction of 1 or a whole number"),
        ({"workers_per_trial": 64}, "A trial needs 64 CPUs, this machine has 2 CPUs"),
        ({"space": "nowhere.yaml"}, "There is no search space"),
        ({"time_budget": "soon"}, "must be a number with s, m or h"),
        ({"resume": True}, "no search in .* to resume"),
        ({"data": {"limit": 2}}, "4 training images, fewer than a batch of .*: search smaller values of batch_size"),
        ({"data": {"dataset": "/nowhere"}}, "/nowhere"),
    ],
)
def test_a_search_that_cannot_run_is_refused_before_anything_is_written(
    ray_cluster: None, drawn_faces: Path, tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        data = DatasetConfig(**{"dataset": str(drawn_faces), "keep_duplicates": True, **options.pop("data", {})})
        tune(TuneConfig(str(tmp_path / "search"), data=data, **options))
    assert list(tmp_path.iterdir()) == []
