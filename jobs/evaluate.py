"""Judge one model or several on labeled faces, with a page of figures and pictures."""

from typing import Any

from fer_ray.command import EXIT_DONE, run_job
from fer_ray.config import EvaluateConfig


def main(config: EvaluateConfig) -> tuple[dict[str, Any], int]:
    from fer_ray.evaluation import evaluate

    return evaluate(config), EXIT_DONE


if __name__ == "__main__":
    run_job(EvaluateConfig, main, __doc__ or "")
