"""When a night rings: what moved in a folder does, another mix of folders does not, and how the operator is told."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pages import Page
from rayless import label_without_ray

from fer_ray.config.jobs.label import LabelConfig
from fer_ray.emotions import EMOTIONS
from fer_ray.errors import StorageError, UsageError
from fer_ray.label import job
from fer_ray.label.outcome import judge
from fer_ray.label.report import page
from fer_ray.label.report.aggregates import FolderNight, RunAggregates, add_up
from fer_ray.label.report.nightly import Change, compare_folders, compare_nights
from fer_ray.label.report.summary import FolderCounts, RunSummary

PORTRAITS, CROWDS = (0.02, 0.01, 0.02, 0.6, 0.25, 0.05, 0.03, 0.02), (0.05, 0.02, 0.05, 0.2, 0.5, 0.12, 0.04, 0.02)
MOVED = (0.02, 0.01, 0.02, 0.45, 0.40, 0.05, 0.03, 0.02)  # of the portraits, 15 points


def draw(generator: np.random.Generator, shares: Any, faces: int, images: int | None = None) -> FolderNight:
    return FolderNight(Counter(dict(zip(EMOTIONS, generator.multinomial(faces, shares).tolist(), strict=True))), images or faces)


def compare(tonight: dict[str, FolderNight], nights: list[dict[str, FolderNight]]) -> Change:
    history = {name: [night[name] for night in nights if name in night] for name in tonight}
    return compare_folders(tonight, history, add_up(one.emotions for night in nights for one in night.values()))


def test_another_mix_of_folders_is_no_drift_and_a_folder_that_moved_is_named() -> None:
    generator = np.random.default_rng(0)
    nights = [{"portraits/": draw(generator, PORTRAITS, 300), "crowds/": draw(generator, CROWDS, 3000)} for _ in range(6)]
    mixed = compare({"portraits/": draw(generator, PORTRAITS, 300)}, nights)
    assert (mixed.drift_psi, mixed.drift_folder) == (0, None)
    assert mixed.mix_psi is not None
    assert mixed.mix_psi > 0.2, "as a whole, that night rang"
    moved = compare({"portraits/": draw(generator, MOVED, 1000), "crowds/": draw(generator, CROWDS, 9000)}, nights)
    assert moved.drift_folder == "portraits/"
    assert moved.drift_psi == pytest.approx(0.15 * np.log(0.6 / 0.45) + 0.15 * np.log(0.4 / 0.25), abs=0.05)
    assert compare({"portraits/": draw(generator, MOVED, 1000)}, nights[:4]).drift_psi is None, "too few nights to know what is usual"
    small = {f"{number}/": draw(generator, MOVED, 50) for number in range(20)}
    usual = [{name: draw(generator, PORTRAITS, 50) for name in small} for _ in range(6)]
    together = compare(small, usual)
    assert (together.drift_folder, (together.drift_psi or 0) > 0.03) == (None, True), "small folders are compared together"


def test_a_folder_whose_nights_differ_anyway_rings_only_when_it_differs_more() -> None:
    generator = np.random.default_rng(1)
    alarms = 0
    for _ in range(100):
        nights = [{"events/": draw(generator, generator.dirichlet(np.array(CROWDS) * 50), 1000)} for _ in range(11)]
        alarms += (compare(nights[0], nights[1:]).drift_psi or 0) > 0.03
    assert alarms <= 5, "sampling alone would let nearly all of them ring"


def test_a_folder_of_today_has_the_days_before_as_its_history_and_a_new_one_is_part_of_the_mix() -> None:
    generator = np.random.default_rng(2)
    earlier = []
    for day in range(1, 7):
        night = draw(generator, PORTRAITS, 400, images=200)
        folder = f"/archive/2026/12/0{day}/"
        earlier.append(_aggregates(folder, night))
    summary = RunSummary("/archive/2026/", folders={"12/07/": _counts(MOVED, 1000, 2000), "weddings/a/": _counts(CROWDS, 500, 100)})
    change = compare_nights(summary, earlier)
    assert change.drift_folder == "/archive/2026/12/07/"
    assert change.faces_ratio == pytest.approx(0.25), "half a face an image, where there were two"
    assert json.loads(earlier[0].to_json())["images"] == {"/archive/2026/12/01/": 200}
    assert RunAggregates.from_json(earlier[0].to_json()) == earlier[0]


def _counts(shares: Any, faces: int, images: int) -> FolderCounts:
    counts = FolderCounts()
    counts.statuses[0] = images
    counts.faces[: len(EMOTIONS), 0] = np.round(np.array(shares) * faces)
    return counts


def _aggregates(folder: str, night: FolderNight) -> RunAggregates:
    row = {"run_id": folder[-3:-1], "run_date": "2026-12-01", "finished_at": "2026-12-01T00:00:00+00:00", "format_version": 1}
    row |= dict.fromkeys(("model_version", "detector_version", "input_uri"), "x")
    sums = {"base": "/archive/2026/", "levels": 2, "statuses": {}, "emotions": night.emotions, "folders": {folder: night.emotions}}
    return RunAggregates.from_json(json.dumps({**row, **sums, "images": {folder: night.images}}).encode())


def test_a_night_that_drifted_says_so_everywhere_and_trouble_with_measuring_it_costs_no_label(
    photographs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = LabelConfig(
        (str(photographs["grace_hopper"]),), str(tmp_path / "out"), alarm_command=f"tee '{tmp_path / 'alarm.json'}'", all=True
    )

    def fail(*_: object) -> None:
        raise StorageError("The store is away.")

    with monkeypatch.context() as patched:
        patched.setattr(job, "measure", fail)
        summary, exit_code = label_without_ray(config)
    assert (exit_code, summary["status"], summary["drift_psi"]) == (0, "done", None)
    assert "could not be measured: The store is away." in caplog.text
    assert not (tmp_path / "alarm.json").exists()

    monkeypatch.setattr(page, "compare_nights", lambda *_: Change(0.14, "/archive/\x1b[31mportraits/", 0.35, 0.9))
    summary, exit_code = label_without_ray(config)
    assert (exit_code, summary["status"], summary["drift_psi"]) == (3, "drifted", 0.14)
    reason = "The emotions in /archive/\\x1b[31mportraits/ moved by a PSI of 0.140, where max_drift allows 0.03."
    assert f"{reason} Look at {summary['report']}" in caplog.messages
    assert json.loads((tmp_path / "alarm.json").read_text()) == {**summary, "exit_code": 3, "reason": reason}
    assert reason in Page(Path(summary["report"]).read_text()).text
    row = pq.read_table(tmp_path / "out" / "runs" / f"{summary['run_id']}.parquet").to_pylist()[0]
    assert (row["status"], row["drift_psi"], row["mix_psi"]) == ("drifted", pytest.approx(0.14), pytest.approx(0.35))
    assert judge(LabelConfig(output="out", max_drift=0.2), row) == ("done", ""), "a higher limit lets it pass"
    status, reason = judge(LabelConfig(output="out"), row | {"faces_ratio": 0.4})
    assert (status, "fell to 40.0" in reason) == ("fewer_faces", True)


@pytest.mark.parametrize(
    ("name", "value"), [("max_drift", -0.1), ("max_drift", float("nan")), ("max_face_drop", 1.5), ("max_error_share", 2)]
)
def test_a_threshold_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"The setting {name} must be") as refused:
        LabelConfig(("in",), "out", **{name: value})  # type: ignore[arg-type]
    assert refused.value.exit_code == 2
