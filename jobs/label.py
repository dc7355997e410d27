"""Label the emotion of every face in a folder of photographs and write Parquet tables."""

from typing import Any

from fer_ray.command import run_job
from fer_ray.config import LabelConfig


def main(config: LabelConfig) -> tuple[dict[str, Any], int]:
    from fer_ray.labeling import label

    return label(config)


if __name__ == "__main__":
    run_job(LabelConfig, main, __doc__ or "")
