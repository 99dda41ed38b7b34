"""Constant folding: what does not depend on the input is computed once, unless that makes the file larger."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from lowbit.graph.clean.opset import opset_of
from lowbit.graph.clean.values import all_nodes, constant

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["constant_inputs", "evaluate_constant", "fold_constants", "may_be_folded", "replace_by_constant"]

# Results up to this size may come on top of their inputs; larger ones only in exchange for them.
_FREE_BYTES = 64 * 1024
# Shape inference reads the values of inputs up to this size.
_SHAPE_ELEMENTS = 256

_KEPT = {
    # Already quantized parts of a model stay as they are: the pair is the information.
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    # Not functions of their inputs.
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Dropout",
    # Constants already.
    "Constant",
}
_DTYPES = {
    ir.DataType.BOOL,
    ir.DataType.INT8,
    ir.DataType.INT16,
    ir.DataType.INT32,
    ir.DataType.INT64,
    ir.DataType.UINT8,
    ir.DataType.UINT16,
    ir.DataType.UINT32,
    ir.DataType.UINT64,
    ir.DataType.FLOAT16,
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
}


def fold_constants(model: ir.Model) -> Counter[str]:
    """Replace nodes of the standard domain whose inputs are all constant by their results.

    A result above 64 KiB is kept only if inputs of at least its size die with the node, so that folding a weight's
    `Transpose` is free, and an `Expand` or a second layout of a tied weight never grows the file.
    """
    changes: Counter[str] = Counter()
    opset = opset_of(model)
    for graph, node in all_nodes(model):
        arrays = constant_inputs(node, {}) if may_be_folded(node) else None
        if arrays is None or not _affordable(node, arrays, opset):
            continue
        results = evaluate_constant(node, arrays, opset)
        if results is None:
            continue
        replace_by_constant(graph, node, results)
        changes["{n} constant node{s} folded"] += 1
    return changes


def replace_by_constant(graph: ir.Graph, node: ir.Node, results: list[np.ndarray]) -> None:
    """Let initializers of `graph` take the place of a node's outputs, under their names."""
    for output, result in zip(node.outputs, results, strict=True):
        tensor = ir.tensor(result, name=output.name)
        value = ir.Value(
            name=output.name, shape=ir.Shape(result.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        output.replace_all_uses_with(value)
        graph.register_initializer(value)
    graph.remove(node, safe=True)


def may_be_folded(node: ir.Node) -> bool:
    """Whether a node is a function of its inputs alone, and neither a part nor a result of the model's interface."""
    if node.domain not in {"", "ai.onnx"} or node.op_type in _KEPT or not node.inputs:
        return False
    if any(
        attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS} for attribute in node.attributes.values()
    ):
        return False
    return not any(output.is_graph_output() or not output.name for output in node.outputs)


def constant_inputs(node: ir.Node, known: Mapping[ir.Value, np.ndarray]) -> list[np.ndarray | None] | None:
    """Return a node's input arrays, None for an absent optional input; or None if one is not constant.

    Args:
        node: The node.
        known: Values that are constant too, though no initializer holds them.
    """
    arrays: list[np.ndarray | None] = []
    for value in node.inputs:
        if value is None:
            arrays.append(None)
            continue
        if value in known:
            arrays.append(known[value])
            continue
        if value.const_value is None or value.const_value.dtype not in _DTYPES:
            return None
        array = constant(value)
        if array is None:
            return None
        arrays.append(array)
    return arrays


def _affordable(node: ir.Node, arrays: list[np.ndarray | None], opset: int) -> bool:
    """Whether the size of all results is known before computing them, and does not grow the file."""
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    freed = 0
    for value, array in zip(node.inputs, arrays, strict=True):
        if value is None or array is None or value.name is None:
            continue
        types[value.name] = onnx.helper.make_tensor_type_proto(
            onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        if array.size <= _SHAPE_ELEMENTS:
            data[value.name] = onnx.numpy_helper.from_array(array, value.name)
        if all(usage.node is node for usage in value.uses()) and not value.is_graph_output():
            freed += array.nbytes
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
        found = onnx.shape_inference.infer_node_outputs(
            schema, ir.to_proto(node), types, data, opset_imports=[onnx.helper.make_opsetid("", opset)]
        )
    except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, RuntimeError):
        return False
    total = 0.0
    for output in node.outputs:
        tensor = found[output.name].tensor_type if output.name in found else None
        if tensor is None or not tensor.HasField("shape") or ir.DataType(tensor.elem_type) not in _DTYPES:
            return False
        if any(not dimension.HasField("dim_value") for dimension in tensor.shape.dim):
            return False
        size = float(np.prod([dimension.dim_value for dimension in tensor.shape.dim], dtype=np.float64))
        total += size * ir.DataType(tensor.elem_type).itemsize
    return total <= max(_FREE_BYTES, freed)


def evaluate_constant(node: ir.Node, arrays: list[np.ndarray | None], opset: int) -> list[np.ndarray] | None:
    """Run one node in ONNX's reference implementation, the only engine that is there wherever lowbit is."""
    feeds = {
        value.name: array
        for value, array in zip(node.inputs, arrays, strict=True)
        if value is not None and value.name is not None and array is not None
    }
    graph = onnx.helper.make_graph(
        [ir.to_proto(node)],
        "constant",
        [onnx.helper.make_empty_tensor_value_info(name) for name in feeds],
        [onnx.helper.make_empty_tensor_value_info(output.name or "") for output in node.outputs],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(proto).run(None, feeds)
    except Exception:  # noqa: BLE001  (the reference lacks some operators and raises anything; the node then stays)
        return None
    return [np.asarray(result) for result in results]
