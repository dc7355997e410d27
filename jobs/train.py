"""Train a model on a folder of labeled face images and save it as a bundle."""

from typing import Any

from fer_ray.command import EXIT_DONE, run_job
from fer_ray.config import TrainConfig


def main(config: TrainConfig) -> tuple[dict[str, Any], int]:
    from fer_ray.training import train

    return train(config), EXIT_DONE


if __name__ == "__main__":
    run_job(TrainConfig, main, __doc__ or "", "start the same command with --resume to go on from the last checkpoint")
