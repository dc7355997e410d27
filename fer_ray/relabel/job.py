"""The relabeling job: a run like those of `label`, whose images are the kept crops."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fer_ray.config.crop import CropGeometry
from fer_ray.config.jobs.relabel import RelabelConfig
from fer_ray.errors import OutageError, StorageError, UsageError
from fer_ray.io.storage import Storage, absolute, join
from fer_ray.label.iceberg import check_catalog, register
from fer_ray.label.incremental import run_places
from fer_ray.label.incremental.forgotten import Forgotten
from fer_ray.label.job import Work, execute
from fer_ray.label.outcome import summarize
from fer_ray.label.plan import read_plan, remove_work
from fer_ray.label.run import Run, name_run, read_run
from fer_ray.models import bundle
from fer_ray.relabel.crops import CropRelabeler
from fer_ray.relabel.sources import find_due
from fer_ray.reporting.progress import LogProgress, Progress
from fer_ray.vision.crop import KEPT_REACH

LOGGER = logging.getLogger(__name__)
FEW_CROPS = 5_000_000  # images whose crops one machine labels without Ray: as many as it labels in an hour or two
WORK = Work(find_due, CropRelabeler, FEW_CROPS)


@dataclass(frozen=True)
class RelabelRun(Run):
    """A run over kept crops; its images are those of the runs that kept them."""

    detector: str = ""

    @property
    def request(self) -> dict[str, Any]:
        """As that of a labeling run, which it is not."""
        return {**super().request, "relabel": True}

    @property
    def detector_version(self) -> str:
        """The one of the newest run: that which found the faces stands in their rows."""
        return self.detector


def relabel(config: RelabelConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Label the kept crops that the model has not labeled, and publish the answers as a run.

    Args:
        config: Which tables, and with which model.
        progress: What is told while it works; by default a line a minute in the log of this package.

    Returns:
        The summary.

    Raises:
        UsageError: the request cannot be met as it stands; nothing was written.
        FerRayError: the run stopped; the same command resumes it.
    """
    run = identify(config)
    if config.publish:
        check_catalog(run)
    if run.is_published():
        LOGGER.info("The run %s is published already: nothing to do.", run.run_id)
        row = read_run(run)
    else:
        _drop_outdated_plan(run)
        row = execute(run, progress or LogProgress(), WORK)
    if config.publish:
        register(run)
    return summarize(run, row)


def _drop_outdated_plan(run: Run) -> None:
    """A plan counts the rows of the tables, which `fer-ray forget` may have written anew since."""
    plan = read_plan(run)
    if plan and plan.forgettings != Forgotten.read(run.storage, run.output).done:
        LOGGER.info("images were forgotten since the run %s was planned: it is planned anew", run.run_id)
        remove_work(run)


def identify(config: RelabelConfig) -> RelabelRun:
    """Check everything that can be checked before the work starts, and name the run.

    Raises:
        UsageError: the tables, the model or the store cannot be used.
    """
    storage = Storage.of(config)
    try:
        tables = absolute(config.tables, "folder of tables")
        label_config = config.as_label_config(join(tables, "crops"), tables)
        model = absolute(bundle.resolve(config.model, storage), "model")
        with bundle.local_copy(storage, model) as folder:
            loaded = bundle.load(folder, config.flip, threads=1)
        _check_reach(loaded.crop, model)
        detector = _newest_detector(storage, tables)
        storage.check_writable(tables)
        unnamed = RelabelRun(
            config.run_id,
            label_config.date(),
            label_config.input,
            tables,
            model,
            loaded.model_version,
            label_config,
            storage,
            detector=detector,
        )
        return name_run(unnamed)
    except OutageError:
        raise  # nothing is wrong with what was asked for
    except StorageError as error:
        raise UsageError(str(error)) from error


def _check_reach(crop: CropGeometry, model: str) -> None:
    reach = crop.scale * (0.5 + max(abs(crop.shift_x), abs(crop.shift_y)))
    if reach > KEPT_REACH:
        raise UsageError(
            f"The model {model} looks {reach:.2g} faces far around the middle of a face and kept crops reach {KEPT_REACH:g}: "
            "label the images themselves with it."
        )


def _newest_detector(storage: Storage, tables: str) -> str:
    committed = run_places(storage, tables)
    if not committed:
        raise UsageError(f"{tables} holds no tables of a committed run: name the output of `fer-ray label --keep-crops`.")
    if not any(entry.image_uri.endswith(".parquet") for entry in storage.list_files(join(tables, "crops"))):
        raise UsageError(f"{tables} holds no kept crops: label with --keep-crops first.")
    newest = max(committed, key=lambda run_id: committed[run_id])
    row = pq.read_table(pa.BufferReader(storage.read(join(tables, "runs", f"{newest}.parquet"))), columns=["detector_version"])
    return str(row["detector_version"][0].as_py())
