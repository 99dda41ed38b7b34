"""Matrix products: FULLY_CONNECTED with a constant weight, BATCH_MATMUL without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.exporters.litert.constants import plain_constant
from lowbit.exporters.litert.lowering import only_use
from lowbit.exporters.litert.operators.attributes import attribute
from lowbit.exporters.litert.operators.convolution import bias_tensor, signed_weight
from lowbit.exporters.litert.operators.fusing import fused, written
from lowbit.exporters.litert.placement import identity
from lowbit.exporters.litert.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.exporters.litert.lowering import Lowering
    from lowbit.exporters.litert.placement import Placed
    from lowbit.exporters.litert.tensors import Tensor

__all__ = ["RULES"]


def _gemm(low: Lowering, node: ir.Node) -> None:
    if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0 or attribute(node, "transA", 0):
        raise Refusal("LiteRT has no matrix product with alpha, beta or transA")
    weight = signed_weight(node.inputs[1])
    transposed = bool(attribute(node, "transB", 0))
    codes = weight.codes if transposed else weight.codes.T
    _product(low, node, codes, weight.scale, node.inputs[2] if len(node.inputs) > 2 else None, node.outputs[0])


def _matmul(low: Lowering, node: ir.Node) -> None:
    if plain_constant(node.inputs[1]) is None:
        _batched(low, node)
        return
    weight = signed_weight(node.inputs[1])
    if weight.codes.ndim != 2 or plain_constant(node.inputs[0]) is not None:
        raise Refusal("its constant weight is not one matrix on the right")
    bias, result = _bias_behind(node, weight.codes.shape[1])
    if bias is not None:
        low.done.add(result.producer())  # type: ignore[arg-type]
    _product(low, node, weight.codes.T, weight.scale, bias, result)


def _bias_behind(node: ir.Node, channels: int) -> tuple[ir.Value | None, ir.Value]:
    """Return the constant that the only reader of a product adds, and the sum; or nothing and the product."""
    own = node.outputs[0]
    consumer = only_use(own)
    if consumer is None or consumer.op_type != "Add":
        return None, own
    other = consumer.inputs[1] if consumer.inputs[0] is own else consumer.inputs[0]
    array = plain_constant(other)
    if array is None or array.size != channels or array.shape[-1] != channels:
        return None, own
    return other, consumer.outputs[0]


def _product(
    low: Lowering,
    node: ir.Node,
    codes: NDArray[np.int64],
    scale: NDArray[np.float32],
    bias: ir.Value | None,
    result: ir.Value,
) -> None:
    """Write FULLY_CONNECTED for a weight `[out, in]`."""
    placed = low.placed(node.inputs[0], shuffled=True)
    assert placed.grid is not None
    channels, depth = codes.shape
    order = placed.order
    if order[-1] != len(order) - 1 or node.op_type == "Gemm":
        order = identity(len(order))
    x = low.ordered(placed, order)
    if placed.shuffle is not None:
        codes = codes[:, placed.shuffle]
    end, grid, bounds = low.result_grid(result)
    activation, rest = fused(grid, bounds)
    per_channel = scale.reshape(-1)
    w = low.constant(
        node.inputs[1].name or "weight",  # type: ignore[union-attr]
        codes.astype(np.int8),
        scale=per_channel.astype(np.float32),
    )
    b = bias_tensor(low, bias, channels, placed.grid, per_channel)
    if x.shape[-1] != depth:
        raise Refusal(f"its input has {x.shape[-1]} columns and its weight {depth} rows")
    y = low.emit(
        "FULLY_CONNECTED",
        [x, w, b],
        (*x.shape[:-1], channels),
        grid=grid,
        options={"fusedActivationFunction": activation, "keepNumDims": len(order) > 2},
        name=written(end),
    )
    low.put(end, low.clamp(y, grid, rest), order, grid)


def _batched(low: Lowering, node: ir.Node) -> None:
    left, right = low.placed(node.inputs[0]), low.placed(node.inputs[1])
    if len(left.order) != len(right.order) or left.shape[:-2] != right.shape[:-2]:
        raise Refusal("its two inputs are batches of different shapes")
    end, grid, bounds = low.result_grid(node.outputs[0])
    x, adjoint_x = _as_matrices(low, left)
    y, adjoint_y = _as_matrices(low, right)
    shape = (*left.shape[:-1], right.shape[-1])
    z = low.emit(
        "BATCH_MATMUL",
        [x, y],
        shape,
        grid=grid,
        options={"adjX": adjoint_x, "adjY": adjoint_y},
        name=written(end),
    )
    low.put(end, low.clamp(z, grid, bounds), identity(len(shape)), grid)


def _as_matrices(low: Lowering, placed: Placed) -> tuple[Tensor, bool]:
    """Return a batch of matrices, and whether its matrices are stored transposed, which the kernel can read."""
    rank = len(placed.order)
    swapped: Sequence[int] = (*range(rank - 2), rank - 1, rank - 2)
    if placed.order == tuple(swapped):
        return placed.tensor, True
    return low.ordered(placed, identity(rank)), False


RULES = {"Gemm": _gemm, "MatMul": _matmul}
