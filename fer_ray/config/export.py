"""What the export job can be told."""

from __future__ import annotations

from fer_ray.config.options import PathText, check, config, option
from fer_ray.config.stores import StoresConfig

ONNX = "onnx"
SAVEDMODEL = "savedmodel"
TFLITE = "tflite"
EXPORT_FORMATS = (ONNX, SAVEDMODEL, TFLITE)


@config("The export")
class ExportConfig(StoresConfig):
    """What `jobs/export.py` can be told."""

    model: PathText = option(
        default="",
        help="fer2013 or ferplus, which come with the package, or a bundle in a folder or at s3://... (default: ferplus)",
        metavar="NAME|DIR",
    )
    format: str = option(default=ONNX, help="for ONNX Runtime, for TensorFlow, or for LiteRT (TensorFlow Lite)", choices=EXPORT_FORMATS)
    int8: bool = option(
        default=False, help="store the weights in 8 bits and calculate with them: a quarter of the size, not quite the same answers"
    )
    flip: bool = option(default=False, help="average the answers for each face and its mirror image, at twice the cost of the model")
    output: PathText = option(
        default="",
        help="file (onnx, tflite) or folder (savedmodel) to write, local or s3://bucket/name; must be new (required)",
        metavar="PATH",
    )
    dataset: PathText = option(
        default="",
        help="data set whose validation faces calibrate and check the export (default: faces of the demo photographs)",
        metavar="DIR",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.output), "Where to? Give --output PATH for the exported model.")
        check(not self.int8 or self.format != SAVEDMODEL, "A SavedModel has no int8 form here: give --format onnx or tflite with --int8.")
