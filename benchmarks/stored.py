"""What share of a model's weights a file stores in few bits: a tool that leaves layers alone keeps their accuracy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["file_size", "stored_share", "weight_count"]

_IR_TYPES = {"i4": 4, "u4": 4, "i8": 8, "u8": 8}


def weight_count(model: Path) -> int:
    """Return the number of float elements in matrices and kernels, whether initializers or `Constant` nodes."""
    import onnx

    graph = onnx.load(model).graph
    tensors = list(graph.initializer)
    tensors += [a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"]
    return sum(math.prod(t.dims) for t in tensors if len(t.dims) > 1 and t.data_type == onnx.TensorProto.FLOAT)


def stored_share(artifact: Path, weights: int, *, bits: int) -> float:
    """Return the fraction of the weights that the file stores in at most `bits` bits, 0 to 1.

    Args:
        artifact: ONNX file, or OpenVINO's `.xml`.
        weights: What `weight_count` says of the float model.
        bits: 4 or 8.
    """
    count = _in_openvino(artifact, bits) if artifact.suffix == ".xml" else _in_onnx(artifact, bits)
    return min(1.0, count / weights)


def file_size(artifact: Path) -> int:
    """Return the bytes of a file and of those with its weights beside it."""
    beside = (
        [artifact.with_suffix(".bin")] if artifact.suffix == ".xml" else artifact.parent.glob(f"{artifact.name}*data")
    )
    return artifact.stat().st_size + sum(file.stat().st_size for file in beside)


def _in_onnx(artifact: Path, bits: int) -> int:
    import onnx

    graph = onnx.load(artifact).graph
    types = {onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.INT2, onnx.TensorProto.UINT2}
    if bits == 8:
        types |= {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    sizes = {t.name: (math.prod(t.dims), t.data_type, len(t.dims)) for t in graph.initializer}
    count = sum(size for size, kind, rank in sizes.values() if rank > 1 and kind in types)
    if bits == 8:
        return count
    for node in graph.node:
        # Two codes to a byte.
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized") and node.domain == "com.microsoft":
            packed = sizes.get(node.input[1 if node.op_type == "MatMulNBits" else 0])
            count += 2 * packed[0] if packed is not None and packed[1] == onnx.TensorProto.UINT8 else 0
    return count


def _in_openvino(artifact: Path, bits: int) -> int:
    count = 0
    for layer in ET.parse(artifact).getroot().iter("layer"):
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None:
            shape = [int(size) for size in (data.get("shape") or "").split(",") if size.strip()]
            if len(shape) > 1 and _IR_TYPES.get(data.get("element_type") or "", 99) <= bits:
                count += math.prod(shape)
    return count
