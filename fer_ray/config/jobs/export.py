"""What the export job can be told."""

from __future__ import annotations

from fer_ray.config.options import PathText, check, config, option
from fer_ray.config.stores import StoresConfig

ONNX = "onnx"
SAVEDMODEL = "savedmodel"
TFLITE = "tflite"
WEB = "web"
EXPORT_FORMATS = (ONNX, SAVEDMODEL, TFLITE, WEB)


@config("The export")
class ExportConfig(StoresConfig):
    """What `jobs/export.py` can be told."""

    model: PathText = option(
        default="",
        help="fer2013 or ferplus, which come with the package, or a bundle in a folder or at s3://... (default: ferplus)",
        metavar="NAME|DIR",
    )
    format: str = option(
        default=ONNX, help="for ONNX Runtime, TensorFlow, LiteRT (TensorFlow Lite), or a page for browsers", choices=EXPORT_FORMATS
    )
    int8: bool = option(
        default=False, help="store the weights in 8 bits and calculate with them: a quarter of the size, not quite the same answers"
    )
    flip: bool = option(default=False, help="average the answers for each face and its mirror image, at twice the cost of the model")
    output: PathText = option(
        default="",
        help="file (onnx, tflite) or folder (savedmodel, web), here or s3://, gs://, az://bucket/name; must be new (required)",
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
        check(
            not self.int8 or self.format in (ONNX, TFLITE),
            f"The format {self.format} has no int8 form: give --format onnx or tflite with --int8.",
        )
        check(self.format != WEB or "://" not in self.output, "A page is written to a folder: copy it from there to where it is served.")
