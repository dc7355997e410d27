"""Export a model bundle as one network for ONNX Runtime, TensorFlow or LiteRT, checked against the original on real faces."""

from typing import Any

from fer_ray.command import EXIT_DONE, run_job
from fer_ray.config import ExportConfig


def main(config: ExportConfig) -> tuple[dict[str, Any], int]:
    from fer_ray.export import export

    return export(config), EXIT_DONE


if __name__ == "__main__":
    run_job(ExportConfig, main, __doc__ or "")
