"""Training: a loop over epochs that needs only arrays and a configuration, and the Ray Train job around it."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fer_ray import bundle, metrics
from fer_ray.config import TrainConfig
from fer_ray.dataset import Dataset, Float32Array, UInt8Array, augmented_batches, load_dataset
from fer_ray.errors import FerRayError, UsageError
from fer_ray.models import build_residual

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images: the figures, and the model as it would be saved."""

    number: int
    train_loss: float
    figures: dict[str, float]
    learning_rate: float
    seconds: float
    improved: bool
    weights: list[Any]


def train_epochs(data: Dataset, config: TrainConfig) -> Iterator[Epoch]:
    """Train a new model and yield after every epoch until the epochs or the patience are used up.

    The figures and the weights of an epoch are those of the weight average, where there is one.
    """
    import keras

    keras.utils.set_random_seed(config.seed)
    generator = np.random.default_rng(config.seed)
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if config.precision == "bfloat16" else "float32")
    try:
        model = build_residual(config.model, len(data.classes))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    optimizer = _optimizer(config)
    model.compile(optimizer, _loss(config.label_smoothing), jit_compile=False)
    targets = np.eye(len(data.classes), dtype=np.float32)
    schedule = _LearningRate(config, len(data.train) // config.batch_size)
    best, stale = -1.0, 0
    for number in range(1, config.epochs + 1):
        started, losses = time.monotonic(), []
        for images, labels in augmented_batches(data.train, config.batch_size, config.augmentation, generator):
            optimizer.learning_rate.assign(schedule.step())
            losses.append(float(model.train_on_batch(images, targets[labels])))
        raw_weights = model.get_weights()
        if config.weight_average:
            optimizer.finalize_variable_values(model.trainable_variables)
        logits = predict_logits(model, data.validation.images)
        figures = metrics.evaluate(logits, data.validation.labels)
        improved = figures["accuracy"] > best
        best, stale = (figures["accuracy"], 0) if improved else (best, stale + 1)
        weights = model.get_weights()
        model.set_weights(raw_weights)
        seconds = time.monotonic() - started
        yield Epoch(number, float(np.mean(losses)), figures, schedule.value, seconds, improved, weights)
        schedule.end_epoch(improved)
        if stale >= config.patience:
            return


def predict_logits(model: keras.Model, images: UInt8Array, batch_size: int = 256) -> Float32Array:
    """Logits (n, classes) for gray images (n, size, size) uint8."""
    parts = [model.predict_on_batch(images[i : i + batch_size, ..., None].astype(np.float32)) for i in range(0, len(images), batch_size)]
    return np.concatenate(parts).astype(np.float32)


def _optimizer(config: TrainConfig) -> keras.optimizers.Optimizer:
    import keras

    average = {"use_ema": True, "ema_momentum": config.weight_average} if config.weight_average else {}
    optimizer = keras.optimizers.AdamW(config.learning_rate, weight_decay=config.weight_decay, clipnorm=1.0, **average)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def _loss(label_smoothing: float) -> keras.losses.Loss:
    import keras

    return keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing)


class _LearningRate:
    """Linear warm-up, then a cosine to zero over all steps, or x 0.2 whenever validation accuracy stands still."""

    def __init__(self, config: TrainConfig, steps_per_epoch: int) -> None:
        self.config = config
        self.warmup_steps = round(config.warmup_epochs * steps_per_epoch)
        self.total_steps = config.epochs * steps_per_epoch
        self.steps, self.factor, self.stale, self.value = 0, 1.0, 0, 0.0

    def step(self) -> float:
        self.steps += 1
        if self.steps <= self.warmup_steps:
            share = self.steps / self.warmup_steps
        elif self.config.schedule == "cosine":
            progress = (self.steps - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
            share = 0.5 * (1 + math.cos(math.pi * progress))
        else:
            share = self.factor
        self.value = self.config.learning_rate * share
        return self.value

    def end_epoch(self, improved: bool) -> None:
        self.stale = 0 if improved else self.stale + 1
        if self.stale >= self.config.plateau_patience:
            self.factor, self.stale = self.factor * 0.2, 0


def train(config: TrainConfig) -> dict[str, Any]:
    """Train over Ray Train with one worker and leave the best epoch as a bundle at `config.output`; gives the summary.

    Every improvement is a Ray Train checkpoint that holds a whole bundle, under `<output>.training` until the end.

    Raises:
        UsageError: the data set or the output cannot be used.
    """
    output = Path(config.output).absolute()
    if output.exists():
        raise UsageError(f"The output {config.output} exists already: name a new folder, or remove it.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"The output {config.output} cannot be written ({error.strerror}).") from error
    data = load_dataset(config.dataset, config.model.image_size, config.limit)  # a wrong data set is refused before a cluster starts

    if len(data.train) < config.batch_size:
        raise UsageError(f"The data set has {len(data.train)} training images, fewer than one batch: lower --batch-size.")

    best = _run_trainer(config, output.with_name(output.name + ".training"))
    shutil.copytree(best, output)
    shutil.rmtree(output.with_name(output.name + ".training"))
    saved = bundle.read_metadata(str(output))
    return {"model_version": saved["model_version"], **saved["metrics"]["validation"], "output": config.output}


def _run_trainer(config: TrainConfig, storage: Path) -> Path:
    """Run the Ray Train job; gives the folder of the best checkpoint."""
    import ray
    import ray.train
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    quiet = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0", "TF_CPP_MIN_LOG_LEVEL": "3"}  # the progress lines once, and little else
    ray.init(logging_level=logging.WARNING, runtime_env={"env_vars": quiet}, ignore_reinit_error=True)
    trainer = DataParallelTrainer(
        _train_loop_per_worker,
        train_loop_config={"config": config, "dataset": str(Path(config.dataset).absolute())},
        scaling_config=ray.train.ScalingConfig(num_workers=1, use_gpu=config.use_gpu),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=str(storage),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="accuracy"),
        ),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        reason = str(error).strip().splitlines()[-1]
        raise FerRayError(f"The training failed ({reason}): its checkpoints, if any, are in {storage}.") from error
    return Path(result.best_checkpoints[0][0].path)


def _train_loop_per_worker(arguments: dict[str, Any]) -> None:
    import ray.train

    config: TrainConfig = arguments["config"]
    data = load_dataset(arguments["dataset"], config.model.image_size, config.limit)
    print(f"training on {len(data.train)} images, validating on {len(data.validation)}: {', '.join(data.classes)}", flush=True)
    for epoch in train_epochs(data, config):
        print(progress_line(epoch, config.epochs), flush=True)
        report = {"epoch": epoch.number, "train_loss": epoch.train_loss, "learning_rate": epoch.learning_rate, **epoch.figures}
        if not epoch.improved:
            ray.train.report(report)
            continue
        with tempfile.TemporaryDirectory() as folder:
            save_epoch(epoch, data, config, folder)
            ray.train.report(report, checkpoint=ray.train.Checkpoint.from_directory(folder))


def progress_line(epoch: Epoch, epochs: int) -> str:
    """One epoch in one line."""
    return (
        f"epoch {epoch.number}/{epochs}  loss {epoch.train_loss:.4f}  val_accuracy {epoch.figures['accuracy']:.4f}  "
        f"val_macro_f1 {epoch.figures['macro_f1']:.4f}  val_nll {epoch.figures['nll']:.4f}  lr {epoch.learning_rate:.2e}  "
        f"{epoch.seconds:.0f} s{'  best so far' if epoch.improved else ''}"
    )


def save_epoch(epoch: Epoch, data: Dataset, config: TrainConfig, folder: str) -> None:
    """Save the model of this epoch as a bundle, calibrated on the validation split."""
    model = build_residual(config.model, len(data.classes))
    model.set_weights(epoch.weights)
    logits = predict_logits(model, data.validation.images)  # anew, as training may have used a coarser arithmetic
    before = metrics.evaluate(logits, data.validation.labels)
    temperature = metrics.fit_temperature(logits, data.validation.labels)
    figures = metrics.evaluate(logits, data.validation.labels, temperature)
    bundle.save(
        folder,
        model,
        classes=data.classes,
        architecture_config=config.model,
        temperature=temperature,
        validation={**figures, "ece_before_calibration": before["ece"], "nll_before_calibration": before["nll"]},
        lineage={
            "data_sha256": data.sha256,
            "train_counts": data.train.counts(data.classes),
            "validation_counts": data.validation.counts(data.classes),
            "epoch": epoch.number,
            "config": config.to_dict(),
        },
    )
