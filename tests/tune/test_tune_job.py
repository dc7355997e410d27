"""Searches on this machine; tests/test_submission.py has one on a cluster whose parts die."""

from pathlib import Path
from typing import Any

import pytest

from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.tune import TuneConfig
from fer_ray.errors import TrainingError, UsageError
from fer_ray.io.storage import Storage
from fer_ray.tune import job
from fer_ray.tune.job import tune
from fer_ray.tune.results import read_trials

SPACE = """
stem: {choice: [4, 8]}
widths: [8, 16]
depths: [1, 1]
learning_rate: {log: [1.0e-3, 1.0e-2]}
weight_average: 0.9
batch_size: 16
"""


def search(tmp_path: Path, faces: Path, space: str = SPACE, **options: object) -> dict[str, object]:
    (tmp_path / "space.yaml").write_text(space)
    data = DatasetConfig(str(faces), keep_duplicates=True)
    return tune(TuneConfig(str(tmp_path / "search"), space=str(tmp_path / "space.yaml"), data=data, **options))  # type: ignore[arg-type]


def test_two_trials_of_two_workers_share_two_cpus_and_leave_the_front(ray_cluster: None, drawn_faces: Path, tmp_path: Path) -> None:
    shares: dict[str, Any] = {"workers_per_trial": 2, "cpus_per_worker": 0.5, "scheduler": "none"}
    summary = search(tmp_path, drawn_faces, trials=2, epochs=2, low_cost=True, train_best=1, **shares)
    assert (summary["trials"], summary["completed"]) == (2, 2)
    trials = read_trials(Storage(), str(tmp_path / "search"))
    assert [len(trial.epochs) for trial in trials] == [2, 2]
    front = sorted((tmp_path / "search" / "front").iterdir())
    assert front[-1].read_text().splitlines()[2:] == (tmp_path / "search" / "best.yaml").read_text().splitlines()[1:]
    assert (tmp_path / "search" / "trained_model" / "model.keras").is_file()


def test_a_population_goes_on_from_its_best(ray_cluster: None, drawn_faces: Path, tmp_path: Path) -> None:
    space = SPACE.replace("{log: [1.0e-3, 1.0e-2]}", "{choice: [1.0e-6, 3.0e-3]}")  # with the first nothing is learnt
    search(tmp_path, drawn_faces, space, scheduler="pbt", trials=2, epochs=2, pbt_interval=1)
    trials = read_trials(Storage(), str(tmp_path / "search"))
    assert [len(trial.epochs) for trial in trials] == [2, 2]
    assert len({trial.epochs[0] for trial in trials}) == 1, "one of the two has taken over the first epoch of the other"


def test_seeds_are_trained_each_and_a_configuration_stands_with_their_mean(ray_cluster: None, drawn_faces: Path, tmp_path: Path) -> None:
    summary = search(tmp_path, drawn_faces, SPACE, scheduler="none", searcher="random", trials=1, seeds=2, epochs=1)
    trials = read_trials(Storage(), str(tmp_path / "search"))
    assert sorted(trial.seed for trial in trials) == [7, 8]
    assert len({trial.configuration for trial in trials}) == 1
    assert summary["best_value"] == pytest.approx(sum(trial.epochs[0].accuracy or 0 for trial in trials) / 2)


def test_a_search_whose_trials_all_fail_alike_ends_with_the_reason(
    ray_cluster: None, drawn_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "EQUAL_FAILURES", 2)
    with pytest.raises(
        TrainingError,
        match=r"2 trials in a row failed in the same way \(The loss is no longer a number in epoch 1: .*\): the search was stopped; see",
    ):
        search(
            tmp_path,
            drawn_faces,
            "learning_rate: 9.0e+14\nweight_average: 0\n" + SPACE.split("learning")[0] + "batch_size: 16\n",
            trials=20,
            epochs=1,
        )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"low_cost": True, "seeds": 2}, "low_cost needs"),
        ({"cpus_per_worker": 1.5}, "cpus_per_worker must be a fraction of 1 or a whole number"),
        ({"workers_per_trial": 64}, "A trial needs 64 CPUs, this machine has 2 CPUs"),
        ({"space": "nowhere.yaml"}, "There is no search space"),
        ({"time_budget": "soon"}, "must be a number with s, m or h"),
        ({"resume": True}, "no search in .* to resume"),
        ({"data": DatasetConfig("/nowhere")}, "/nowhere"),
    ],
)
def test_a_search_that_cannot_run_is_refused_before_anything_is_written(
    ray_cluster: None, drawn_faces: Path, tmp_path: Path, options: dict[str, object], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        data = DatasetConfig(str(drawn_faces), keep_duplicates=True)
        tune(TuneConfig(str(tmp_path / "search"), **{"data": data, **options}))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
