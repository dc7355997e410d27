"""Search hyperparameters with Ray Tune; every trial is a Ray Train job. Leaves the best configuration, its bundle and a report."""

from typing import Any

from fer_ray.cli.run import run_job
from fer_ray.config.tune import TuneConfig
from fer_ray.errors import EXIT_DONE


def main(config: TuneConfig) -> tuple[dict[str, Any], int]:
    from fer_ray.tune.job import tune

    return tune(config), EXIT_DONE


if __name__ == "__main__":
    run_job(TuneConfig, main, __doc__ or "", "start the same command with --resume to go on with the search")
