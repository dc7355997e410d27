"""Find faces with YuNet."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

import cv2
import numpy as np

from fer_ray.errors import UsageError
from fer_ray.typing import Float32Array, UInt8Array

MODEL_FILE = "face_detection_yunet_2023mar.onnx"
MODEL_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
NMS_IOU = 0.3  # boxes that overlap more are one face, as in OpenCV's FaceDetectorYN
MAX_FACES = 5000  # candidates in one image
MIN_SCORE = 0.3  # faces below are not even counted as doubtful
FAINT_SCORE = 0.2  # at half the size; small faces show there so faintly, if not better
STRIDES = (8, 16, 32)  # input pixels per cell of the network's three grids
MIN_INPUT = 8  # pixels of the shorter side: nothing can be found in less


@dataclass(frozen=True)
class Detection:
    """One face in pixels of the image it was found in.

    `bbox` is x, y, width, height; `landmarks` (5, 2) are left eye, right eye, nose, left and right corner of the mouth,
    where left and right are the subject's own.
    """

    bbox: tuple[float, float, float, float]
    landmarks: Float32Array
    score: float


class FaceDetector:
    """YuNet (Wu et al. 2023, doi 10.1007/s11633-023-1423-y) at an input of at most `side` pixels.

    Images are shrunk to `side`, never enlarged. It finds faces from about 18 pixels of that input; a larger `side` finds
    smaller ones at a cost that grows with its square. About half the size, at a quarter of the cost, is looked at first: where it
    shows faces and nothing faint beside them, as most portraits do, it is enough, and a face that fills the frame shows only
    there. ONNX Runtime runs the network, as it was faster than OpenCV's FaceDetectorYN.
    """

    def __init__(self, side: int, min_score: float, threads: int | None = None) -> None:
        import onnxruntime

        self.side, self.min_score = side, min_score
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads or 0, 1, 3
        self._session = onnxruntime.InferenceSession(network(), options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    def detect(self, pixels: UInt8Array) -> tuple[list[Detection], int]:
        """The faces of an image (h, w, 3) uint8 BGR, the largest first, and how many more fell short of `min_score`."""
        longest = max(pixels.shape[:2])
        scale = min(1.0, self.side / longest)
        half = -(-longest * scale // (2 * STRIDES[-1])) * STRIDES[-1]  # whole cells: what is padded costs as much
        coarse = self._detect_at(pixels, min(half / longest, scale), min(FAINT_SCORE, self.min_score / 3))
        faces = [face for face in coarse if face.score >= self.min_score]
        found = coarse
        if len(faces) < len(coarse) or not faces:
            found = self._detect_at(pixels, scale, min(MIN_SCORE, self.min_score))
            faces = [face for face in found if face.score >= self.min_score] or faces
        doubtful = sum(face.score < self.min_score for face in found)
        return sorted(faces, key=lambda face: (-face.bbox[2] * face.bbox[3], face.bbox)), doubtful

    def _detect_at(self, pixels: UInt8Array, scale: float, lowest: float) -> list[Detection]:
        height, width = pixels.shape[:2]
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        if min(size) < MIN_INPUT:
            return []
        rows = self._candidates(_shrunk(pixels, size), lowest)
        if not len(rows):
            return []
        kept = cv2.dnn.NMSBoxes(rows[:, :4].tolist(), rows[:, 14].tolist(), lowest, NMS_IOU, top_k=MAX_FACES)
        ratio = np.array([width / size[0], height / size[1]], np.float32)
        return [_detection(row, ratio) for row in rows[np.asarray(kept, int).ravel()]]

    def _candidates(self, pixels: UInt8Array, lowest: float) -> Float32Array:
        """Boxes from the lowest score on, overlapping ones too: (n, 15) float32 of box, five points and score, in input pixels.

        The network gives, for each cell of three grids, class and object scores and the box and points relative to the cell
        (libfacedetection's decoding, as in OpenCV's FaceDetectorYN).
        """
        height, width = pixels.shape[:2]
        columns, rows = -(-width // STRIDES[-1]) * STRIDES[-1], -(-height // STRIDES[-1]) * STRIDES[-1]
        blob = cv2.dnn.blobFromImage(cv2.copyMakeBorder(pixels, 0, rows - height, 0, columns - width, cv2.BORDER_CONSTANT))
        answers = dict(zip(self._outputs, self._session.run(self._outputs, {"input": blob}), strict=True))
        found = []
        for stride in STRIDES:
            scores = np.sqrt(answers[f"cls_{stride}"][0, :, 0] * answers[f"obj_{stride}"][0, :, 0])
            cells = np.flatnonzero(scores >= lowest)
            if not len(cells):
                continue
            corner = np.stack([cells % (columns // stride), cells // (columns // stride)], axis=1).astype(np.float32)
            box, points = answers[f"bbox_{stride}"][0, cells], answers[f"kps_{stride}"][0, cells]
            size = np.exp(box[:, 2:]) * stride
            origin = (corner + box[:, :2]) * stride - size / 2
            landmarks = (points.reshape(-1, 5, 2) + corner[:, None]) * stride
            found.append(np.concatenate([origin, size, landmarks.reshape(-1, 10), scores[cells, None]], axis=1))
        return np.concatenate(found) if found else np.empty((0, 15), np.float32)


def _shrunk(pixels: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """The image in a smaller size (width, height): halved by means while it can be, then between the points: faster than by area alone."""
    while min(pixels.shape[1] / size[0], pixels.shape[0] / size[1]) >= 2:
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        pixels = np.asarray(cv2.resize(pixels[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    return pixels if pixels.shape[1::-1] == size else np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def _detection(row: Float32Array, ratio: Float32Array) -> Detection:
    points = row[:14].reshape(7, 2) * ratio
    # YuNet gives the right eye first and then the left one, as seen by the subject; likewise the mouth.
    landmarks = points[[3, 2, 4, 6, 5]]
    (x, y), (width, height) = points[0].tolist(), points[1].tolist()
    return Detection((x, y, width, height), landmarks, float(row[14]))


@cache
def network() -> bytes:
    """YuNet as ONNX: the checked file, with its fixed input of 640 x 640 opened to any size."""
    import onnx

    content = resources.files("fer_ray.vision").joinpath("yunet", MODEL_FILE).read_bytes()
    if hashlib.sha256(content).hexdigest() != MODEL_SHA256:
        raise UsageError(f"The detector's file {MODEL_FILE} was altered: install fer_ray anew.")
    model = onnx.load_from_string(content)
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            if dimension.dim_value > 1 and (axis >= 2) == (value.name == "input"):
                dimension.dim_param = f"{value.name}_{axis}"
    return bytes(model.SerializeToString())
