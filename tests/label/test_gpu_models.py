"""The model in a process of its own, as on a GPU: the same answers, and the CPUs take over when that process is gone. No GPU here."""

from pathlib import Path

import pytest
import ray

from fer_ray.config.jobs.label import LabelConfig, LabelingOptions
from fer_ray.errors import UsageError
from fer_ray.label.gpu_models import ModelProcess, RemoteModel, gather
from fer_ray.label.job import label
from fer_ray.label.labeler import Labeler
from fer_ray.label.run import Run, identify
from fer_ray.models import bundle
from fer_ray.models.bundle import Bundle
from fer_ray.models.onnx_network import OnnxNetwork


@pytest.fixture
def run(photographs: dict[str, Path], tmp_path: Path, ray_cluster: None) -> Run:
    return identify(LabelConfig((str(photographs["astronaut"].parent),), str(tmp_path / "out"), labeling=LabelingOptions(flip=True)))


def test_a_model_elsewhere_gives_the_same_answers_and_the_cpu_takes_over(
    run: Run, photographs: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    actors = [ray.remote(num_cpus=0)(ModelProcess).remote(run, "cpu") for _ in range(2)]
    models = gather(actors, 120)
    assert models is not None
    assert "the model runs on 2 GPUs" in caplog.messages
    loads: list[str] = []

    def load() -> Bundle[OnnxNetwork]:
        loads.append("here")
        return bundle.load(run.model, flip=True)

    paths = [photographs[name] for name in ("astronaut", "grace_hopper", "chelsea")]
    labeler, config = Labeler(RemoteModel(models, load)), run.config.labeling
    expected = Labeler(run.model, config)
    assert labeler.model_version == expected.model_version == run.model_version
    for image, reference in zip(labeler.label(paths), expected.label(paths), strict=True):
        assert [face.bbox for face in image.faces] == [face.bbox for face in reference.faces]
        for face, other in zip(image.faces, reference.faces, strict=True):
            assert face.probabilities == pytest.approx(other.probabilities, abs=1e-5)

    ray.kill(actors[0])
    assert len(labeler.label(paths)[0].faces) == 1
    assert models.lost() == 1
    ray.kill(actors[1])
    assert [len(image.faces) for image in labeler.label(paths)] == [1, 1, 0]
    assert loads == ["here"], "loaded once, when nothing else was left"


def test_gpus_that_no_machine_has_are_refused_with_the_numbers(photographs: dict[str, Path], tmp_path: Path, ray_cluster: None) -> None:
    config = LabelConfig((str(photographs["astronaut"]),), str(tmp_path / "out"), gpus=0.5)
    with pytest.raises(UsageError, match=r"The model is to run on 0\.5 GPUs, more than this machine has: lower --gpus or leave it out\."):
        label(config)
