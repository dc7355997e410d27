"""The report of a run: what an operator reads in the morning, and what a stranger's file name cannot do to them."""

import base64
import dataclasses
import io
import itertools
import os
import re
import shutil
from pathlib import Path
from urllib.parse import quote

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.special
from browser import browsed, fits, needs_browser
from pages import Page
from PIL import Image
from rayless import label_without_ray
from run_tables import write_run
from sites import DEADLY, with_site
from stores import S3Server

from fer_ray.config.jobs.label import LabelConfig
from fer_ray.io.storage import Storage
from fer_ray.label.job import label
from fer_ray.label.report import apart, picture, samples
from fer_ray.label.report import summarize as counting
from fer_ray.label.report.aggregates import RunAggregates, history_by_folder, read_earlier_runs
from fer_ray.label.report.content import ReportContent, RunReport
from fer_ray.label.report.drift import MOVED, PSI_WATCH, WATCHED, chi_squared, measure_drift, stability_index
from fer_ray.label.report.page import write_report
from fer_ray.label.report.picture import TILE, draw_picture
from fer_ray.label.report.summarize import summarize
from fer_ray.label.report.summary import LABELS, OTHERS
from fer_ray.label.run import Run, identify, read_run
from fer_ray.label.views import write_views
from fer_ray.schema import RUNS

HOSTILE = "<img src=x onerror=window.hacked=1>"
HOSTILE_FOLDER = "\"'><b onmouseover=window.hacked=1>"
BROKEN = "<script>window.hacked=1<!-- \u2028\u202e &lt; `${1}`.jpg"
EVEN, SHIFTED = (0.1, 0.05, 0.05, 0.1, 0.3, 0.25, 0.1, 0.05), (0.2, 0.05, 0.05, 0.2, 0.1, 0.25, 0.1, 0.05)
FOLDERS = ["2025/01", "2025/02", "2026/01"]


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, Path]) -> tuple[LabelConfig, Path]:
    """Demo photographs under names that want to be markup, labeled by the job itself; one is gone by the time of the report."""
    root = tmp_path_factory.mktemp("archive") / ("a_folder_" * 20)
    root.mkdir()
    for folder in ("plain", HOSTILE_FOLDER):
        (root / folder).mkdir()
        shutil.copy(photographs["astronaut"], root / folder / f"{HOSTILE}.png")
        shutil.copy(photographs["coffee"], root / folder / "coffee.png")
    shutil.copy(photographs["grace_hopper"], root / "plain" / "hopper.jpg")
    (root / "plain" / BROKEN).write_text("no picture")
    config = LabelConfig((str(root),), str(root / "tables"), run_id="night-1", run_date="2026-11-20")
    summary, exit_code = label_without_ray(config)
    assert (exit_code, summary["images_total"], summary["images_failed"], summary["faces_total"]) == (0, 6, 1, 3)
    return config, root / "tables" / "reports" / "night-1" / "report.html"


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The reports of four nights: two alike, one on which emotions moved, and one without anything to do."""
    output = tmp_path_factory.mktemp("nights")
    runs = [
        write_run(output, f"night-{day}", day, EVEN if day < 19 else SHIFTED, 1200, FOLDERS, failed=100 * (day - 17))
        for day in (17, 18, 19)
    ]
    runs.append(write_run(output, "night-20", 20, EVEN, 0, FOLDERS))
    write_run(output, "other-model", 16, SHIFTED, 900, FOLDERS, model="m-2")
    return {run.run_id: Path(write_report(run, row)) for run, row in runs}


def test_the_report_of_a_real_run_shows_faces_and_failures_and_strangers_names_as_text(night: tuple[LabelConfig, Path]) -> None:
    content = night[1].read_text(encoding="utf-8")
    page = Page(content)
    for words in (
        HOSTILE,
        HOSTILE_FOLDER,
        "<script>window.hacked=1<!-- \\u2028\\u202e &lt; `${1}`.jpg",
        "undecodable",
        "apparent expressions",
    ):
        assert words in page.text, words
    assert "\u2028" not in content
    assert "\u202e" not in content
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert [attributes.get("type") for tag, attributes in page.tags if tag == "script"] == ["application/json", None]
    targets = [attributes["href"] or "" for tag, attributes in page.tags if tag == "a"]
    assert f"file://{quote(str(night[1].parents[3] / 'plain' / 'hopper.jpg'))}" in targets, "a face leads to its image"
    assert {target.partition(":")[0] for target in targets if target[0] not in "#."} == {"file"}
    pictures = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 5, "the two photographs, among the emotions and the least certain, and for its folder a copy of one"
    thumbnails = [Image.open(io.BytesIO(base64.b64decode(picture.removeprefix("data:image/jpeg;base64,")))) for picture in pictures]
    assert {(image.format, max(image.size) <= 96) for image in thumbnails} == {("JPEG", True)}


@pytest.mark.parametrize("end", ["POISON", "SLEEPY", "HUNGRY"])
def test_an_image_that_ends_holds_or_fills_its_decoder_costs_a_report_its_pictures_alone(
    night: tuple[LabelConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Whoever wrote it may have waited until it was labeled."""
    monkeypatch.setattr(samples, "SECONDS", 4.0)
    monkeypatch.setattr(picture, "SECONDS", 4.0)
    monkeypatch.setattr(apart, "MEMORY_BYTES", 1 << 30)
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    for name, value in with_site(tmp_path).items():
        monkeypatch.setenv(name, value)
    run = dataclasses.replace(identify(night[0]), output=str(tmp_path / "tables"))
    shutil.copytree(night[0].output, run.output)
    hopper = Path(night[0].input[0]) / "plain" / "hopper.jpg"
    before, content = hopper.stat(), hopper.read_bytes()
    try:
        hopper.write_bytes(content + end.encode())
        os.utime(hopper, ns=(before.st_atime_ns, before.st_mtime_ns))
        page = Page(Path(write_report(run, read_run(run))).read_text(encoding="utf-8"))
        sheet = Image.open(draw_picture(run, 3))
    finally:
        hopper.write_bytes(content)
        os.utime(hopper, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert "apparent expressions" in page.text
    assert sheet.width >= TILE
    assert [tag for tag, _ in page.tags].count("img") <= 2, "the other photograph, twice, where it came first"


def test_a_lost_report_is_written_by_the_next_start_and_trouble_with_it_does_not_fail_the_run(
    night: tuple[LabelConfig, Path], caplog: pytest.LogCaptureFixture
) -> None:
    config, report = night
    shutil.copytree(config.output, f"{config.output}-copy")
    config = dataclasses.replace(config, output=f"{config.output}-copy", thumbnails=False)
    reports = Path(config.output) / "reports"
    shutil.rmtree(reports)
    reports.write_text("in the way")
    assert label(config)[1] == 0
    assert "the report could not be written" in caplog.text
    reports.unlink()
    assert label(config)[1] == 0
    assert f"next: open {reports}/night-1/report.html in a browser" in caplog.messages
    page = Page((reports / "night-1" / "report.html").read_text(encoding="utf-8"))
    assert "img" not in {tag for tag, _ in page.tags}
    assert "--no-thumbnails" in page.text
    assert report.stat().st_size > (reports / "night-1" / "report.html").stat().st_size


def test_emotions_that_moved_since_earlier_runs_of_the_model_are_warned_of_and_those_that_did_not_are_not(nights: dict[str, Path]) -> None:
    moved = Page(nights["night-19"].read_text()).text
    assert "The emotions have moved since 2 earlier runs of this model" in moved
    assert re.search(r"all folders together, PSI 0\.[34]\d: happy 29\N{NO-BREAK SPACE}% to 10", moved)
    assert re.search(r"2025/02, PSI 0\.[2-6]\d: happy", moved)
    assert "../night-18/report.html" in nights["night-19"].read_text(), "the previous run is one click away"
    assert "2026-11-16" not in moved, "another model's runs are no measure"
    for alike in ("night-17", "night-18"):
        assert "The emotions" not in Page(nights[alike].read_text()).text
    assert "There are no earlier runs of this model to compare with." in Page(nights["night-17"].read_text()).text
    empty = Page(nights["night-20"].read_text())
    assert "There was nothing to label" in empty.text
    assert "2026-11-19" in empty.text
    assert "script" not in {tag for tag, _ in empty.tags}


def test_the_stability_index_is_the_one_of_the_books_and_too_few_faces_give_none() -> None:
    p, q = (300.5 / 401, 100.5 / 401), (100.5 / 401, 300.5 / 401)
    expected = sum((a - b) * np.log(a / b) for a, b in zip(p, q, strict=True))
    assert stability_index({"happy": 300, "sad": 100}, {"happy": 100, "sad": 300}) == pytest.approx(expected)
    assert stability_index({"happy": 400}, {"happy": 300, "fear": 0}) == 0
    assert 0 < (stability_index({"happy": 400}, {"happy": 399, "fear": 1}) or 0) < 0.01
    assert stability_index({"happy": 199}, {"happy": 10_000}) is None


def test_few_faces_that_differ_by_chance_are_no_drift() -> None:
    """Of 50 folders a night with 200 faces each, one in five would be above 0.1 without any cause."""
    generator = np.random.default_rng(5)
    drawn = [dict(zip(LABELS, generator.multinomial(200, EVEN).tolist(), strict=False)) for _ in range(1000)]
    exact = [scipy.special.chdtri(n, 0.001) for n in range(1, len(LABELS))]
    assert all(value <= chi_squared(n, 0.001) <= 1.031 * value for n, value in enumerate(exact, 1))
    drifts = [measure_drift(now, before) for now, before in itertools.pairwise(drawn)]
    assert sum((drift.index or 0) > PSI_WATCH for drift in drifts) > 100
    assert sum(bool(drift.level) for drift in drifts) <= 5
    assert measure_drift(drawn[0], {"happy": 400, "sad": 400}).level == MOVED
    even, beyond_chance = {"happy": 115, "sad": 85}, {"happy": 81, "sad": 119}  # chi-squared with one degree: 11.5, above 11.2
    assert measure_drift(beyond_chance, even).level == WATCHED
    assert measure_drift({"happy": 83, "sad": 117}, even).level == ""


def test_folders_are_compared_only_where_an_earlier_run_tells_the_same_images_apart(nights: dict[str, Path], tmp_path: Path) -> None:
    """The first night covers two years at two levels; the next one adds to a single folder and is compared with just that."""
    first, row = write_run(tmp_path, "first", 17, EVEN, 900, FOLDERS)
    write_report(first, row)
    second, row = write_run(tmp_path, "second", 18, EVEN, 250, ["2026/01/21"])
    write_report(second, row)
    (tmp_path / "reports" / "broken").mkdir()
    (tmp_path / "reports" / "broken" / "aggregates.json").write_text('{"format_version": 1}')
    shutil.copy(tmp_path / "runs" / "first.parquet", tmp_path / "runs" / "broken.parquet")
    earlier = read_earlier_runs(second, row)
    assert [one.run_id for one in earlier] == ["first"]
    found = summarize(second, [one.base for one in earlier])
    assert (found.base, list(found.folders)) == ("/archive/", ["2026/01/"])
    assert [sum(night.emotions.values()) for night in history_by_folder(earlier, found)["2026/01/"]] == [300]
    folders = {"/archive/2026/": {"happy": 7}, "/elsewhere/": {"happy": 9}}
    coarse = dataclasses.replace(earlier[0], levels=1, folders=folders, images={"/archive/2026/": 9})
    assert not history_by_folder([coarse], found)["2026/01/"]
    assert RunAggregates.from_json(coarse.to_json()) == coarse


def test_any_number_of_folders_and_errors_leaves_a_small_page_and_sums_that_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "MAX_FOLDERS_COUNTED", 1000)
    monkeypatch.setattr(counting, "MAX_TIMES", 100)
    monkeypatch.setattr(counting, "ROWS_PER_BATCH", 2000)
    small = [f"{number:05d}/x/y" for number in range(4000)]
    large = [f"{number:05d}-large" for number in range(0, 4000, 80) for _ in range(3)]
    run, row = write_run(tmp_path, "many", 20, EVEN, len(small) + len(large), sorted(small + large), failed=500)
    summary = summarize(run)
    assert (summary.levels, len(summary.folders)) == (1, 501)
    assert (summary.total.images, sum(summary.times.values())) == (4150, 4150)
    assert summary.total.emotions == summarize(run).total.emotions
    assert sum(summary.total.emotions.values()) == 3650
    assert sum(one.images for one in summary.failures) == 500
    shown = summary.limit_folders(50)
    assert [name for name in shown.folders if name != OTHERS] == [f"{number:05d}-large/" for number in range(0, 4000, 80)]
    assert (shown.total.images, shown.folders[OTHERS].images) == (4150, 4000)
    assert Path(write_report(run, row)).stat().st_size < 200_000


def test_runs_in_an_object_store_are_reported_and_compared_there(s3_server: S3Server, nights: dict[str, Path]) -> None:
    s3_server.client().create_bucket(Bucket="reports")
    storage = Storage(s3_server.endpoint)
    folder = nights["night-19"].parents[2]
    for file in folder.rglob("*.*"):
        if file.name != "report.html":
            storage.write(f"s3://reports/out/{file.relative_to(folder)}", file.read_bytes())
    local, row = write_run(folder, "night-19", 19, SHIFTED, 1200, FOLDERS, failed=200)
    run = dataclasses.replace(local, output="s3://reports/out", storage=storage)
    assert isinstance(run, Run)
    assert write_report(run, row) == "s3://reports/out/reports/night-19/report.html"
    assert storage.read("s3://reports/out/reports/night-19/report.html") == nights["night-19"].read_bytes()
    assert b'href="night-19/report.html"' in storage.read("s3://reports/out/reports/index.html")


def test_the_page_of_all_runs_leads_to_each_report_newest_first_and_shows_which_failed(tmp_path: Path) -> None:
    for day, failed in ((17, 0), (18, 10), (19, 150)):
        run, row = write_run(tmp_path, f"night-{day}", day, EVEN, 200, FOLDERS, failed=failed)
        if day == 19:
            row |= {"status": "too_many_failed", "drift_psi": 0.375, "model_name": HOSTILE}
            pq.write_table(pa.Table.from_pylist([row], schema=RUNS), run.commit_file)
        if day != 17:
            write_report(run, row)
    content = (tmp_path / "reports" / "index.html").read_text()
    page = Page(content)
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a" and attributes["href"] != "#top"]
    assert links == ["night-19/report.html", "night-18/report.html"], "a run without a report has no link"
    assert page.text.index("night-19") < page.text.index("night-18") < page.text.index("night-17")
    for words in ("too many failed", "75.0", "0.375", HOSTILE, "Images that failed"):
        assert words in page.text, words
    assert 'href="../index.html"' in (tmp_path / "reports" / "night-18" / "report.html").read_text()


def test_each_reason_stands_once_with_its_folders_and_queries_give_the_figures_again(tmp_path: Path) -> None:
    run, row = write_run(tmp_path, "night-20", 20, EVEN, 300, FOLDERS, failed=150)
    content = ReportContent(RunReport(row, summarize(run)))
    (reason,) = content.failures
    assert (reason["images"], [(name, images) for _, name, images in reason["folders"]]) == (150, [("2025/01", 100), ("2025/02", 50)])
    write_views(run.storage, str(tmp_path))
    with duckdb.connect() as connection:
        connection.sql((tmp_path / "views" / "duckdb.sql").read_text())
        answers = {section: connection.sql(query).fetchall() for section, query in content.queries.items()}
    assert {name: n for name, n, _ in answers["emotions"]} == content.total.emotions
    assert sum(faces for *_, faces in answers["folders"]) == 150
    assert sum(images for status, _, images, _ in answers["failures"] if status not in ("ok", "no_face")) == 150


@needs_browser
def test_a_browser_shows_the_report_without_an_error_and_its_choices_narrow_it(
    night: tuple[LabelConfig, Path], nights: dict[str, Path]
) -> None:
    with browsed(night[1]) as page:
        assert HOSTILE in page.inner_text("main")
        assert page.locator(".faces figure:visible").count() == 4
        assert page.locator("img:visible").evaluate_all("all => all.every(one => one.naturalWidth > 0)")
        options = page.locator("select[name=folder] option").all_inner_texts()
        assert options == ["all folders", HOSTILE_FOLDER, "plain"]
        page.select_option("select[name=folder]", label=HOSTILE_FOLDER)
        assert page.locator(".faces figure:visible").count() > 0, "every folder has its samples"
        assert page.locator(".errors tbody tr:visible").count() == 0
        assert page.is_visible("text=No image that fits the choice failed.")
        assert page.evaluate("window.hacked") is None

        page.goto(nights["night-19"].as_uri())
        assert page.is_visible("#drift")
        counts = page.locator("#emotion-shares [data-cell=count]").all_inner_texts()
        assert sum(int(count.replace(",", "")) for count in counts) == 1000
        page.select_option("select[name=folder]", label="2025/02")
        counts = page.locator("#emotion-shares [data-cell=count]").all_inner_texts()
        assert sum(int(count) for count in counts) == 400
        page.select_option("select[name=emotion]", "happy")
        assert page.inner_text("#confidence-faces") == counts[4]
        page.select_option("select[name=folder]", label="2025/01")
        assert page.inner_text("#statuses tr[data-status=undecodable] [data-cell=count]") == "200"
        page.select_option("select[name=status]", "too_large")
        assert page.locator(".errors tbody tr:visible").count() == 0
        page.select_option("select[name=status]", "undecodable")
        assert page.locator(".errors tbody tr:visible [data-cell=count]").all_inner_texts() == ["200"]
        page.click("text=show all")
        assert page.locator(".errors tbody tr:visible").count() == 1
        assert page.inner_text("#confidence-faces") == "1,000"

        page.goto(nights["night-20"].as_uri())
        assert page.is_visible("text=There was nothing to label")

        page.emulate_media(color_scheme="dark")
        for report in (night[1], *nights.values(), nights["night-19"].parents[1] / "index.html"):
            page.goto(report.as_uri())
            assert fits(page), "a phone shows the whole width"
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 25, 30)"
