"""The training job: from a configuration to a bundle at its place."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fer_ray.config.recipe import PRETRAINED, AugmentationConfig, ModelConfig
from fer_ray.config.train import TrainConfig
from fer_ray.data.layouts.find import with_absolute_paths
from fer_ray.errors import TrainingError, UsageError
from fer_ray.io.storage import S3, Storage, absolute
from fer_ray.models import bundle, keras_bundle
from fer_ray.models.architectures import IMAGENET, NO_WEIGHTS, build
from fer_ray.models.sizes import check_size
from fer_ray.reporting.progress import LogProgress, Progress
from fer_ray.text import sanitize
from fer_ray.train.recorder import PROGRESS_FILE, TENSORBOARD_FOLDER, has_checkpoints
from fer_ray.train.teacher import loaded_teacher
from fer_ray.train.trainer import run_training
from fer_ray.train.worker import FINISHED_FOLDER, TrainingRun, load_training_data

LOGGER = logging.getLogger(__name__)
REQUEST_FILE = "request.json"  # in the storage of a training: the configuration that it was begun with
WORK_SUFFIX = ".training"  # of the folder beside the output that everything lies in until the end
FOLLOW_SECONDS = 0.5  # between two looks for new lines of progress
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
    output = Path(config.output).absolute()
    work = output.with_name(output.name + WORK_SUFFIX)
    config = _with_model_of_start(_with_absolute_paths(config))
    check_places(config, output, work)
    check_dataset(config)
    _begin(config, work)
    with _progress_shown(work / PROGRESS_FILE, config.recipe.optimization.epochs, progress or LogProgress()):
        run_training(TrainingRun(config, str(work), finish=True))
    _publish(work, output)
    saved = bundle.read_metadata(str(output))
    figures = {name: round(value, DIGITS) for name, value in saved["metrics"]["validation"].items()}
    return {"model_version": saved["model_version"], **figures, "samples": int(figures["samples"]), "output": config.output}


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The same training for processes with another working directory."""
    start = absolute(bundle.resolve(config.start_from), "bundle to start from") if config.start_from else ""
    teacher = tuple(absolute(bundle.resolve(name), "teacher") for name in config.teacher)
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


def check_places(config: TrainConfig, output: Path, work: Path) -> None:
    """Refuse an output that holds something else, or another training than the one to resume.

    What a try without a single finished epoch has left is in nobody's way.
    """
    if config.output.startswith(S3):
        raise UsageError("The output of a training is a folder that all machines see: copy the bundle to S3 afterwards.")
    if output.exists():
        raise UsageError(f"The output {config.output} exists already: name a new folder, or remove it.")
    request = work / REQUEST_FILE
    if config.resume and not request.is_file():
        raise UsageError(f"There is no training into {config.output} to resume: leave --resume out.")
    if work.exists() and not request.is_file() and any(work.iterdir()):
        raise UsageError(f"The folder {work}, which the training needs for its checkpoints, holds something else: move it away.")
    if not has_checkpoints(work):
        return
    if not config.resume:
        raise UsageError(f"A training into {config.output} was begun before: resume it with --resume, or remove {work}.")
    if not _same_request(request.read_text(encoding="utf-8"), config):
        raise UsageError(f"The training into {config.output} was begun with other settings ({request}): use the same ones.")


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


def _begin(config: TrainConfig, work: Path) -> None:
    """Make the folder of the training, without what a try that finished no epoch has left there."""
    try:
        if work.exists() and not has_checkpoints(work):
            shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
        (work / REQUEST_FILE).write_text(_request(config), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"The output {config.output} cannot be written ({error.strerror}).") from error


@contextmanager
def _progress_shown(file: Path, epochs: int, progress: Progress) -> Iterator[None]:
    """Show the epochs that the first worker adds to the file; its terminal, full of others' notes, stays in Ray's logs."""
    file.touch()
    ended = threading.Event()

    def follow() -> None:
        best = 0.0
        with file.open(encoding="utf-8") as lines:
            over = False
            while not over:
                over = ended.wait(FOLLOW_SECONDS)
                for line in lines:
                    row = json.loads(line)
                    best = max(best, row["accuracy"])
                    progress.update(row["epoch"], epochs, f"accuracy {row['accuracy']:.4f}, best {best:.4f}", unit="epochs")

    progress.start("starting Ray")
    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
        progress.close()


def _publish(work: Path, output: Path) -> None:
    """Put the bundle at the output in one step, with the log for TensorBoard, and remove the rest."""
    finished = work / FINISHED_FOLDER
    try:
        if (work / TENSORBOARD_FOLDER).is_dir():
            shutil.copytree(work / TENSORBOARD_FOLDER, finished / TENSORBOARD_FOLDER)
        finished.rename(output)
    except OSError as error:
        raise TrainingError(f"The bundle cannot be written to {output} ({error.strerror}): it is in {finished}.") from error
    shutil.rmtree(work)
