"""HardSwish that an exporter wrote as four elementwise nodes.

x · clip(x + 3, 0, 6) / 6 is x · HardSigmoid(x) with α = 1/6 and β = 1/2. Two nodes instead of four: measured in ONNX
Runtime on one thread, 1.3 to 1.7 times as fast. The operator `HardSwish` itself is no faster there (the engine expands
it into the same two nodes) and needs opset 14.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lowbit.graph.clean.values import all_nodes, constant, is_op, only_consumer, replace_value

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["fuse_hard_sigmoids"]


def fuse_hard_sigmoids(model: ir.Model) -> Counter[str]:
    """Rewrite x · clip(x + b, 0, a) / a as x · HardSigmoid(x), and clip(x + b, 0, a) / a as HardSigmoid(x).

    Refused where an intermediate result is used elsewhere, or where a, b are not scalar constants.
    """
    changes: Counter[str] = Counter()
    for graph, node in all_nodes(model):
        divisor = _divisor(node)
        if divisor is None or node.inputs[0] is None:
            continue
        previous = node.inputs[0].producer()
        if previous is None or only_consumer(node.inputs[0]) is not node:
            continue
        if is_op(previous, "Clip"):
            matched = _shifted(previous, divisor)
            if matched is None:
                continue
            x, offset = matched
            sigmoid = _hard_sigmoid(x, divisor, offset, node)
            graph.insert_before(node, sigmoid)
            if replace_value(node.outputs[0], sigmoid.outputs[0]):
                graph.remove(node, safe=True)
                changes["{n} chain{s} of Add, Clip, Div fused into HardSigmoid"] += 1
            else:
                graph.remove(sigmoid, safe=True)
            continue
        for x, gate in _factors(previous):
            clip = gate.producer()
            if clip is None or only_consumer(gate) is not previous:
                continue
            matched = _shifted(clip, divisor)
            if matched is None or matched[0] is not x:
                continue
            sigmoid = _hard_sigmoid(x, divisor, matched[1], clip)
            graph.insert_before(previous, sigmoid)
            previous.replace_input_with(list(previous.inputs).index(gate), sigmoid.outputs[0])
            if replace_value(node.outputs[0], previous.outputs[0]):
                graph.remove(node, safe=True)
                changes["{n} chain{s} of Add, Clip, Mul, Div fused into HardSigmoid and Mul"] += 1
            break
    return changes


def _divisor(node: ir.Node) -> float | None:
    """The scalar that a node divides by, as its second operand."""
    if not is_op(node, "Div", "Mul"):
        return None
    array = constant(node.inputs[1])
    if array is None or array.size != 1 or array.ndim > 1 or not np.issubdtype(array.dtype, np.floating):
        return None
    number = float(array.item())
    if number <= 0:
        return None
    return number if node.op_type == "Div" else 1 / number


def _factors(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    if is_op(node, "Mul") and node.inputs[0] is not None and node.inputs[1] is not None:
        yield node.inputs[0], node.inputs[1]
        yield node.inputs[1], node.inputs[0]


def _shifted(clip: ir.Node, width: float) -> tuple[ir.Value, float] | None:
    """Match clip(x + b, 0, width) and return x and b."""
    if not is_op(clip, "Clip") or len(clip.inputs) != 3 or clip.inputs[0] is None:
        return None
    low, high = constant(clip.inputs[1]), constant(clip.inputs[2])
    if low is None or high is None or low.item() != 0 or not np.isclose(high.item(), width, rtol=1e-6, atol=0):
        return None
    add = clip.inputs[0].producer()
    if add is None or not is_op(add, "Add") or only_consumer(clip.inputs[0]) is not clip:
        return None
    for value, operand in ((add.inputs[0], add.inputs[1]), (add.inputs[1], add.inputs[0])):
        array = constant(operand)
        if value is not None and array is not None and array.size == 1 and array.ndim <= 1:
            return value, float(array.item())
    return None


def _hard_sigmoid(x: ir.Value, width: float, offset: float, like: ir.Node) -> ir.Node:
    node = ir.node(
        "HardSigmoid", [x], attributes={"alpha": 1 / width, "beta": offset / width}, name=f"{like.name}/HardSigmoid"
    )
    output = node.outputs[0]
    output.name = f"{like.outputs[0].name}/HardSigmoid"
    output.type, output.shape = x.type, x.shape
    return node
