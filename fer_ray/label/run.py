"""The identity of a run: what was asked for, under which id and date, and the places of its files."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.config.jobs.label import LabelConfig
from fer_ray.config.options import options_of
from fer_ray.data import demo_photos
from fer_ray.errors import DeniedError, OutageError, StorageError, UsageError
from fer_ray.io.inputs import check_inputs
from fer_ray.io.storage import Storage, absolute, join
from fer_ray.label.plan import PLAN_FILE, Plan, read_plan
from fer_ray.models import bundle
from fer_ray.schema import RUNS
from fer_ray.text import sanitize
from fer_ray.video.stretches import rate_of
from fer_ray.video.worker import FilmSettings

_ADDED = (  # since 0.1: they stand in a request where they say something
    "include",
    "exclude",
    "video_fps",
    "max_video_hours",
    "keep_crops",
    "crop_pixels",
)

_LATER_OPTIONS = frozenset(("location",))  # part of the request where they are on: what older versions planned is taken up


@dataclass(frozen=True)
class Run:
    """One labeling run and the places of its files. All addresses are absolute paths or s3:// URIs."""

    run_id: str
    run_date: datetime.date
    inputs: tuple[str, ...]
    output: str
    model: str
    model_version: str
    config: LabelConfig
    storage: Storage

    @property
    def request(self) -> dict[str, Any]:
        """What decides the result of a run; a run id belongs to one such request."""
        return {
            **_unusual(self.config),
            "input": list(self.inputs),
            "model": self.model_version,
            "limit": self.config.limit,
            "all": self.config.all,
            **{name: value for name, value in dataclasses.asdict(self.config.labeling).items() if value or name not in _LATER_OPTIONS},
        }

    @property
    def model_name(self) -> str:
        """What people call the model: the name of its folder, which for a bundled one is the name it is asked for by."""
        return PurePosixPath(self.model).name

    @property
    def film_settings(self) -> FilmSettings:
        """How the films of the run are read."""
        config, options = self.config, self.config.labeling
        return FilmSettings(
            self.storage,
            self.inputs,
            config.wait_for_store,
            options.max_megapixels,
            options.detector_side * 3 // 2,
            config.max_video_hours,
            rate_of(config.video_fps),
        )

    @property
    def detector_version(self) -> str:
        """The face detector of the run, with its settings."""
        return self.config.labeling.detector_version

    @property
    def input_uri(self) -> str:
        return ", ".join(self.inputs)

    @property
    def manifest(self) -> str:
        return join(self.output, "_manifest", self.run_id)

    @property
    def plan_file(self) -> str:
        return join(self.manifest, PLAN_FILE)

    @property
    def staging(self) -> str:
        return join(self.output, "_staging", self.run_id)

    @property
    def commit_file(self) -> str:
        """The run's row in `runs`: where it exists, the run is published."""
        return join(self.output, "runs", f"{self.run_id}.parquet")

    def is_published(self) -> bool:
        return self.storage.stat(self.commit_file) is not None


AnyRun = TypeVar("AnyRun", bound=Run)


def identify(config: LabelConfig) -> Run:
    """Check everything that can be checked before a cluster starts, and name the run.

    Raises:
        UsageError: an input, the output, the model or the store cannot be used.
        OutageError, DeniedError: the store may be usable in a while.
    """
    storage = Storage.of(config)
    config = dataclasses.replace(config, input=tuple(map(storage.without_secret, config.input)))
    try:
        output = absolute(config.output or demo_photos.OUTPUT, "output")
        if re.search(r"[\\\udc80-\udcff]", output):
            raise UsageError(
                f"The output {sanitize(output)} has a backslash or no UTF-8 in its name, which DuckDB does not find: name another."
            )
        inputs = check_inputs(storage, config.input) if config.input else (demo_photos.INPUT,)
        model = absolute(bundle.resolve(config.model, storage), "model")
        with bundle.local_copy(storage, model) as folder:
            bundle.check_labels(bundle.read_metadata(folder), model)
            model_version = bundle.load(folder, config.labeling.flip, threads=1).model_version  # what is wrong with it is said here
        if not config.dry_run:
            storage.check_writable(output)
        return name_run(Run(config.run_id, config.date(), inputs, output, model, model_version, config, storage))
    except (OutageError, DeniedError):
        raise  # nothing is wrong with what was asked for
    except StorageError as error:
        raise UsageError(str(error)) from error


def _unusual(config: LabelConfig) -> dict[str, Any]:
    usual = options_of(LabelConfig)
    chosen = {name: getattr(config, name) for name in _ADDED if getattr(config, name) != usual[name].default}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}


def name_run(unnamed: AnyRun) -> AnyRun:
    """The run under the id and date that were asked for, or of the unfinished run of the same request, or under a new id.

    So the same command line takes up what was interrupted, even on another day.

    Raises:
        UsageError: the id was used for another request or date.
    """
    if unnamed.run_id:
        return _check_same_request(unnamed)
    for run_id, plan in sorted(_plans(unnamed), reverse=True):
        run = dataclasses.replace(unnamed, run_id=run_id, run_date=datetime.date.fromisoformat(plan.run_date))
        same_date = not unnamed.config.run_date or plan.run_date == unnamed.config.run_date
        if plan.request == unnamed.request and same_date and not run.is_published():
            return run
    digest = hashlib.sha256(json.dumps(unnamed.request, sort_keys=True).encode()).hexdigest()[:8]
    stem = f"{unnamed.run_date.isoformat()}-{digest}"
    names = itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))
    return next(run for run in (dataclasses.replace(unnamed, run_id=name) for name in names) if not run.is_published())


def _plans(unnamed: Run) -> Iterator[tuple[str, Plan]]:
    """The plans in the output that read, by their run ids."""
    for entry in unnamed.storage.list_files(join(unnamed.output, "_manifest")):
        path = PurePosixPath(entry.image_uri)
        if path.name == PLAN_FILE:
            run = dataclasses.replace(unnamed, run_id=path.parent.name)
            try:
                plan = read_plan(run)
            except UsageError:
                continue
            if plan:
                yield run.run_id, plan


def _check_same_request(run: AnyRun) -> AnyRun:
    """The run with the date it was first started on."""
    request, run_date = _recorded(run)
    if request is None or run_date is None:
        return run
    if run.config.run_date and run_date != run.run_date:
        raise UsageError(f"The run id {run.run_id} was used with another run date ({run_date}): choose another run id.")
    different = [name for name in (*run.request, *_ADDED) if request.get(name) != run.request.get(name)]
    if different:
        name = different[0]
        change = f"{request.get(name)!r}, now {run.request.get(name)!r}"
        raise UsageError(f"The run id {run.run_id} was used with another {name} ({change}): choose another run id.")
    return dataclasses.replace(run, run_date=run_date)


def _recorded(run: Run) -> tuple[dict[str, Any] | None, datetime.date | None]:
    """What this run id stood for before: in the published row, or in the plan while the run is unfinished."""
    try:
        if run.is_published():
            row = read_run(run)
            return dict(json.loads(row["config_json"])["request"]), row["run_date"]
        plan = read_plan(run)
        return (plan.request, datetime.date.fromisoformat(plan.run_date)) if plan else (None, None)
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise UsageError(f"What the run id {run.run_id} stood for cannot be read ({error}): choose another run id.") from error


def read_run(run: Run) -> dict[str, Any]:
    """The row of a published run; None in the columns that its schema version did not have."""
    row: dict[str, Any] = pq.read_table(pa.BufferReader(run.storage.read(run.commit_file))).to_pylist()[0]
    return dict.fromkeys(RUNS.names) | row
