"""Label the emotion of every face in a folder of photographs and write Parquet tables."""

from typing import Any

from fer_ray.cli.run import run_job
from fer_ray.config.label import LabelConfig


def main(config: LabelConfig) -> tuple[dict[str, Any], int]:
    from fer_ray.label.job import label

    return label(config)


if __name__ == "__main__":
    run_job(LabelConfig, main, __doc__ or "")
