"""What a user types becomes a configuration, or one sentence that says why not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fer_ray.cli.flags import parse
from fer_ray.config.jobs.label import LabelConfig
from fer_ray.config.jobs.train import TrainConfig
from fer_ray.errors import UsageError


def label(*arguments: str) -> LabelConfig:
    return parse(LabelConfig, arguments, "")


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("input: photos\noutput: tables\nmin-face-size: 30\nbatch_size: 8\nmax_megapixels: 12\nrun_date: 2026-11-20\n")
    config = label("--config", str(file), "--batch-size", "16")
    assert (config.input, config.batch_size, config.labeling.min_face_size) == (("photos",), 16, 30)
    assert config.labeling.max_megapixels == 12.0
    assert config.labeling.detector_side == LabelConfig().labeling.detector_side
    assert config.date().isoformat() == "2026-11-20"
    train = parse(TrainConfig, ["--dataset", "d", "--output", "o", "--widths", "8", "16", "--depths", "1", "1", "--no-flip"], "")
    assert train.recipe.model.widths == (8, 16)
    assert not train.recipe.augmentation.flip


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("colour: red", "'colour'"),
        ("batchsize: 8", "did you mean batch_size?"),
        ("batch_size: many", "'batch_size' in .* must be a whole number, not 'many'"),
        ("limit: true", "'limit'"),
        ("- 1", "name: value"),
        ("a: [", "cannot be read"),
        ("min_face_score: 2", "must be at most 1, not 2"),
        ("run_date: 2026-02-30", "'2026-02-30' is not a date"),
        ("keep_days: .inf", "'keep_days' in .* must be a number, not inf"),
        ("keep_days: 1e9", "at most 36500"),
        ("unknown_below: .nan", "'unknown_below' in .* must be a number, not nan"),
        ("batch_size: 999999999999999999999999999999", "batch_size must be at most 4,294,967,295"),
        ("batch_size: &x [*x]", "anchor &x"),
        ("batch_size: &a [x, x]\nlimit: [*a, *a]", "anchor &a"),
        ("? &a [*a]\n: 1", "cannot be read"),
        ("a: !!bool x", "cannot be read"),
        ("a: !!timestamp x", "cannot be read"),
        ("[" * 50_000, "nested too deeply"),
        ("a: " + "9" * 5000, "cannot be read"),
        ("model: " + "x" * 70_000, "larger than 65,536 bytes"),
        ('run_id: "a\\0b"', "run id"),
        ('model: "a\\0b"', "model must be text in UTF-8 without zero bytes"),
        ('output: "\\ud800"', "output must be text in UTF-8"),
        ("? [1, 2]\n: 3", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, content: str, complaint: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(UsageError, match=complaint) as refused:
        label(*([] if "output" in content else ["--output", "o"]), "--config", str(file))
    assert len(str(refused.value)) < 700
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--input", "photos"], "--output"),
        (["--output", "o", "--run-id", "../x"], "run id"),
        (["--output", "o", "--run-date", "yesterday"], "yesterday"),
        (["--output", "o", "--limit", "0"], "limit"),
        (["--output", "o", "--limit", "few"], "few"),
        (["--output", "o", "--max-megapixels", "1000"], "178"),
        (["--outptu", "o"], "--outptu. Did you mean --output?"),
        (["--output", "o", "--min-face-score", "2"], "at most 1, not 2"),
        (["--output", "o\udcff"], "output must be text in UTF-8"),
        (["--output", "o", "--run-date", "2026-02-30"], "2026-02-30"),
        (["--output", "o", "--s3-endpoint", "http://store:99999"], "must look like https://store.example.org:9000"),
        (["--output", "o", "--s3-endpoint", "http://user:pass@store"], "without credentials in it"),
        (["--output", "o", "--keep-days", "inf"], "keep_days must be a number, not inf"),
        (["--output", "o", "--max-file-megabytes", "nan"], "max_file_megabytes must be a number, not nan"),
        (["--output", "o", "--keep-days", "1e300"], "at most 36500"),
        (["--output", "o", "--limit", "9" * 5000], "unable to convert"),
    ],
)
def test_a_wrong_command_line_is_refused_by_name(arguments: list[str], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        label(*arguments)


def test_a_recipe_of_the_package_is_named_and_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("dataset: ~/faces\noutput: ~/model\nferplus: ~/votes.csv\n")
    config = parse(TrainConfig, ["--config", "~/c.yaml"])
    assert (config.data.dataset, config.output, config.data.ferplus) == (
        f"{tmp_path}/faces",
        f"{tmp_path}/model",
        (f"{tmp_path}/votes.csv",),
    )
    assert parse(TrainConfig, ["--config", "ferplus", "--dataset", "d", "--output", "o"]).recipe.model.attention_reduction == 0


@pytest.mark.parametrize(
    ("happens", "exit_code", "reason"),
    [
        ("raise StorageError('The store is down.')", 1, "The store is down."),
        ("raise ZeroDivisionError('no such thing')", 1, "ZeroDivisionError: no such thing"),
        ("raise UsageError('No such folder.')", 2, "No such folder."),
        ("raise KeyboardInterrupt", 130, "interrupted"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "terminated"),
        ("", 2, "The setting limit must be above 0"),
    ],
)
def test_the_alarm_command_is_run_for_every_exit_code_but_0_and_told_the_reason(
    happens: str, exit_code: int, reason: str, tmp_path: Path
) -> None:
    alarm = tmp_path / "it's an alarm.json"
    code = f"""
import os, signal
from fer_ray.cli.main import main
from fer_ray.errors import StorageError, UsageError
from fer_ray.label import job

def happen(*_):
    {happens or "pass"}

job._label = happen
main(["label", "--input", "in", "--output", "out", "--alarm-command", {f'tee "{alarm}"'!r}, *{[] if happens else ["--limit", "0"]}])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == exit_code, done.stderr
    told = json.loads(alarm.read_text())
    assert (told["status"], told["exit_code"]) == ("failed", exit_code)
    assert reason in told["reason"]
