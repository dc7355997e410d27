"""The training job: from a configuration to a bundle at its place."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any

from fer_ray.cluster import waiting_told
from fer_ray.config.jobs.train import TrainConfig
from fer_ray.config.recipe import PRETRAINED, AugmentationConfig, ModelConfig
from fer_ray.data.layouts.find import with_absolute_paths
from fer_ray.errors import AccessError, OutageError, TrainingError, UsageError
from fer_ray.io.storage import Storage, absolute, is_remote, join, new_folder
from fer_ray.models import bundle, keras_bundle
from fer_ray.models.architectures import IMAGENET, NO_WEIGHTS, build
from fer_ray.models.sizes import check_size
from fer_ray.reporting.progress import LogProgress, Progress
from fer_ray.text import sanitize
from fer_ray.train.recorder import PROGRESS_FILE, TENSORBOARD_FOLDER, has_checkpoints
from fer_ray.train.teacher import loaded_teacher
from fer_ray.train.tracking import Tracker
from fer_ray.train.trainer import run_training
from fer_ray.train.worker import FINISHED_FOLDER, TrainingRun, load_training_data

LOGGER = logging.getLogger(__name__)
REQUEST_FILE = "request.json"  # in the storage of a training: the configuration that it was begun with
WORK_SUFFIX = ".training"  # of the folder beside the output that everything lies in until the end
FOLLOW_SECONDS = 0.5  # between two looks for new lines of progress in a folder
FOLLOW_STORE_SECONDS = 2.0  # and in a store, where each look is a request
FEW_STEPS = 100  # in fewer, hardly any network comes near what it can learn
DIGITS = 4  # of the figures in the summary: with 10,000 images, one image is 0.0001


def train(config: TrainConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Train as `train_bundle` does, and say what to do next."""
    summary = train_bundle(config, progress)
    judge = f"fer-ray evaluate --model {config.output} --dataset {config.data.dataset} --split validation"
    LOGGER.info("Next: %s", sanitize(f"{judge} --output {config.output}.evaluation"))
    return summary


def train_bundle(config: TrainConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Train over Ray Train and leave the best epoch as a bundle at `config.output`.

    Until the end everything lies under `<output>.training`: checkpoints with the state of the last epochs and the best bundle.

    Args:
        config: The training; relative paths are those of this process.
        progress: What shows the epochs; by default the log.

    Returns:
        The summary: the version of the model, its figures on validation, and the output.

    Raises:
        UsageError: the data set, the output or the bundle to start from cannot be used.
        TrainingError: the training failed; its checkpoints are kept.
    """
    storage, output = Storage.of(config.data), new_folder(config.output)
    work = output + WORK_SUFFIX
    config = _with_model_of_start(_with_absolute_paths(config))
    try:
        check_places(storage, config, output, work)
    except OutageError:
        raise
    except AccessError as error:
        raise UsageError(str(error)) from error
    check_dataset(config)
    _begin(storage, config, work)
    run = TrainingRun(config, work, finish=True)
    with _tracked(config, output) as tell, _progress_shown(run, progress or LogProgress(), tell), waiting_told(run.resources_per_worker):
        run_training(run)
    _publish(storage, work, output)
    saved = json.loads(storage.read(join(output, bundle.METADATA_FILE)))
    figures = {name: round(value, DIGITS) for name, value in saved["metrics"]["validation"].items()}
    return {"model_version": saved["model_version"], **figures, "samples": int(figures["samples"]), "output": config.output}


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The same training for processes with another working directory."""
    storage = Storage.of(config.data)
    start = absolute(bundle.resolve(config.start_from, storage), "bundle to start from") if config.start_from else ""
    teacher = tuple(absolute(bundle.resolve(name, storage), "teacher") for name in config.teacher)
    weights = config.weights if config.weights in (IMAGENET, NO_WEIGHTS) else os.path.abspath(config.weights)
    return replace(config, data=with_absolute_paths(config.data), start_from=start, teacher=teacher, weights=weights)


def _with_model_of_start(config: TrainConfig) -> TrainConfig:
    """With --start-from, the model is that of the bundle."""
    if not config.start_from:
        return config
    with bundle.local_copy(Storage.of(config.data), config.start_from) as folder:
        members = bundle.read_metadata(folder)["members"]
        if len(members) != 1:
            raise UsageError(f"The bundle {config.start_from} holds {len(members)} networks: start from one with a single network.")
        model = bundle.member_config(members[0])
        if not isinstance(model, ModelConfig):
            raise UsageError(f"The bundle {config.start_from} was imported as ONNX: start from one that was trained here.")
        keras_bundle.load(folder)  # weights that cannot be read are refused here, before a cluster starts
    return replace(config, recipe=replace(config.recipe, model=model))


def _request(config: TrainConfig) -> str:
    """What must be the same for a training to be resumed."""
    return json.dumps({**config.to_dict(), "workers": None}, indent=2, sort_keys=True)


def _same_request(stored: str, config: TrainConfig) -> bool:
    """Whether a training was begun with these settings; those that did not exist then had their defaults."""
    asked, begun = json.loads(_request(config)), json.loads(stored)
    augmentation = {**asdict(AugmentationConfig()), **begun["augmentation"]}
    return bool(asked == {"teacher_share": [], **begun, "augmentation": augmentation})


def check_places(storage: Storage, config: TrainConfig, output: str, work: str) -> None:
    """Refuse an output that holds something else, or another training than the one to resume.

    What a try without a single finished epoch has left is in nobody's way, nor is half a bundle in a store, whose metadata is missing.
    """
    request = read_request(storage, join(work, REQUEST_FILE))
    half_published = config.resume and request is not None and is_remote(output)
    if storage.exists(join(output, bundle.METADATA_FILE) if half_published else output):
        raise UsageError(f"The output {config.output} exists already: name a new folder, or remove it.")
    if config.resume and request is None:
        raise UsageError(f"There is no training into {config.output} to resume: leave --resume out.")
    if request is None and next(storage.list_files(work), None) and storage.exists(work):
        raise UsageError(f"The folder {work}, which the training needs for its checkpoints, holds something else: move it away.")
    if not has_checkpoints(storage, work):
        return
    if not config.resume:
        raise UsageError(f"A training into {config.output} was begun before: resume it with --resume, or remove {work}.")
    if request is not None and not _same_request(request, config):
        settings = join(work, REQUEST_FILE)
        raise UsageError(f"The training into {config.output} was begun with other settings ({settings}): use the same ones.")


def read_request(storage: Storage, file: str) -> str | None:
    """What a training or a search was begun with; None where none was."""
    try:
        return storage.read(file).decode()
    except FileNotFoundError:
        return None


def check_dataset(config: TrainConfig, remedy: str = "lower --batch-size") -> None:
    """Refuse a wrong data set before a cluster starts, and say what looks wrong in a right one.

    Args:
        config: The training.
        remedy: What to do where there are fewer images than a batch has.

    Raises:
        UsageError: the data set cannot be used, or the first weights cannot be had.
    """
    model, settings = config.recipe.model, config.recipe.optimization
    data = load_training_data(config)
    check_size(model, classes=len(data.classes))
    for teacher in config.teacher:
        with loaded_teacher(config, teacher, data.classes):
            pass  # one that does not fit is refused here
    for finding in data.findings:
        LOGGER.info("note: %s", sanitize(finding))
    LOGGER.info("training on %s images, validating on %s: %s", f"{len(data.train):,}", f"{len(data.validation):,}", ", ".join(data.classes))
    if len(data.train) < settings.batch_size:
        raise UsageError(f"The data set has {len(data.train)} training images, fewer than a batch of {settings.batch_size}: {remedy}.")
    steps = settings.epochs * (len(data.train) // settings.batch_size)
    if steps < FEW_STEPS:
        LOGGER.info("note: %d steps are a try, too few for figures that mean something: more epochs or smaller batches give more", steps)
    if model.architecture in PRETRAINED and not config.start_from and config.weights != NO_WEIGHTS:
        build(model, len(data.classes), config.weights)  # weights that cannot be had are refused here too


def _begin(storage: Storage, config: TrainConfig, work: str) -> None:
    """Make the folder of the training, without what a try that finished no epoch has left there."""
    try:
        if not has_checkpoints(storage, work):
            storage.remove_folder(work)
        storage.write(join(work, REQUEST_FILE), _request(config).encode())
    except AccessError as error:
        raise UsageError(f"The output {config.output} cannot be written ({error.reason}).") from error


@contextmanager
def _tracked(config: TrainConfig, output: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What takes the row of every epoch, for a tracker of the team."""
    tracker, name, has_failed = Tracker(config.track, output), output.rpartition("/")[2], True
    recipe = config.recipe
    settings = {**asdict(recipe.model), **asdict(recipe.augmentation), **asdict(recipe.optimization)}
    try:
        yield lambda row: tracker.log(name, settings, row)
        has_failed = False
    finally:
        tracker.end(name, has_failed)
        tracker.close()


@contextmanager
def _progress_shown(run: TrainingRun, progress: Progress, tell: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Show and tell the epochs that the first worker notes; its terminal, full of others' notes, stays in Ray's logs."""
    storage, file, epochs = run.stores, join(run.storage, PROGRESS_FILE), run.config.recipe.optimization.epochs
    ended = threading.Event()

    def follow() -> None:
        best, shown, over = 0.0, 0, False
        while not over:
            over = ended.wait(FOLLOW_STORE_SECONDS if is_remote(file) else FOLLOW_SECONDS)
            with suppress(FileNotFoundError, OutageError):  # no epoch has ended yet; and what is only shown can wait
                lines = storage.read(file).splitlines()
                for row in map(json.loads, lines[shown:]):
                    tell(row)
                    best = max(best, row["accuracy"])
                    progress.update(row["epoch"], epochs, f"accuracy {row['accuracy']:.4f}, best {best:.4f}", unit="epochs")
                shown = len(lines)

    progress.start("starting Ray")
    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
        progress.close()


def _publish(storage: Storage, work: str, output: str) -> None:
    """Put the bundle at the output in one step, with the log for TensorBoard, and remove the rest."""
    finished, logs = join(work, FINISHED_FOLDER), join(work, TENSORBOARD_FOLDER)
    try:
        for entry in [entry for entry in storage.list_files(logs) if entry.error is None]:
            storage.write(join(finished, TENSORBOARD_FOLDER, entry.image_uri.rpartition("/")[2]), storage.read(entry.image_uri))
        storage.move_folder(finished, output, last=bundle.METADATA_FILE)
    except (OSError, AccessError) as error:
        reason = error.reason if isinstance(error, AccessError) else error.strerror
        raise TrainingError(f"The bundle cannot be written to {output} ({reason}): it is in {finished}.") from error
    storage.remove_folder(work)
