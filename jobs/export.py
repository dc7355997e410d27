"""Export a model bundle as one network for ONNX Runtime, TensorFlow or LiteRT, checked against the original on real faces."""

from typing import Any

from fer_ray.cli.run import run_job
from fer_ray.config.export import ExportConfig
from fer_ray.errors import EXIT_DONE


def main(config: ExportConfig) -> tuple[dict[str, Any], int]:
    from fer_ray.models.export import export

    return export(config), EXIT_DONE


if __name__ == "__main__":
    run_job(ExportConfig, main, __doc__ or "")
