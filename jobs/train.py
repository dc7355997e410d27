"""Train a model on a folder of labeled face images and save it as a bundle."""

from typing import Any

from fer_ray.cli.run import run_job
from fer_ray.config.train import TrainConfig
from fer_ray.errors import EXIT_DONE


def main(config: TrainConfig) -> tuple[dict[str, Any], int]:
    from fer_ray.train.job import train

    return train(config), EXIT_DONE


if __name__ == "__main__":
    run_job(TrainConfig, main, __doc__ or "", "start the same command with --resume to go on from the last checkpoint")
