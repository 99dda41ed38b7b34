"""What every operator does with channels. One table at the end; an operator that is not in it freezes what it reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowbit.graph.channels.joining import concat, elementwise, same_places
from lowbit.graph.channels.layers import batch_norm, conv, conv_transpose, gemm, matmul
from lowbit.graph.channels.picking import gather, resize, slice_, split
from lowbit.graph.channels.reshaping import flatten, reshape

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from lowbit.graph.channels.trace import Trace

__all__ = ["HANDLERS", "unknown"]


def unknown(trace: Trace, node: ir.Node) -> None:
    """Freeze what an operator reads: nothing is known of how it uses channels."""
    for value in node.inputs:
        trace.freeze(trace.of(value), f"{node.op_type} ({node.name}) needs all of it")


def transpose(trace: Trace, node: ir.Node) -> None:
    """Move channels with their axes."""
    axes = trace.of(node.inputs[0])
    perm = node.attributes.get("perm")
    order = list(perm.as_ints()) if perm is not None else list(range(len(axes)))[::-1]
    trace.axes[str(node.outputs[0].name)] = [axes[axis] for axis in order]


def along(trace: Trace, node: ir.Node) -> None:
    """Pass every axis but the one along which the operator looks at all values together."""
    axes = trace.of(node.inputs[0])
    attribute = node.attributes.get("axis")
    axis = (-1 if attribute is None else attribute.as_int()) % max(len(axes), 1)
    first_only = node.op_type in {"Softmax", "LogSoftmax"}
    looked_at = axes[axis : axis + 1] if first_only else axes[axis:]
    trace.freeze(looked_at, f"{node.op_type} ({node.name}) looks at all channels together")
    trace.axes[str(node.outputs[0].name)] = axes


def reduce(trace: Trace, node: ir.Node) -> None:
    """Pass the axes that are not reduced."""
    from lowbit.graph.constants import constant_array

    axes = trace.of(node.inputs[0])
    attribute = node.attributes.get("axes")
    given = constant_array(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if attribute is None and given is None:
        unknown(trace, node)
        return
    listed = [int(axis) for axis in (attribute.as_ints() if attribute is not None else given)]  # type: ignore[union-attr]
    reduced = {axis % len(axes) for axis in listed}
    trace.freeze([axes[axis] for axis in reduced], f"{node.op_type} ({node.name}) adds up all channels")
    keep = node.attributes.get("keepdims")
    if keep is None or keep.as_int():
        result = [None if axis in reduced else found for axis, found in enumerate(axes)]
    else:
        result = [found for axis, found in enumerate(axes) if axis not in reduced]
    trace.axes[str(node.outputs[0].name)] = result


def nothing(trace: Trace, node: ir.Node) -> None:
    """Read no channel: the operator looks at a shape that no axis with channels is part of."""
    axes = trace.of(node.inputs[0])
    bounds = [node.attributes.get(name) for name in ("start", "end")]
    start = 0 if bounds[0] is None else bounds[0].as_int()
    end = len(axes) if bounds[1] is None else bounds[1].as_int()
    trace.freeze(axes[start:end], f"its size is read by {node.name}")


def pad(trace: Trace, node: ir.Node) -> None:
    """Pass axes that are not padded."""
    from lowbit.graph.constants import constant_array

    axes = trace.of(node.inputs[0])
    pads = constant_array(node.inputs[1]) if len(node.inputs) > 1 else None
    if pads is None or len(node.inputs) > 3:
        unknown(trace, node)
        return
    count = len(axes)
    padded = [bool(pads[axis] or pads[axis + count]) for axis in range(count)]
    trace.freeze([a for a, found in zip(axes, padded, strict=True) if found], f"Pad ({node.name}) adds channels to it")
    trace.axes[str(node.outputs[0].name)] = [None if p else a for a, p in zip(axes, padded, strict=True)]


_UNARY = """Relu LeakyRelu Sigmoid Tanh Erf HardSigmoid HardSwish Elu Selu Celu Gelu Mish Softplus Softsign Exp Log Sqrt
    Reciprocal Abs Neg Ceil Floor Round Sign Sin Cos Not Identity Dropout Cast Clip ThresholdedRelu Swish IsNaN IsInf"""
_SEVERAL = """Add Sub Mul Div Pow Min Max Mean Sum Mod PRelu Where Equal Greater Less GreaterOrEqual LessOrEqual And Or
    Xor"""
_POOLS = "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool"
_REDUCTIONS = "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceSumSquare ReduceProd"

HANDLERS: dict[str, Callable[[Trace, ir.Node], None]] = {
    **dict.fromkeys(_UNARY.split(), elementwise),
    **dict.fromkeys(_SEVERAL.split(), elementwise),
    **dict.fromkeys(_POOLS.split(), same_places),
    **dict.fromkeys(_REDUCTIONS.split(), reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax", "LayerNormalization"), along),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), batch_norm),
    **dict.fromkeys(("Flatten", "Squeeze", "Unsqueeze"), flatten),
    "Concat": concat,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gather": gather,
    "Gemm": gemm,
    "MatMul": matmul,
    "Pad": pad,
    "Reshape": reshape,
    "Resize": resize,
    "Shape": nothing,
    "Slice": slice_,
    "Split": split,
    "Transpose": transpose,
}
