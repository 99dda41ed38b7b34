"""What codes lack, in standard operators: weights that stand out, and the product of two thin matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from lowbit.formats import parse_format
from lowbit.graph.constant_chain import ConstantChain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lowbit.graph.editor import Editor

__all__ = ["corrected_at_load", "product_beside"]

_HALF = parse_format("float16")


def corrected_at_load(
    editor: Editor,
    before: ir.Node,
    name: str,
    weight: ir.Value,
    shape: tuple[int, ...],
    *,
    positions: NDArray[np.int32],
    values: NDArray[np.float16],
    left: NDArray[np.float16] | None = None,
    right: NDArray[np.float16] | None = None,
) -> ir.Value:
    """Correct a weight that engines decode at load time, by operators that they fold just so.

    Args:
        editor: Editor of the model.
        before: The node that reads the weight.
        name: Name of the weight.
        weight: The decoded weight, computed from constants.
        shape: Its shape.
        positions: `[P]`, where other values stand, in row-major order.
        values: `[P]`, which.
        left: `[R, r]` for a weight that is `[R, …]`; `None` adds no product.
        right: `[r, …]`, the other axes as one.
    """
    chain = ConstantChain(editor, before, name)
    if positions.size:
        flat = chain.reshape(weight, (-1,)) if len(shape) > 1 else weight
        where = chain.constant("outliers", positions)
        what = _widened(chain, "outlier_values", values)
        scattered = chain.add("ScatterElements", [flat, where, what], ir.DataType.FLOAT, {"axis": 0})
        weight = chain.reshape(scattered, shape) if len(shape) > 1 else scattered
    if left is not None and right is not None:
        factors = [_widened(chain, "left", left), _widened(chain, "right", right)]
        product = chain.add("MatMul", factors, ir.DataType.FLOAT)
        if len(shape) != 2:
            product = chain.reshape(product, shape)
        weight = chain.add("Add", [weight, product], ir.DataType.FLOAT)
    chain.insert()
    return weight


def product_beside(
    editor: Editor, node: ir.Node, name: str, first: NDArray[np.float16], second: NDArray[np.float16]
) -> None:
    """Add `(x · first) · second` to the output of a matrix product whose weight is decoded inside the kernel.

    Args:
        editor: Editor of the model.
        node: A MatMul or Gemm that reads x first.
        name: Name of the weight.
        first: `[K, r]`.
        second: `[r, N]`.
    """
    read = node.inputs[0]
    assert read is not None
    assert isinstance(node.graph, ir.Graph)
    chain = ConstantChain(editor, node, name)
    factors = [_widened(chain, "first", first), _widened(chain, "second", second)]
    thin = chain.add("MatMul", [read, factors[0]], ir.DataType.FLOAT)
    product = chain.add("MatMul", [thin, factors[1]], ir.DataType.FLOAT)
    chain.insert()
    output = node.outputs[0]
    label = output.name or name
    total = editor.node(
        "Add", [output, product], name=f"{label}_Add", outputs=[f"{label}_corrected"], dtypes=[ir.DataType.FLOAT]
    )
    node.graph.insert_after(node, total)
    editor.take_over(output, total.outputs[0])
    # Taking over redirects every reader, the sum itself included.
    total.replace_input_with(0, output)


def _widened(chain: ConstantChain, what: str, half: NDArray[np.float16]) -> ir.Value:
    stored = chain.constant(what, half, _HALF)
    return chain.add("Cast", [stored], ir.DataType.FLOAT, {"to": int(ir.DataType.FLOAT)})
