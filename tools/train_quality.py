"""Train the network that says what is seen of a face: `fer_ray/vision/quality/face_quality.onnx`.

    .venv/bin/python tools/train_quality.py DATA OUTPUT.onnx

DATA holds `fer2013` as a folder or a zip. The training faces are moved a little, covered with drawn masks, glasses, hands and patches, and
made poorer as `fer_ray.vision.degradation` does it; so all that is to be learnt is known. Ten minutes on one core.
The weights in the package saw one and a half views of each face, a third of them with masks that were drawn more simply.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np
from photographs import unpacked

from fer_ray.config.dataset import DatasetConfig
from fer_ray.data.dataset import load_dataset
from fer_ray.models import bundle
from fer_ray.models.metrics import softmax
from fer_ray.typing import BoolArray, Float32Array, Float64Array, UInt8Array
from fer_ray.vision import degradation, quality

SIDE = 48
WIDTHS = (8, 16, 16, 24, 24)
HIDDEN = 24
VIEWS = 2  # of each face
EPOCHS = 14
BATCH = 128
# Where eyes and mouth lie in FER-2013's frames and in our crops, in shares of the side: left, top, right, bottom.
EYES = (0.17, 0.33, 0.83, 0.47)
MOUTH = (0.3, 0.68, 0.7, 0.87)
FREE, COVERED = 0.25, 0.6  # share of eyes or mouth: below it counts as free, above as covered


def view(face: UInt8Array, other: UInt8Array, rng: np.random.Generator) -> tuple[UInt8Array, UInt8Array, list[float]]:
    """A face moved; the same covered and made poorer; and what was done: covered, resolution, noise, compression."""
    moved, matrix = _moved(face, rng)
    seen, covered = moved, 0.0
    if rng.random() < 0.5:
        seen, changed = _covered(moved, other, matrix, rng)
        share = max(_share(changed, MOUTH, matrix), _share(changed, EYES, matrix))
        covered = float(np.clip((share - FREE) / (COVERED - FREE), 0, 1))
    resolution = 1.0
    if rng.random() < 0.3:
        seen = degradation.gamma(seen, float(np.exp(rng.uniform(-0.7, 0.7))))
    if rng.random() < 0.15:
        length = rng.uniform(2, 10)
        seen, resolution = degradation.motion_blur(seen, length, rng.uniform(0, 180)), min(1.0, 2 / length)
    if rng.random() < 0.4:
        side = int(np.exp(rng.uniform(np.log(6), np.log(SIDE))))
        seen, resolution = degradation.downscale(seen, side), min(resolution, side / SIDE)
    before = seen
    if rng.random() < 0.35:
        seen = degradation.noise(seen, float(np.exp(rng.uniform(np.log(1.5), np.log(32)))), rng)
    noise, before = _difference(seen, before), seen
    if rng.random() < 0.35:
        seen = degradation.jpeg(seen, int(rng.integers(5, 85)))
    return moved, seen, [covered, np.log2(resolution), noise / 8, _difference(seen, before) / 8]


def _difference(one: UInt8Array, other: UInt8Array) -> float:
    return float(np.sqrt(np.mean((one.astype(np.float32) - other) ** 2)))


def _moved(face: UInt8Array, rng: np.random.Generator) -> tuple[UInt8Array, Float64Array]:
    """Turned, enlarged, shifted and mirrored as detectors' crops differ from FER-2013's frames, and the matrix of that."""
    middle = (SIDE - 1) / 2
    turned = cv2.getRotationMatrix2D((middle, middle), rng.normal(0, 5), float(np.exp(rng.normal(0, 0.08))))
    matrix = np.asarray(turned, np.float64)
    matrix[:, 2] += rng.normal(0, 0.04 * SIDE, 2)
    if rng.random() < 0.5:
        face = np.ascontiguousarray(face[:, ::-1])
    moved = cv2.warpAffine(face, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.uint8), matrix


def _share(changed: BoolArray, box: tuple[float, float, float, float], matrix: Float64Array) -> float:
    """The share of a box that has changed."""
    corners = np.array([(box[0], box[1]), (box[2], box[1]), (box[2], box[3]), (box[0], box[3])]) * SIDE
    inside = _filled(corners @ matrix[:, :2].T + matrix[:, 2]) > 127
    return float(changed[inside].mean()) if inside.any() else 0.0


def _filled(outline: Float64Array) -> UInt8Array:
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillPoly(canvas, [np.rint(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return canvas


def _covered(face: UInt8Array, other: UInt8Array, matrix: Float64Array, rng: np.random.Generator) -> tuple[UInt8Array, BoolArray]:
    """The face with something in front of it, and which pixels that is."""
    kind = rng.choice(["mask", "own mask", "glasses", "hand", "patch"], p=[0.2, 0.35, 0.2, 0.15, 0.1])
    if kind in ("mask", "patch"):
        seen = degradation.mask(face, rng) if kind == "mask" else degradation.patch(face, rng)
        return seen, seen != face
    outlines = {"own mask": _mask, "glasses": _glasses, "hand": _hand}[kind](rng)
    weight = np.zeros((SIDE, SIDE), np.uint8)
    for outline in outlines:
        weight = np.maximum(weight, _filled(outline * SIDE @ matrix[:, :2].T + matrix[:, 2]))
    share = weight.astype(np.float32) / 255
    surface = _surface(face, other, kind, rng)
    return np.rint(face * (1 - share) + surface * share).astype(np.uint8), weight > 127


def _mask(rng: np.random.Generator) -> list[Float64Array]:
    """From the bridge or the tip of the nose, or below it, to the chin or beyond the frame."""
    top, ears = min(rng.uniform(0.44, 0.74, 2)), rng.uniform(0.0, 0.12)
    left, right, bottom = rng.uniform(-0.02, 0.22), 1 - rng.uniform(-0.02, 0.22), rng.uniform(0.9, 1.15)
    peak = top - rng.uniform(0, 0.07)
    x = np.linspace(left, right, 9)
    upper = np.interp(x, [left, 0.5, right], [top + ears, peak, top + ears]) + rng.normal(0, 0.008, 9)
    slope = rng.uniform(-0.05, 0.05) * (x - 0.5)
    low = [(right - 0.02, bottom - 0.2), (0.68, bottom), (0.32, bottom), (left + 0.02, bottom - 0.2)]
    shift = rng.normal(0, 0.05)
    cloth = np.vstack([np.column_stack([x, upper + slope]), low]) + np.array([shift, 0])
    if rng.random() < 0.6:
        return [cloth]
    return [cloth, *(np.array([cloth[end], (side, top - 0.12), (side, top - 0.09)]) for end, side in ((0, -0.02), (8, 1.02)))]


def _glasses(rng: np.random.Generator) -> list[Float64Array]:
    """Two dark glasses, or a bar over both eyes."""
    y, height = rng.uniform(0.37, 0.44), rng.uniform(0.07, 0.13)
    if rng.random() < 0.25:
        left, right = rng.uniform(0, 0.15), 1 - rng.uniform(0, 0.15)
        return [np.array([(left, y - height), (right, y - height), (right, y + height), (left, y + height)])]
    turns = np.linspace(0, 2 * np.pi, 16)
    width, apart = rng.uniform(0.13, 0.19), rng.uniform(0.18, 0.22)
    rounded = rng.uniform(0.4, 1)
    circle = np.column_stack([np.cos(turns), np.sin(turns)])
    shape = np.sign(circle) * np.abs(circle) ** rounded
    bridge = np.array([(0.4, y - 0.02), (0.6, y - 0.02), (0.6, y + 0.01), (0.4, y + 0.01)])
    return [shape * (width, height) + (0.5 + side * apart, y) for side in (-1, 1)] + [bridge]


def _hand(rng: np.random.Generator) -> list[Float64Array]:
    """A lump anywhere: a hand, a microphone, hair, another head."""
    turns = np.linspace(0, 2 * np.pi, 14)[:-1]
    radius = rng.uniform(0.12, 0.38) * (1 + rng.normal(0, 0.12, 13))
    stretch = np.exp(rng.normal(0, 0.3))
    centre = rng.uniform((0.1, 0.1), (0.9, 1.0))
    return [np.column_stack([np.cos(turns) * radius * stretch, np.sin(turns) * radius / stretch]) + centre]


def _surface(face: UInt8Array, other: UInt8Array, kind: str, rng: np.random.Generator) -> Float32Array:
    """Cloth, paper, glass or skin, in the light that falls on the face."""
    if rng.random() < (0.5 if kind == "hand" else 0.1):  # skin and hair of somebody else
        low = rng.integers(0, SIDE // 2, 2)
        part = other[low[0] : low[0] + SIDE // 2, low[1] : low[1] + SIDE // 2]
        return np.asarray(cv2.resize(part, (SIDE, SIDE)), np.float32)
    level = rng.uniform(5, 90) if kind == "glasses" and rng.random() < 0.8 else rng.uniform(5, 250)
    if kind == "own mask" and rng.random() < 0.4:
        level = rng.uniform(0.8, 2) * float(face.mean())
    y, x = np.mgrid[-0.5 : 0.5 : SIDE * 1j, -0.5 : 0.5 : SIDE * 1j]
    x, y = x - rng.normal(0, 0.1), y - 0.25  # a head may be turned
    surface = np.full((SIDE, SIDE), level)
    if rng.random() < 0.5:  # the light of the face
        light = cv2.GaussianBlur(face, (0, 0), rng.uniform(4, 10)).astype(np.float64)
        surface *= (light / max(light.mean(), 1)) ** rng.uniform(0.3, 1)
    surface += rng.normal(0, 25) * x + rng.normal(0, 25) * y - rng.uniform(0, 90) * np.abs(x) ** 1.5  # cheeks turn away from the light
    if kind == "own mask" and rng.random() < 0.6:
        surface += _folds(x, y, rng)
    if rng.random() < 0.3:  # a pattern, or crumpled
        coarse = rng.normal(0, rng.uniform(3, 40), (int(rng.integers(3, 14)),) * 2).astype(np.float32)
        surface += cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(surface, 0, 255), np.float32)


def _folds(x: Float64Array, y: Float64Array, rng: np.random.Generator) -> Float64Array:
    """Pleats from ear to ear, each with a shadow below, or the ridge of a mask that is folded down the middle."""
    if rng.random() < 0.3:
        return np.asarray(rng.uniform(10, 60) * np.exp(-np.abs(x) / rng.uniform(0.03, 0.2)))
    folds = np.zeros_like(x)
    bend, tilt = rng.uniform(-0.4, 0.5), rng.normal(0, 0.1)
    for place in np.linspace(-0.2, 0.25, int(rng.integers(1, 6))) + rng.normal(0, 0.02):
        across = (y - place + bend * x**2 + tilt * x) / rng.uniform(0.01, 0.035)
        folds -= rng.uniform(5, 50) * np.exp(-0.5 * across**2) - rng.uniform(0, 25) * np.exp(-0.5 * (across - 2) ** 2)
    return folds


def make_views(faces: UInt8Array, rng: np.random.Generator) -> tuple[UInt8Array, Float32Array]:
    """Views (n, 48, 48) of the faces, and what is to be said of them (n, outputs)."""
    moved, seen, known = [], [], []
    for face, other in zip(faces, faces[rng.permutation(len(faces))], strict=True):
        one, poor, done = view(face, other, rng)
        moved.append(one)
        seen.append(poor)
        known.append(done)
    facts = dict(zip(("occluded", "resolution", "noise", "compression"), np.array(known, np.float32).T, strict=True))
    facts["quality"] = _kept(np.stack(moved), np.stack(seen)).astype(np.float32)
    return np.stack(seen), np.column_stack([facts[name] for name in quality.OUTPUTS])


def _kept(moved: UInt8Array, seen: UInt8Array) -> Float64Array:
    """How much of the default model's answer to the faultless view is left: the overlap of its probabilities."""
    loaded = bundle.load(bundle.resolve(bundle.DEFAULT), threads=1)
    answers = [softmax(loaded.logits(images), loaded.temperature) for images in (moved, seen)]
    return np.asarray(np.minimum(*answers).sum(axis=1))


def train(images: UInt8Array, targets: Float32Array) -> list[tuple[Float32Array, Float32Array]]:
    """Kernel and bias of each layer."""
    import keras

    network = keras.Sequential([keras.Input((SIDE, SIDE, 1)), keras.layers.Rescaling(1 / 128, -1)])
    for width, stride in zip(WIDTHS, (2, 2, 1, 2, 2), strict=True):
        network.add(keras.layers.ZeroPadding2D(1))
        network.add(keras.layers.Conv2D(width, 3, stride, activation="relu"))
    network.add(keras.layers.Permute((3, 1, 2)))  # as ONNX flattens
    network.add(keras.layers.Flatten())
    network.add(keras.layers.Dense(HIDDEN, activation="relu"))
    network.add(keras.layers.Dense(targets.shape[1]))
    shares = np.array([name in quality.PROBABILITIES for name in quality.OUTPUTS])

    def loss(true, said):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  # tensors
        cross = keras.ops.relu(said) - said * true + keras.ops.log1p(keras.ops.exp(-keras.ops.abs(said)))
        return keras.ops.mean(keras.ops.where(shares, 2 * cross, keras.ops.square(said - true)), axis=-1)

    rate = keras.optimizers.schedules.CosineDecay(2e-3, EPOCHS * len(images) // BATCH)
    network.compile(keras.optimizers.Adam(rate, use_ema=True, ema_overwrite_frequency=1000), loss)
    network.fit(images[..., None], targets, BATCH, EPOCHS, verbose=2)
    return [tuple(layer.get_weights()) for layer in network.layers if layer.get_weights()]


def write(weights: list[tuple[Float32Array, Float32Array]], file: Path) -> None:
    """The network as ONNX: float32 0..255 (n, 1, 48, 48) in, (n, outputs) out."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    stored = [numpy_helper.from_array(np.float32(1 / 128), "scale"), numpy_helper.from_array(np.float32(1), "one")]
    nodes = [helper.make_node("Mul", ["faces", "scale"], ["scaled"]), helper.make_node("Sub", ["scaled", "one"], ["x0"])]
    for i, (kernel, bias) in enumerate(weights):
        convolution = kernel.ndim == 4
        values = kernel.transpose(3, 2, 0, 1) if convolution else kernel
        stored += [numpy_helper.from_array(np.ascontiguousarray(values), f"w{i}"), numpy_helper.from_array(bias, f"b{i}")]
        taken, given = f"x{i}", f"x{i + 1}"
        if convolution:
            stride = (2, 2, 1, 2, 2)[i]
            nodes.append(helper.make_node("Conv", [taken, f"w{i}", f"b{i}"], [f"y{i}"], pads=[1, 1, 1, 1], strides=[stride, stride]))
        else:
            if weights[i - 1][0].ndim == 4:
                nodes.append(helper.make_node("Flatten", [taken], [taken := "flat"]))
            nodes.append(helper.make_node("Gemm", [taken, f"w{i}", f"b{i}"], [f"y{i}"]))
        nodes.append(helper.make_node("Relu" if i < len(weights) - 1 else "Identity", [f"y{i}"], [given]))
    faces = helper.make_tensor_value_info("faces", TensorProto.FLOAT, ["n", 1, SIDE, SIDE])
    said = helper.make_tensor_value_info(f"x{len(weights)}", TensorProto.FLOAT, ["n", len(quality.OUTPUTS)])
    graph = helper.make_graph(nodes, "face_quality", [faces], [said], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    file.write_bytes(model.SerializeToString())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = unpacked(arguments.data, "fer2013", Path(scratch))
        faces = load_dataset(DatasetConfig(dataset=str(folder)), SIDE, "gray", ("train", "validation")).train.images
    made = [make_views(faces, rng) for _ in range(VIEWS)]
    weights = train(np.concatenate([images for images, _ in made]), np.concatenate([targets for _, targets in made]))
    write(weights, arguments.output)


if __name__ == "__main__":
    main()
