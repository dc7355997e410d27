"""Teams follow trainings in their tracker; one that is not there holds up nothing."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from stores import free_port

from fer_ray.config.dataset import DatasetConfig
from fer_ray.config.jobs.train import TrainConfig
from fer_ray.errors import UsageError
from fer_ray.train.tracking import EXPERIMENT, Tracker

ROW = {"accuracy": 0.6, "nll": 1.1, "improved": True, "seconds": 2.0}
needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="needs mlflow-skinny")


@needs_mlflow
def test_mlflow_has_every_epoch_once_with_the_settings_also_after_an_interruption(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    target = f"mlflow:sqlite:///{tmp_path}/runs.db"
    for last in (2, 3):  # the second start tells of the first epochs again
        tracker = Tracker(target, "s3://team/model")
        for epoch in range(1, last + 1):
            tracker.log("model", {"stem": 8, "widths": (8, 16)}, {**ROW, "epoch": epoch})
        tracker.end("model", failed=last == 2)
        tracker.close()
    client = MlflowClient(tracking_uri=target.removeprefix("mlflow:"))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status, run.data.tags["fer_ray_output"]) == ("model", "FINISHED", "s3://team/model")
    assert run.data.params == {"stem": "8", "widths": "(8, 16)"}
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "accuracy")] == [1, 2, 3]
    assert run.data.metrics == {"accuracy": 0.6, "nll": 1.1, "seconds": 2.0}


@needs_mlflow
def test_a_tracker_that_cannot_be_reached_is_told_once_without_its_address_and_nothing_waits_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracker = Tracker(f"mlflow:http://user:secret@127.0.0.1:{free_port()}", "model")
    for epoch in (1, 2):
        tracker.log("model", {}, {**ROW, "epoch": epoch})
    tracker.close()
    told = [record.message for record in caplog.records if record.name.startswith("fer_ray")]
    assert told == ["MLflow takes no figures (MlflowException): the job goes on without it"]
    assert "secret" not in caplog.text


@pytest.mark.parametrize("target", ["mlflow", "mlflow:", "neptune:secret"])
def test_what_is_no_tracker_is_refused_without_its_address(target: str) -> None:
    with pytest.raises(UsageError, match="takes mlflow:URI or wandb:PROJECT") as caught:
        TrainConfig("model", track=target, data=DatasetConfig("faces"))
    assert "secret" not in str(caught.value)


def test_a_tracker_whose_package_is_not_installed_is_refused_with_what_installs_it() -> None:
    if find_spec("wandb"):
        pytest.skip("it is installed here")
    with pytest.raises(UsageError, match=r"pip install 'fer-ray\[wandb\]'"):
        Tracker("wandb:emotions", "model")
