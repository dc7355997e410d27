"""The audit job: a sample to judge, and, from the answers, how right the labels of this archive are."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from fer_ray.audit.answers import UNCLEAR, label_studio_interface, label_studio_tasks, read_answers
from fer_ray.audit.estimates import LEVEL, Estimates, Interval, Stratum, adapt, estimate
from fer_ray.audit.sample import Sample, draw
from fer_ray.browse.crops import key_of, read_pictures
from fer_ray.browse.query import opened
from fer_ray.browse.runs import open_tables
from fer_ray.config.jobs.audit import AuditConfig
from fer_ray.emotions import EMOTIONS
from fer_ray.errors import BundleError, UsageError
from fer_ray.io.storage import Storage, absolute, is_remote, join
from fer_ray.models import bundle
from fer_ray.models.calibration import ArchiveCalibration, fit_to_archive
from fer_ray.reporting.html import NOTHING, data_uri, render
from fer_ray.text import percent, plural
from fer_ray.typing import Float64Array, Int64Array

LOGGER = logging.getLogger(__name__)
SAMPLE_FILE, PAGE_FILE, TASKS_FILE, INTERFACE_FILE = "sample.json", "audit.html", "label_studio_tasks.json", "label_studio.xml"
RESULT_FILE, MODEL_FOLDER = "result.json", "model"
MAX_ANSWER_BYTES = 256 << 20  # Label Studio exports the pictures too
MIN_ANSWERS = 30
MIN_FOLDER_FACES = 100
MAX_FOLDERS = 20


def audit(config: AuditConfig) -> dict[str, Any]:
    """Draw a sample and write its page, or say what its answers mean.

    Returns:
        The summary.

    Raises:
        UsageError: the tables, the output or the answers cannot be used.
    """
    return _judge(config) if config.answers else _draw(config)


def _draw(config: AuditConfig) -> dict[str, Any]:
    storage, tables = open_tables(config)
    output = absolute(config.output, "output")
    if any(entry.error is None for entry in itertools.islice(storage.list_files(output), 1)):
        raise UsageError(f"{output} is there already: name a new folder, or give its --answers.")
    with opened(storage, tables) as connection:
        drawn, rows = draw(connection, config.faces, config.seed)
    pictures = read_pictures(storage, tables, rows)
    shown = [face for face, row in zip(drawn.faces, rows, strict=True) if key_of(row) in pictures]
    if not shown:
        raise UsageError("None of these faces has a picture: their crops were not kept, and their photographs are gone or changed.")
    sample = Sample(drawn.model_version, drawn.model_name, drawn.strata, shown)
    addresses = {face.key: data_uri(pictures[face.image_id, face.face_index], "image/jpeg") for face in shown}
    values = {
        "audit": sample.audit_id,
        "emotions": EMOTIONS,
        "unclear": UNCLEAR,
        "faces": [{"key": face.key, "picture": addresses[face.key]} for face in shown],
    }
    page = render("fer_ray.audit", "audit.html.j2", ["audit.css"], ["audit.js"], title="What do these faces show?", audit=values)
    storage.write(join(output, PAGE_FILE), page.encode())
    storage.write(join(output, TASKS_FILE), label_studio_tasks(sample, addresses))
    storage.write(join(output, INTERFACE_FILE), label_studio_interface())
    storage.write(join(output, SAMPLE_FILE), sample.to_json())
    if len(shown) < len(rows):
        LOGGER.warning(
            "%s of the sample without a picture: crop not kept, photograph gone or changed", plural(len(rows) - len(shown), "face")
        )
    LOGGER.info("open %s, answer with the keys 1 to 8, save, and give the file to --answers", join(output, PAGE_FILE))
    return {"output": output, "audit": sample.audit_id, "faces": len(shown), "model_version": sample.model_version}


def _judge(config: AuditConfig) -> dict[str, Any]:
    storage, tables = open_tables(config)
    output = absolute(config.output, "output")
    sample = _read_sample(storage, output)
    try:
        content = storage.read(absolute(config.answers, "file of answers"), MAX_ANSWER_BYTES)
    except FileNotFoundError as error:
        raise UsageError(f"The answers {config.answers} are not there: name the file that the page saved.") from error
    answers = read_answers(content, sample, config.answers)
    clear = {key: EMOTIONS.index(answer) for key, answer in answers.items() if answer != UNCLEAR}
    if len(clear) < MIN_ANSWERS:
        raise UsageError(f"The answers {config.answers} are about {plural(len(clear), 'face')}: answer {MIN_ANSWERS} at least.")
    by_folder = _check_tables(storage, tables, sample)
    strata = _strata(sample, clear)
    found = estimate(strata)
    calibration = _calibrate(sample, clear, strata)
    shares = np.array([one.value for one in found.shares])
    result = {
        "audit": sample.audit_id,
        "model_version": sample.model_version,
        "answers": len(clear),
        "unclear": len(answers) - len(clear),
        "level": LEVEL,
        **_figures(found, strata),
        "calibration": {"slope": calibration.slope, "offsets": dict(zip(EMOTIONS, calibration.offsets.tolist(), strict=True))},
        "folders": {
            name: {"faces": len(rows), "shares": dict(zip(EMOTIONS, adapt(calibration.apply(rows), shares).tolist(), strict=True))}
            for name, rows in by_folder.items()
        },
    }
    model = _write_model(config, storage, output, sample, calibration) if not is_remote(output) else None
    storage.write(join(output, RESULT_FILE), (json.dumps(result, indent=1) + "\n").encode())
    told = {name: value for name, value in result.items() if name != "folders"}
    return {"lines": [*_lines(found, result), *_about_model(model)], **told, "model": model}


def _read_sample(storage: Storage, output: str) -> Sample:
    try:
        return Sample.from_json(storage.read(join(output, SAMPLE_FILE)))
    except FileNotFoundError as error:
        raise UsageError(f"{output} holds no audit: name the folder that `fer-ray audit` wrote.") from error
    except ValueError as error:
        raise UsageError(f"{join(output, SAMPLE_FILE)} cannot be read ({str(error)[:100]}): draw the audit anew.") from error


def _check_tables(storage: Storage, tables: str, sample: Sample) -> dict[str, Float64Array]:
    """Make sure that the tables hold these faces under this model; gives the probabilities of the largest folders."""
    probabilities = ", ".join(f"coalesce(prob_{emotion}, 0)" for emotion in EMOTIONS)
    keys = [face.image_id for face in sample.faces]
    with opened(storage, tables) as connection:
        models = [version for (version,) in connection.sql("SELECT DISTINCT model_version FROM faces_latest").fetchall()]
        if models != [sample.model_version]:
            found = ", ".join(models) or "no model"
            raise UsageError(f"The audit is about the model {sample.model_version}, and the tables show {found}: draw another audit.")
        known = connection.execute("SELECT count(DISTINCT image_id) FROM faces_latest WHERE list_contains($1, image_id)", [keys]).fetchall()
        if known[0][0] < len(set(keys)):
            raise UsageError("The audit is about other faces than these tables hold: name the tables that it was drawn from.")
        folder = "regexp_extract(image_uri, '(?s)^(.*)/', 1)"
        counted = f"SELECT {folder}, count(*) FROM faces_latest GROUP BY 1 HAVING count(*) >= {MIN_FOLDER_FACES}"  # noqa: S608 - constants
        largest = connection.sql(f"{counted} ORDER BY 2 DESC, 1 LIMIT {MAX_FOLDERS}").fetchall()
        query = f"SELECT {probabilities} FROM faces_latest WHERE {folder} = $1"  # noqa: S608 - names of columns; the folder is a parameter
        return {name: np.array(connection.execute(query, [name]).fetchall(), np.float64) for name, _ in largest}


def _strata(sample: Sample, clear: dict[str, int]) -> list[Stratum]:
    counts = np.zeros((len(sample.strata), len(EMOTIONS)), np.int64)
    for face in sample.faces:
        if face.key in clear:
            counts[face.stratum, clear[face.key]] += 1
    return [
        Stratum(EMOTIONS.index(one.predicted), one.faces, np.array(one.mean), counts[number]) for number, one in enumerate(sample.strata)
    ]


def _calibrate(sample: Sample, clear: dict[str, int], strata: list[Stratum]) -> ArchiveCalibration:
    """Fitted to the answers, each with the weight of the faces that it stands for."""
    known = np.array([face.probabilities for face in sample.faces]).max(axis=0) > 0  # the classes that the model has
    judged = [face for face in sample.faces if face.key in clear and known[clear[face.key]]]
    weights = np.array([strata[face.stratum].faces / strata[face.stratum].answers.sum() for face in judged])
    labels: Int64Array = np.array([clear[face.key] for face in judged], np.int64)
    probabilities = np.array([face.probabilities for face in judged])[:, known]
    fitted = fit_to_archive(probabilities, (np.cumsum(known) - 1)[labels], weights / weights.mean())
    offsets = np.zeros(len(EMOTIONS))
    offsets[known] = fitted.offsets
    return ArchiveCalibration(fitted.slope, offsets)


def _figures(found: Estimates, strata: list[Stratum]) -> dict[str, Any]:
    faces = np.array([one.faces for one in strata])
    counted = np.bincount([one.predicted for one in strata], faces, len(EMOTIONS)) / faces.sum()
    meant = (np.stack([one.mean for one in strata]) * faces[:, None]).sum(axis=0) / faces.sum()
    return {
        "faces": int(faces.sum()),
        "accuracy": vars(found.accuracy),
        "emotions": {
            name: {
                "counted_share": counted[place],
                "probability_share": meant[place],
                "corrected_share": vars(found.shares[place]),
                "precision": vars(one) if (one := found.precision[place]) else None,
                "recall": vars(two) if (two := found.recall[place]) else None,
            }
            for place, name in enumerate(EMOTIONS)
        },
    }


def _lines(found: Estimates, result: dict[str, Any]) -> list[str]:
    def shown(one: Interval | None) -> str:
        return f"{percent(one.value, 1)} ({percent(one.low, 1)} to {percent(one.high, 1)})" if one else NOTHING

    unclear = f", {result['unclear']} unclear" if result["unclear"] else ""
    answers, faces = plural(result["answers"], "answer"), plural(result["faces"], "face")
    lines = [
        f"{answers}{unclear}, for {faces} of {result['model_version']}; {LEVEL:.0%} intervals",
        f"accuracy in this archive: {shown(found.accuracy)}",
        f"{'':9}  {'counted':>8}  {'corrected share':>24}  {'precision':>24}  {'recall':>24}",
    ]
    for place, name in enumerate(EMOTIONS):
        counted = percent(result["emotions"][name]["counted_share"], 1)
        cells = (shown(found.shares[place]), shown(found.precision[place]), shown(found.recall[place]))
        lines.append(f"{name:9}  {counted:>8}  " + "  ".join(f"{cell:>24}" for cell in cells))
    return lines


def _write_model(
    config: AuditConfig, storage: Storage, output: str, sample: Sample, calibration: ArchiveCalibration
) -> dict[str, str] | None:
    """The model with the calibration, as a bundle of its own version; None where the model is not at hand."""
    named = config.model or (sample.model_name if sample.model_name in bundle.BUNDLED else "")
    if not named:
        return None
    target = Path(output) / MODEL_FOLDER
    with bundle.local_copy(storage, absolute(bundle.resolve(named), "model")) as folder:
        content = bundle.read_metadata(folder)
        flip = bundle.version_of(content, flip=True) == sample.model_version
        if not flip and bundle.version_of(content, flip=False) != sample.model_version:
            raise BundleError(f"The model {named} is not {sample.model_version}, which the audit is about: give that one as --model.")
        if content["calibration"].get("archive"):
            raise BundleError(f"The model {named} is calibrated for an archive already: audit labels of the model that it was made of.")
        content["flip"] = content["flip"] or flip
        offsets = calibration.offsets[[EMOTIONS.index(name) for name in content["classes"]]]
        content["calibration"]["archive"] = ArchiveCalibration(calibration.slope, offsets).to_dict()
        content["lineage"] = {**content["lineage"], "audit": sample.audit_id}
        unfinished = target.with_name(f"{MODEL_FOLDER}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(folder, unfinished)
        bundle.write_metadata(str(unfinished), content)
        bundle.load(str(unfinished), threads=1)
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
    return {"folder": str(target), "model_version": content["model_version"]}


def _about_model(model: dict[str, str] | None) -> list[str]:
    if model is None:
        return ["no calibrated model was written: give --model DIR, and an output on this machine"]
    return [f"calibrated for this archive: {model['model_version']}; label or relabel with --model {model['folder']}"]
