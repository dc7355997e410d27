"""What the export job can be told."""

from __future__ import annotations

from dataclasses import dataclass

from fer_ray.config.options import check, option

ONNX = "onnx"
SAVEDMODEL = "savedmodel"
TFLITE = "tflite"
EXPORT_FORMATS = (ONNX, SAVEDMODEL, TFLITE)


@dataclass(frozen=True)
class ExportConfig:
    """What `jobs/export.py` can be told."""

    model: str = option("", "fer2013 or ferplus, which come with the package, or a bundle in a folder or at s3://... (default: ferplus)")
    format: str = option(ONNX, "for ONNX Runtime, for TensorFlow, or for LiteRT (TensorFlow Lite)", EXPORT_FORMATS)
    int8: bool = option(False, "store the weights in 8 bits and calculate with them: a quarter of the size, not quite the same answers")
    flip: bool = option(False, "average the answers for each face and its mirror image, at twice the cost of the model")
    output: str = option("", "file (onnx, tflite) or folder (savedmodel) to write, local or s3://bucket/name; must be new (required)")
    dataset: str = option("", "data set whose validation faces calibrate and check the export (default: faces of the demo photographs)")
    s3_endpoint: str = option("", "address of an S3-compatible store (default: AWS_ENDPOINT_URL, or AWS)")

    def __post_init__(self) -> None:
        check(bool(self.output), "Where to? Give --output PATH for the exported model.")
        check(self.format in EXPORT_FORMATS, f"The setting format must be one of {', '.join(EXPORT_FORMATS)}, not {self.format!r}.")
        check(not self.int8 or self.format != SAVEDMODEL, "A SavedModel has no int8 form here: give --format onnx or tflite with --int8.")
