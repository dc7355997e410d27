"""Look at a data set before training on it: counts, findings, duplicates, and a sheet of sample faces."""

from typing import Any

from fer_ray.cli.run import run_job
from fer_ray.config.inspect import InspectConfig
from fer_ray.errors import EXIT_DONE


def main(config: InspectConfig) -> tuple[dict[str, Any], int]:
    from fer_ray.data.inspect import inspect

    return inspect(config), EXIT_DONE


if __name__ == "__main__":
    run_job(InspectConfig, main, __doc__ or "")
