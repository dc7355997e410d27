"""The search space: what people write is what is tried, and what is wrong is refused with its line before anything starts."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from fer_ray.cli.flags import parse
from fer_ray.config.jobs.train import TrainConfig
from fer_ray.errors import UsageError
from fer_ray.tune.space.search_space import SPACES, Space, parse_space, read_space, to_yaml

KINDS = """
dropout: {uniform: [0.1, 0.5], step: 0.2}
optimizer: {choice: [adamw, sgd]}
learning_rate:
  - {log: [1e-4, 1e-2], when: {optimizer: adamw}}
  - 0.05
plateau_patience: {integer: [1, 3], when: {optimizer: sgd}}
plateau-factor: {uniform: [0.2, 0.6], when: {plateau_patience: [2, 3], optimizer: sgd}}
depths: {choice: [[1, 1], [2]]}
widths:
  - {choice: [[8, 16], [16, 16]], when: {depths: [1, 1]}}
  - {choice: [[8]]}
batch_size: {log_integer: [16, 64]}
rotation: {integer: [0, 20], step: 10}
flip: true
"""


def space(text: str = KINDS) -> Space:
    return parse_space(text, "s.yaml")


def asked(settings: dict[str, Any]) -> None:
    """What KINDS says of any draw."""
    sgd = settings["optimizer"] == "sgd"
    assert settings["learning_rate"] == 0.05 if sgd else 1e-4 <= settings["learning_rate"] <= 1e-2
    assert settings["dropout"] in (0.1, 0.3, 0.5)
    assert ("plateau_patience" in settings) == sgd
    assert ("plateau_factor" in settings) == (settings.get("plateau_patience") in (2, 3))
    assert len(settings["widths"]) == len(settings["depths"])
    assert settings["rotation"] in (0.0, 10.0, 20.0)
    assert settings["flip"] is True
    assert {type(value) for value in settings.values()} <= {str, int, float, bool, tuple}
    assert isinstance(settings["batch_size"], int)
    assert 16 <= settings["batch_size"] <= 64


def test_every_way_to_draw_keeps_to_choices_ranges_steps_and_conditions() -> None:
    generator = np.random.default_rng(0)
    searched = space()
    draws = [searched.random(generator) for _ in range(300)]
    grid = list(searched.grid(3))
    for settings in (*draws, *grid):
        asked(settings)
    assert {draw["widths"] for draw in draws} == {(8, 16), (16, 16), (8,)}
    assert {draw["rotation"] for draw in draws} == {0.0, 10.0, 20.0}
    rates = sorted(draw["learning_rate"] for draw in draws if draw["optimizer"] == "adamw")
    assert 3e-4 < rates[len(rates) // 2] < 3e-3  # evenly by the logarithm; of even numbers the median would be 5e-3
    sizes = sorted(draw["batch_size"] for draw in draws)
    assert 26 < sizes[len(sizes) // 2] < 39


@pytest.mark.parametrize("points", [1, 2, 3, 5])
def test_a_grid_has_every_combination_once_and_is_counted_before_it_runs(points: int) -> None:
    searched = space()
    grid = list(searched.grid(points))
    assert len(grid) == searched.grid_size(points) == len({tuple(settings.items()) for settings in grid})
    if points == 3:
        ways_of_optimizer = 3 + (1 + 2 * 3)  # three rates; or one rate and, with patience 2 or 3, three factors
        assert len(grid) == 3 * ways_of_optimizer * (2 + 1) * 3 * 3
        assert {settings["batch_size"] for settings in grid} == {16, 32, 64}
        assert {settings["learning_rate"] for settings in grid} == {0.0001, 0.001, 0.01, 0.05}
    with pytest.raises(UsageError, match="one point"):
        searched.grid_size(0)


@pytest.mark.parametrize("name", SPACES)
def test_a_space_of_the_project_can_be_searched_by_optuna_and_its_winner_trained(name: str, tmp_path: Path) -> None:
    searched = read_space(name)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=10))
    for _ in range(25):
        trial = study.ask()
        settings = searched.suggest(trial)
        study.tell(trial, settings["dropout"])
        assert searched.settings(study.trials[-1].params) == settings
        low, high = (0.005, 0.2) if settings["optimizer"] == "sgd" else (2e-4, 6e-3)
        assert low <= settings["learning_rate"] <= high
        file = tmp_path / "recipe.yaml"
        file.write_text(to_yaml(settings))
        trained = parse(TrainConfig, ["--config", str(file), "--dataset", "d", "--output", "o"], "").recipe
        assert trained == searched.recipe(settings)
        flat = {name: value for part in dataclasses.asdict(trained).values() for name, value in part.items()}
        assert {setting: flat[setting] for setting in settings} == settings
    assert study.best_value <= 0.15
    assert len({frozenset(trial.params) for trial in study.trials}) > 2  # only what applies is asked for


def test_the_spaces_of_the_project_reach_every_network_that_they_name() -> None:
    generator = np.random.default_rng(0)
    networks = {name: [read.random(generator) for _ in range(200)] for name in SPACES for read in (read_space(name),)}
    assert {draw["architecture"] for draw in networks["classic"]} == {"cnn_32_64_128", "cnn_64_128_512"}
    assert {len(draw["kernels"]) for draw in networks["classic"]} == {3, 4}
    assert 0 in {draw["attention_reduction"] for draw in networks["compact"]}
    assert max(draw["widths"] for draw in networks["compact"]) == (48, 96, 192)


def test_a_report_says_in_words_what_is_searched() -> None:
    described = {line.name: line for line in space().describe()}
    assert described["learning_rate[optimizer=adamw]"][1:] == ("log", "0.0001 to 0.01, if optimizer=adamw", True)
    assert described["learning_rate[otherwise]"].values == "0.05"
    assert described["dropout"].values == "0.1 to 0.5 in steps of 0.2"
    assert described["depths"].values == "[1, 1], [2]"
    assert described["batch_size"][1:] == ("log_integer", "16 to 64", True)


WRONG = [
    ("dropuot: 0.3", 1, "did you mean 'dropout'"),
    ("dropout: {unifrom: [0, 0.5]}", 1, "did you mean 'uniform'"),
    ("dropout: {uniform: [0, 0.5], log: [1, 2]}", 1, "exactly one kind"),
    ("dropout: {step: 0.1}", 1, "exactly one kind"),
    ("dropout:\n  uniform: [0.5, 0.1]", 2, "must be the lower one"),
    ("learning_rate: {log: [0, 1]}", 1, "above 0"),
    ("learning_rate: {log: [0.1]}", 1, "two numbers"),
    ("learning_rate: {log: [.nan, 1]}", 1, "cannot be used"),
    ("learning_rate: {log: [0.1, 1e400]}", 1, "not .1e400"),
    ("learning_rate: {choice: [0.1, high]}", 1, "must be a number, not 'high'"),
    ("batch_size: {uniform: [16, 64]}", 1, "use integer"),
    ("batch_size: {log: [16, 64]}", 1, "use log_integer"),
    ("batch_size: {integer: [16, 64], step: 5}", 1, "evenly"),
    ("batch_size: {log_integer: [16, 64], step: 2}", 1, "no `step`"),
    ("rotation: {integer: [0.5, 10]}", 1, "whole number"),
    ("optimizer: {uniform: [0, 1]}", 1, "use {choice"),
    ("optimizer: [adamw, sgd]", 1, "{choice"),
    ("widths: [[8, 16, 32], [16, 32, 64]]", 1, "{choice"),
    ("optimizer: {choice: [adamw, lion]}", 1, "adamw, adam, sgd"),
    ("optimizer: {choice: []}", 1, "one value or more"),
    ("optimizer: {choice: adamw}", 1, "one value or more"),
    ("optimizer:\n  choice:\n    - sgd\n    - adamw\n    - sgd", 5, "twice"),
    ("flip: {choice: [true, maybe]}", 1, "must be true or false"),
    ("zoom: 0.1\nflip: true\nzoom: 0.2", 3, "already in line 1"),
    ("zoom: 0.1\nflip: true", 1, "nothing to search"),
    ("- zoom", 1, "one `setting: values` a line"),
    ("", 1, "one `setting: values` a line"),
    ("flip: true\nzoom: {uniform: [0, 0.3}\nblur: 1", 2, "no YAML"),
    ("flip: true\n  zoom: 1", 2, "no YAML"),
    ("flip: true\nzoom: 'a", 2, "no YAML"),
    ("flip: true\nzoom: \x00", 2, "no YAML"),
    ("optimizer: !!python/name:os.system adamw", 1, "does not read"),
    # conditions
    ("zoom: {uniform: [0, 1], when: {optimizr: sgd}}", 1, "did you mean 'optimizer'"),
    ("zoom: {uniform: [0, 0.5], when: {flip: true}}\nflip: {choice: [true, false]}", 1, "further up"),
    ("flip: true\nzoom: {uniform: [0, 0.5], when: {flip: true}}", 2, "one value only"),
    ("blur: {uniform: [0, 1]}\nzoom: {uniform: [0, 0.5], when: {blur: 1}}", 2, "whole numbers can be met"),
    ("optimizer: {choice: [adamw, sgd]}\nzoom: {uniform: [0, 0.5], when: {optimizer: [sgd, adam]}}", 2, "never adam in this file"),
    ("depths: {choice: [[1, 1, 1], [2, 2, 2]]}\nzoom: {uniform: [0, 0.5], when: {depths: [1, 2, 1]}}", 2, "is never"),
    ("flip: {choice: [true, false]}\nzoom:\n  - {uniform: [0, 0.5]}\n  - {choice: [0.1], when: {flip: true}}", 3, "needs a `when`"),
    ("flip: {choice: [true, false]}\nzoom:\n  - {choice: [0.2], when: {flip: yes}}\n  - {choice: [0.1], when: {flip: true}}", 4, "already"),
    (
        "optimizer: {choice: [adamw, sgd]}\nzoom: {choice: [0.1, 0.2], when: {optimizer: sgd}}\n"
        "blur: {uniform: [0, 1], when: {optimizer: adamw, zoom: 0.1}}",
        3,
        "never applies",
    ),
    # values that the recipe refuses
    ("flip: {choice: [true, false]}\ndropout: 1.5", 2, "dropout 1.5: .* between 0 and 1"),
    ("flip: {choice: [true, false]}\ndropout: {uniform: [0.2, 1]}\nzoom: 0.1", 2, "dropout 1.0"),
    ("zoom:\n  choice:\n    - 0.1\n    - 1.5\nblur: 0.1", 4, "'zoom' .* must be below 1, not 1.5"),
    ("weight_decay: {choice: [-0.1, 0.1]}\nmixup: 0.2", 1, "'weight_decay' .* must be at least 0, not -0.1"),
    ("widths: {choice: [[8, 16], [8, 16, 32]]}\ndepths: [1, 1, 1]\nzoom: 0.2", 1, "one depth for each"),
    ("stem: 8\ndepths: {choice: [[1, 1], [1, 1, 1]]}\nwidths: {choice: [[8, 16], [8, 16, 32]]}", 3, "one depth for each"),
    ("architecture: {choice: [residual, cnn_32_64_128]}\nkernels: {choice: [[3, 3, 3]]}", 2, "kernels is for the classic"),
    ("architecture: cnn_32_64_128\nkernels: {choice: [[3, 3, 3], [3, 4, 3]]}", 2, "odd numbers"),
    ("architecture: cnn_32_64_128\nwidths: {choice: [[8, 8], [8, 8, 8]]}\nkernels: [3, 3, 3]", 3, "one number for each"),
]


@pytest.mark.parametrize(("text", "line", "complaint"), WRONG)
def test_a_wrong_space_is_refused_with_the_line_that_is_wrong(text: str, line: int, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        parse_space(text, "s.yaml")
    sentence = str(caught.value)
    assert f"s.yaml:{line}" in sentence
    assert "\n" not in sentence
    assert len(sentence) < 700


def test_a_hostile_or_missing_file_is_refused_at_once(tmp_path: Path) -> None:
    levels = [f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in itertools.pairwise("abcdefghij")]
    bomb = "dropout: {choice: &a [1, 2, 3]}\n" + "\n".join(levels)
    for number, content in enumerate(
        (bomb, "[" * 100_000, "dropout: " + "{choice: " * 20_000, "# " + "x" * (1 << 20), "seed: " + "9" * 5000)
    ):
        file = tmp_path / f"{number}.yaml"
        file.write_text(content)
        with pytest.raises(UsageError) as caught:
            read_space(str(file))
        assert len(str(caught.value)) < 700
    (tmp_path / "latin.yaml").write_bytes(b"# \xe9\n")
    for place, complaint in ((tmp_path / "latin.yaml", "UTF-8"), (tmp_path, "cannot be read"), (tmp_path / "no", "compact, classic")):
        with pytest.raises(UsageError, match=complaint):
            read_space(str(place))
