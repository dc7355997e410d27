"""Make one bundle of several: their answers, and with --flip those for mirror images, are averaged and calibrated together."""

from typing import Any

from fer_ray.cli.run import run_job
from fer_ray.config.ensemble import EnsembleConfig
from fer_ray.errors import EXIT_DONE


def main(config: EnsembleConfig) -> tuple[dict[str, Any], int]:
    from fer_ray.models.ensemble import combine

    return combine(config), EXIT_DONE


if __name__ == "__main__":
    run_job(EnsembleConfig, main, __doc__ or "")
