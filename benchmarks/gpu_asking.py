"""What it costs to ask a GPU's process for crops; the part `gpu` of scaling.py, which says how it is measured."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path

import numpy as np
from scale import FIRST_NIGHT, named_run, ray_apart

from fer_ray.config.crop import CropGeometry
from fer_ray.label.gpu_models import ModelOnGpus, RemoteModel, start_models
from fer_ray.models import bundle, keras_bundle
from fer_ray.models.flops import multiply_adds
from fer_ray.models.onnx_network import OnnxNetwork
from fer_ray.typing import Float32Array, Float64Array, UInt8Array
from fer_ray.vision.quality import OUTPUTS

CROPS, ASKING_PROCESSES, QUESTIONS = 64, 2, 500


class NoModel:
    """In the place of a GPU's process: answers without calculating."""

    def probabilities(self, images: UInt8Array, seen: Float32Array) -> Float64Array:
        return np.full((len(images), 8), 1 / 8)


class Asking:
    """In the place of a labeling process."""

    def ask(self, model: ModelOnGpus, questions: int) -> tuple[float, float]:
        """Wall and CPU seconds for so many batches of crops."""
        remote = RemoteModel(model, not_here)
        crops = np.zeros((CROPS, model.image_size, model.image_size), np.uint8)
        seen = np.zeros((CROPS, len(OUTPUTS)), np.float32)
        began, cpu = time.perf_counter(), time.process_time()
        for _ in range(questions):
            remote.probabilities(crops, seen)
        return time.perf_counter() - began, time.process_time() - cpu


def not_here() -> bundle.Bundle[OnnxNetwork]:
    raise RuntimeError("the process in the GPU's place is gone")


def ask_gpus(arguments: argparse.Namespace, scratch: Path) -> dict[str, object]:
    import ray

    run = named_run(scratch, scratch / "output", FIRST_NIGHT)
    operations = 2 * sum(multiply_adds(member.network.model) for member in keras_bundle.load(run.model, run.config.labeling.flip).members)
    with ray_apart() as environment:
        os.environ["RAY_TMPDIR"] = environment["RAY_TMPDIR"]
        ray.init("local", include_dashboard=False, log_to_driver=False)
        try:
            stand_in = ModelOnGpus([ray.remote(num_cpus=0)(NoModel).remote()], 48, "gray", CropGeometry(), (), "")
            figures: dict[str, object] = {"asked": crops_asked(stand_in, "a process in the place of a GPU")}
            on_gpus = start_models(run)
            if on_gpus:
                one = dataclasses.replace(on_gpus, actors=on_gpus.actors[:1])
                figures["gpu"] = crops_asked(one, "the model on one GPU")
        finally:
            ray.shutdown()
    rates = [figure["crops_per_second"] for figure in figures.values() if isinstance(figure, dict)]
    print(f"at {rates[-1]:,} crops/s the model makes {operations * rates[-1] / 1e12:.1f} TFLOP/s ({operations / 1e9:.2f} GFLOP a crop)")
    return {**figures, "gflop_per_crop": round(operations / 1e9, 3)}


def crops_asked(model: ModelOnGpus, who: str) -> dict[str, float]:
    """How many crops a second two labeling processes get answers for, and what asking costs them."""
    import ray

    asking = [ray.remote(num_cpus=0)(Asking).remote() for _ in range(ASKING_PROCESSES)]
    ray.get([process.ask.remote(model, 20) for process in asking])
    times = ray.get([process.ask.remote(model, QUESTIONS) for process in asking])
    crops_per_second = ASKING_PROCESSES * QUESTIONS * CROPS / max(seconds for seconds, _ in times)
    cpu = 1e6 * sum(cpu for _, cpu in times) / (ASKING_PROCESSES * QUESTIONS * CROPS)
    print(f"{who} was asked for {crops_per_second:,.0f} crops/s; asking costs {cpu:.0f} CPU us a crop", flush=True)
    return {"crops_per_second": round(crops_per_second), "cpu_us_per_crop": round(cpu, 1)}
