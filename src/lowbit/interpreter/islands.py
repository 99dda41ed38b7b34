"""Operators without a mapping: ONNX Runtime computes them, one node at a time, without gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch

from lowbit.exceptions import ModelError
from lowbit.interpreter.bodies import resolved_proto
from lowbit.interpreter.dtypes import from_array, to_array
from lowbit.runtime.session import Session, open_session

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from lowbit.interpreter.registry import Call, Function

__all__ = ["island"]


def island(node: ir.Node, attributes: Sequence[ir.Attr], call: Call) -> Function:
    """Return a function that computes a node in ONNX Runtime; a session is made for every combination of input types.

    Args:
        node: The node.
        attributes: Its attributes, references resolved.
        call: The node as the interpreter sees it.
    """
    template = resolved_proto(node, attributes)
    sessions: dict[tuple[str, ...], Session] = {}

    def run(_call: Call, *inputs: Any) -> tuple[Any, ...]:
        arrays = {f"i{index}": _array(value) for index, value in enumerate(inputs) if value is not None}
        types = tuple(f"{name}:{array.dtype}:{array.ndim}" for name, array in arrays.items())
        if types not in sessions:
            sessions[types] = open_session(_model(template, arrays, call), threads=0)
        found = sessions[types].run(arrays)
        device = next((value.device for value in inputs if isinstance(value, torch.Tensor)), torch.device("cpu"))
        return tuple(from_array(np.asarray(array)).to(device) for array in found)

    return run


def _array(value: Any) -> np.ndarray:
    if not isinstance(value, torch.Tensor):
        raise ModelError("only tensors can go to ONNX Runtime", remedy="give the operator a mapping")
    return to_array(value)


def _model(template: onnx.NodeProto, arrays: dict[str, np.ndarray], call: Call) -> bytes:
    node = onnx.NodeProto()
    node.CopyFrom(template)
    del node.input[:], node.output[:]
    node.input.extend(f"i{index}" if f"i{index}" in arrays else "" for index in range(len(template.input)))
    outputs = [f"o{index}" for index in range(call.outputs)]
    node.output.extend(outputs)
    graph = onnx.helper.make_graph(
        [node],
        "island",
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim
            )
            for name, array in arrays.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    opsets = [onnx.helper.make_opsetid(call.domain, call.version)]
    if call.domain:
        opsets.append(onnx.helper.make_opsetid("", 21))
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized
