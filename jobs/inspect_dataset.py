"""Look at a data set before training on it: counts, findings, duplicates, and a sheet of sample faces."""

from typing import Any

from fer_ray.command import EXIT_DONE, run_job
from fer_ray.config import InspectConfig


def main(config: InspectConfig) -> tuple[dict[str, Any], int]:
    from fer_ray.inspection import inspect

    return inspect(config), EXIT_DONE


if __name__ == "__main__":
    run_job(InspectConfig, main, __doc__ or "")
