"""Judge one model or several on labeled faces, with a page of figures and pictures."""

from typing import Any

from fer_ray.cli.run import run_job
from fer_ray.config.evaluate import EvaluateConfig
from fer_ray.errors import EXIT_DONE


def main(config: EvaluateConfig) -> tuple[dict[str, Any], int]:
    from fer_ray.evaluate.job import evaluate

    return evaluate(config), EXIT_DONE


if __name__ == "__main__":
    run_job(EvaluateConfig, main, __doc__ or "")
