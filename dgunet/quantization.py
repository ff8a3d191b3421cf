"""ONNX graphs of lower precision: float16, and convolutions with 8-bit integers. Input and output stay float32."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

GraphPrecision = Literal["float32", "float16", "int8"]
Image = Float32[np.ndarray, "1 _ _ _"]  # 1 C H W, of any size
LARGEST_LOSS = 0.1  # dB, of lower precision
ASSUMED_QUALITY = 40.0  # dB, of a model whose card does not say it; few models restore better than that
FLOAT32_OPERATORS = ("Div", "InstanceNormalization")  # which divide by what may be nearly 0
IMAGE_CHANNELS = 3  # convolutions with at most this many in or out are kept: 8 bits would round the image itself


def to_float16(file: Path) -> None:
    """Convert the graph in a file: weights and maps of features to float16.

    All else stays float32: sums over an image exceed the largest number of float16, and what is computed from them,
    such as the solution of a system of equations, needs more digits than it has.
    """
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = onnx.load(file)
    converted = convert_float_to_float16(
        model,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *FLOAT32_OPERATORS],
        node_block_list=list(_nodes_without_maps(model.graph)),
    )
    _remove_detours(converted.graph)
    onnx.save(converted, file)


def _remove_detours(graph: Any) -> None:
    """Connect neighbours in float32 directly; the converter leaves casts to float16 and back between them."""
    import onnx

    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    casts = {
        node.output[0]: (next(attribute.i for attribute in node.attribute if attribute.name == "to"), node.input[0])
        for node in graph.node
        if node.op_type == "Cast"
    }
    instead = {}
    for name, (target, source) in casts.items():
        to_half, before = casts.get(source, (None, ""))
        if target == single and to_half == half:
            instead[name] = before
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = instead.get(name, name)
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for node in [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in used]:
        graph.node.remove(node)


def _nodes_without_maps(graph: Any) -> Iterator[str]:
    """Yield the nodes of which an output is no map: B C H W, where height and width depend on the image."""
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.output)}
    for node in graph.node:
        outputs = [shapes.get(name, ()) for name in node.output]
        if not all(len(shape) == 4 and not shape[2].dim_value and not shape[3].dim_value for shape in outputs):
            yield node.name


def to_int8(file: Path, images: Sequence[Image]) -> None:
    """Convert the graph in a file: convolutions with 8-bit integers, but for those from and to images.

    Args:
        file: of the graph.
        images: as the graph takes them; the ranges of values in it are measured on them.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    class Reader:  # as quantize_static needs it: a CalibrationDataReader by its methods
        def __init__(self) -> None:
            self.images = iter(images)

        def get_next(self) -> dict[str, Image] | None:
            image = next(self.images, None)
            return None if image is None else {"image": image}

    quantize_static(
        file,
        file,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=True,  # 7 bits of weights: CPUs without VNNI add products in 16 bits, which 8 would overflow
        nodes_to_exclude=list(_convolutions_of_images(onnx.load(file).graph)),
    )


def _convolutions_of_images(graph: Any) -> Iterator[str]:
    shapes = {weight.name: weight.dims for weight in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv":
            shape = shapes.get(node.input[1])
            if shape is None or min(shape[0], shape[1]) <= IMAGE_CHANNELS:
                yield node.name


def quality_of(card: Mapping[str, Any]) -> float:
    """Return the PSNR that a model has on its val split by its card, in dB; ASSUMED_QUALITY if it does not say."""
    found = card.get("provenance", {}).get("metrics", {}).get("val_psnr")
    return ASSUMED_QUALITY if found is None else float(found)


def needed_agreement(quality: float) -> float:
    """Return the PSNR of a graph against its network that costs LARGEST_LOSS, in dB.

    The errors of the graph add to those of the network, of which they are taken to be independent.

    Args:
        quality: PSNR of the network against clean images, in dB.
    """
    return quality - 10 * math.log10(10 ** (LARGEST_LOSS / 10) - 1)
