"""A network in ONNX Runtime. Its file may come from a stranger: it is read as a description, and checked, before any of it is run.

What is checked: everything is in the one file; there are only usual operators of the ONNX standard, none with a network inside, so
none that could loop; every shape follows from the description alone; weights and activations stay within bounds. The metadata in
the file is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from fer_ray.config.recipe import RGB
from fer_ray.errors import BundleError, UsageError
from fer_ray.typing import Float32Array, UInt8Array

if TYPE_CHECKING:
    import onnx

Device = Literal["cpu", "gpu"]

MAX_ACTIVATION_BYTES = 512 << 20  # of one crop: 5 times what an EfficientNet-B2 takes for 260 pixels
BATCH_BYTES = 64 << 20  # of activations at once, which bounds the number of crops that are classified together
MAX_BATCH = 256  # crops
MAX_OPERATIONS = 100e9  # multiplications for one crop, some seconds of a CPU: 6 times what a ViT-B takes
MAX_NODES = 10_000  # ten times what large networks have
MAX_UNPACKED = 8  # bytes of a weight for one byte in the file: whole numbers are stored shortened
STANDARD_DOMAINS = ("", "ai.onnx")
# Those of image classifiers. One that is missing here is refused: its memory may not follow from the size of what it gives.
OPERATORS = """
Abs Add And ArgMax AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv DepthToSpace
DequantizeLinear Div Dropout Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements Gelu Gemm GlobalAveragePool
GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization
LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization MatMul Max MaxPool Mean Min Mish Mul Neg Not Or
PRelu Pad Pow QuantizeLinear Range Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape
Resize Round Selu Shape Sigmoid Sign Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh Tile
Transpose Unsqueeze Where
"""


class Input(Protocol):
    """What a network takes: square crops of this side in pixels, `gray` or `rgb`."""

    @property
    def image_size(self) -> int: ...
    @property
    def color(self) -> str: ...


class OnnxNetwork:
    """A checked network, ready to run: float32 0..255 (n, s, s, 1) gray or (n, s, s, 3) RGB -> logits (n, classes)."""

    def __init__(self, file: Path, takes: Input, classes: int, threads: int = 0, device: Device = "cpu") -> None:
        """Check the file and load it.

        Args:
            file: the network.
            takes: the size and colour of the crops.
            classes: how many logits there must be.
            threads: how many threads it uses; 0 for one for each CPU.
            device: `cpu`, or `gpu` for the first GPU that this process sees.

        Raises:
            BundleError: the file is refused, with the reason.
            UsageError: ONNX Runtime cannot use the GPU.
        """
        import onnx
        from google.protobuf.message import DecodeError

        try:
            model = onnx.load_model_from_string(file.read_bytes())
            self._batch = check_model(model, takes, classes)
            model.ClearField("metadata_props")
            self._session = _open(model.SerializeToString(), threads, device)
            del model
            self._input, self._classes = self._session.get_inputs()[0].name, classes
            self._try_out(takes)
        except DecodeError as error:
            raise BundleError(f"The network {file} is refused: it is no ONNX, or cut short.") from error
        except (OSError, ValueError, TypeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            reason = " ".join(str(error).split())[:300].rstrip(".")
            raise BundleError(f"The network {file} is refused: {reason}.") from error

    def logits(self, images: UInt8Array) -> Float32Array:
        """Logits (n, classes) of crops (n, s, s) gray or (n, s, s, 3) RGB uint8."""
        images = images[..., None] if images.ndim == 3 else images
        starts = range(0, len(images), self._batch)
        parts = [self._session.run(None, {self._input: images[i : i + self._batch].astype(np.float32)})[0] for i in starts]
        return np.concatenate(parts) if parts else np.empty((0, self._classes), np.float32)

    def _try_out(self, takes: Input) -> None:
        """Ask it about two crops, as some networks fail only at work."""
        shape = (2, takes.image_size, takes.image_size, 3 if takes.color == RGB else 1)
        try:
            answers = self.logits(np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8))
        except Exception as error:  # ONNX Runtime's classes have no common one but this
            raise ValueError(f"ONNX Runtime says {error}") from error
        if not np.isfinite(answers).all():
            raise ValueError("it answers with values that are no numbers")


def check_model(model: onnx.ModelProto, takes: Input, classes: int) -> int:
    """Refuse a network that is unusual or that would fill the memory.

    Args:
        model: the parsed file.
        takes: the crops that it is to take.
        classes: the number of logits that it is to give.

    Returns:
        How many crops it may be given at once.

    Raises:
        ValueError: what is wrong with it.
    """
    import onnx

    if len(model.graph.node) > MAX_NODES:
        raise ValueError(f"it has {len(model.graph.node):,} operators, more than {MAX_NODES:,}")
    allowed = set(OPERATORS.split())
    for node in model.graph.node:
        if node.domain not in STANDARD_DOMAINS or node.op_type not in allowed:
            raise ValueError(f"it uses the operator {node.domain}{'.' if node.domain else ''}{node.op_type}, which is not on the list")
    if model.functions or model.training_info or model.graph.sparse_initializer:
        raise ValueError("it holds functions, training or sparse weights")
    _check_weights(model)
    onnx.checker.check_model(model)
    once, operations = work(model, takes, classes, 1)
    if once > MAX_ACTIVATION_BYTES:
        raise ValueError(f"it would take {once / 1e9:.1f} GB for one crop")
    if operations > MAX_OPERATIONS:
        raise ValueError(f"it would calculate {operations / 1e9:,.0f} thousand million products for one crop")
    batch = max(1, min(MAX_BATCH, BATCH_BYTES // once))
    if work(model, takes, classes, batch)[0] > batch * once:
        raise ValueError("its memory grows faster than the number of crops")
    return batch


def _check_weights(model: onnx.ModelProto) -> None:
    """Everything is in the file, and what is declared is not much more than what is there."""
    import onnx

    declared = 0
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise ValueError("its weights lie in another file: save it as one")
        if tensor.data_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
            raise ValueError(f"the weight {tensor.name} is no array of numbers")
        declared += prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    if declared > MAX_UNPACKED * model.ByteSize():
        raise ValueError("it declares more weights than it holds")
    for tensor in _tensors(model):
        values = onnx.numpy_helper.to_array(tensor)
        numbers = values if values.dtype.kind in "iubf" else values.astype(np.float32)  # bfloat16 and shorter ones
        if not np.isfinite(numbers).all():
            raise ValueError(f"the weight {tensor.name[:80]} holds values that are no numbers")


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    import onnx

    plain = onnx.AttributeProto
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == plain.TENSOR:
                yield attribute.t
            elif attribute.type not in (plain.FLOAT, plain.INT, plain.STRING, plain.FLOATS, plain.INTS, plain.STRINGS):
                raise ValueError(f"the operator {node.op_type} holds more than numbers")


def work(model: onnx.ModelProto, takes: Input, classes: int, crops: int) -> tuple[int, int]:
    """The bytes of all that the network calculates for so many crops, and the products, from the shapes that its description gives.

    Raises:
        ValueError: its input or output has another shape, or the shape of something in between is not known beforehand.
    """
    import onnx

    bound = onnx.ModelProto()
    bound.CopyFrom(model)
    del bound.graph.value_info[:]  # claims
    stored = {tensor.name for tensor in bound.graph.initializer}
    inputs = [value for value in bound.graph.input if value.name not in stored]
    if len(inputs) != 1 or len(bound.graph.output) != 1:
        raise ValueError(f"it has {len(inputs)} inputs and {len(bound.graph.output)} outputs where one of each is wanted")
    wanted = [crops, takes.image_size, takes.image_size, 3 if takes.color == RGB else 1]
    declared = inputs[0].type.tensor_type
    if _shape(declared)[1:] != wanted[1:] or declared.elem_type != onnx.TensorProto.FLOAT:
        raise ValueError(f"it takes {_shape(declared)} where float32 (n, {', '.join(map(str, wanted[1:]))}) is wanted")
    declared.shape.dim[0].dim_value = crops
    output = bound.graph.output[0].name
    bound.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(bound, strict_mode=True, data_prop=True).graph
    known = {value.name: value.type.tensor_type for value in (*inferred.value_info, *inferred.output)}
    shapes: dict[str, list[Any]] = {name: _shape(kind) for name, kind in known.items()} | {
        tensor.name: list(tensor.dims) for tensor in inferred.initializer
    }
    shapes[inputs[0].name] = wanted
    total, operations = 0, 0
    for node in inferred.node:
        for name in filter(None, node.output):
            shape: list[Any] = _shape(known[name]) if name in known else [None]
            if None in shape:
                raise ValueError(f"the size of what {node.op_type} gives is not known beforehand")
            given: int = prod(shape)
            total += given * onnx.helper.tensor_dtype_to_np_dtype(known[name].elem_type).itemsize
            operations += _products(node, given, shapes)
    if _shape(known[output]) != [crops, classes] or known[output].elem_type != onnx.TensorProto.FLOAT:
        raise ValueError(f"it gives {_shape(known[output])} for {crops} crops where float32 [{crops}, {classes}] is wanted")
    return total, operations


def _products(node: onnx.NodeProto, given: int, shapes: dict[str, list[Any]]) -> int:
    """About how many multiplications the operator makes for the numbers that it gives; each that it takes is looked at once."""
    taken = [shapes.get(name, [1]) for name in node.input]
    kernel = [attribute.ints for attribute in node.attribute if attribute.name == "kernel_shape"]
    terms = prod(kernel[0]) if kernel else 1
    if node.op_type == "Conv":
        terms = prod(taken[1][1:])
    elif node.op_type in ("MatMul", "Gemm"):
        terms = taken[0][-1] if node.op_type == "MatMul" else max(taken[0])
    return max(given * terms, sum(map(prod, taken)))


def _shape(tensor: Any) -> list[Any]:
    """The sizes of a type; None for one that is not known."""
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim] if tensor.HasField("shape") else [None]


def _open(content: bytes, threads: int, device: Device) -> Any:
    """A session of ONNX Runtime; from bytes, so that nothing beside the file can be asked for."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that wait are to leave the CPU to others
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "gpu":
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # CUDA's libraries as pip installs them
        # Not TensorFloat-32, so that the answers are those of CPUs; memory as it is needed, so that processes can share a GPU.
        providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}))
    try:
        session = onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # its classes have no common one but this
        raise ValueError(f"ONNX Runtime says {error}") from error
    if device == "gpu" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise UsageError("ONNX Runtime finds no GPU that it can use (docs/operate.md says how onnxruntime-gpu is installed)")
    return session
