"""Functions of one number: LiteRT's own kernels, or a table of 256 results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from lowbit.exporters.litert.lowering import clip_bounds
from lowbit.exporters.litert.operators.attributes import attribute, constant_input
from lowbit.exporters.litert.operators.fusing import written
from lowbit.exporters.litert.operators.gates import gated_input
from lowbit.exporters.litert.refusal import Refusal
from lowbit.exporters.litert.tensors import Grid

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.exporters.litert.lowering import Lowering

__all__ = ["RULES"]

# What the kernels demand of their outputs.
_PROBABILITY = Grid(1 / 256, -128)
_SIGNED_UNIT = Grid(1 / 128, 0)
_CODES = np.arange(-128, 128)
_FIRST = 128


def _fixed(low: Lowering, node: ir.Node, kind: str, grid: Grid) -> None:
    """Write a kernel whose output has a grid of its own; the Q behind it requantizes where it says otherwise."""
    placed = low.placed(node.inputs[0])
    y = low.emit(kind, [placed.tensor], placed.tensor.shape, grid=grid, name=written(node.outputs[0]))
    low.put(node.outputs[0], y, placed.order, grid)


def _softmax(low: Lowering, node: ir.Node) -> None:
    placed = low.placed(node.inputs[0])
    rank = len(placed.order)
    axis = attribute(node, "axis", -1) % rank
    order = placed.order
    if order[-1] != axis:
        order = (*(other for other in order if other != axis), axis)
    x = low.ordered(placed, order)
    y = low.emit("SOFTMAX", [x], x.shape, grid=_PROBABILITY, options={"beta": 1.0}, name=written(node.outputs[0]))
    low.put(node.outputs[0], y, order, _PROBABILITY)


def _clipping(low: Lowering, node: ir.Node) -> None:
    """Write a Relu or Clip that no operator before it could take: on the same grid it only cuts codes."""
    bounds = clip_bounds(node)
    if bounds is None:
        raise Refusal("its bounds are computed while the model runs")
    placed = low.placed(node.inputs[0])
    assert placed.grid is not None
    output = node.outputs[0]
    coded = any(use.node.op_type == "QuantizeLinear" for use in output.uses())
    grid = low.grid_behind(output) if coded else placed.grid
    kinds = {(0.0, float("inf")): "RELU", (0.0, 6.0): "RELU6"}
    if bounds in kinds and grid.limits[0] < 0:
        y = low.emit(kinds[bounds], [placed.tensor], placed.tensor.shape, grid=grid, name=written(output))
        low.put(output, y, placed.order, grid)
        return
    moved = low.on_grid(placed, grid)
    low.put(output, low.clamp(moved.tensor, grid, bounds), placed.order, grid)


def _own(low: Lowering, node: ir.Node, kind: str, options: dict[str, Any] | None = None) -> None:
    placed = low.placed(node.inputs[0])
    end, grid, bounds = low.result_grid(node.outputs[0])
    y = low.emit(kind, [placed.tensor], placed.tensor.shape, grid=grid, options=options, name=written(end))
    low.put(end, low.clamp(y, grid, bounds), placed.order, grid)


def _leaky(low: Lowering, node: ir.Node) -> None:
    _own(low, node, "LEAKY_RELU", {"alpha": float(attribute(node, "alpha", 0.01))})


def _prelu(low: Lowering, node: ir.Node) -> None:
    placed = low.placed(node.inputs[0])
    slope = constant_input(node, 1)
    rank = len(placed.order)
    if slope.ndim > rank:
        raise Refusal("its slope has more axes than its input")
    arranged = np.asarray(slope, dtype=np.float64).reshape((1,) * (rank - slope.ndim) + slope.shape)
    if arranged.shape[0] != 1:
        raise Refusal("its slope differs from sample to sample")
    end, grid, bounds = low.result_grid(node.outputs[0])
    limit = float(np.abs(arranged).max(initial=0.0))
    own = Grid(float(np.float32(limit / 127)) if limit else 1.0, 0)
    alpha = low.coded_constant("slope", arranged.transpose(placed.order)[0], own)
    y = low.emit("PRELU", [placed.tensor, alpha], placed.tensor.shape, grid=grid, name=written(end))
    low.put(end, low.clamp(y, grid, bounds), placed.order, grid)


def _table(low: Lowering, node: ir.Node, function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> None:
    """Look every code up: the table holds what the Q/DQ graph computes for each of the 256, so nothing is lost."""
    placed = low.placed(node.inputs[0])
    assert placed.grid is not None
    end, grid, bounds = low.result_grid(node.outputs[0])
    with np.errstate(all="ignore"):
        results = np.nan_to_num(np.clip(function(placed.grid.decode(_CODES)), *bounds), nan=0.0)
    shape = placed.tensor.shape
    wide = low.emit("CAST", [placed.tensor], shape, grid=None, options={"inDataType": 9, "outDataType": 2})
    first = low.integers("first_code", [_FIRST])
    index = low.emit("ADD", [wide, first], shape, grid=None, options={"fusedActivationFunction": 0}, name="index")
    table = low.coded_constant(f"{node.op_type}_table", results, grid)
    y = low.emit("GATHER", [table, index], shape, grid=grid, options={"axis": 0}, name=written(end))
    low.put(end, y, placed.order, grid)


def _hard_sigmoid(low: Lowering, node: ir.Node) -> None:
    readers = [use.node for use in node.outputs[0].uses()]
    if readers and all(reader.op_type == "Mul" and gated_input(reader) is not None for reader in readers):
        return  # The product is one kernel, which never has these numbers.
    alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    _table(low, node, lambda x: np.clip(alpha * x + beta, 0.0, 1.0))


def _elu(low: Lowering, node: ir.Node) -> None:
    alpha = attribute(node, "alpha", 1.0)
    _table(low, node, lambda x: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0.0)), x))


def _gelu(low: Lowering, node: ir.Node) -> None:
    if attribute(node, "approximate", "none") == "tanh":
        _table(low, node, lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))
    else:
        _table(low, node, lambda x: 0.5 * x * (1 + special.erf(x / np.sqrt(2))))


def _softplus(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.logaddexp(0.0, x)


def _by_table(
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> Callable[[Lowering, ir.Node], None]:
    return lambda low, node: _table(low, node, function)


RULES: dict[str, Callable[[Lowering, ir.Node], None]] = {
    "Sigmoid": lambda low, node: _fixed(low, node, "LOGISTIC", _PROBABILITY),
    "Tanh": lambda low, node: _fixed(low, node, "TANH", _SIGNED_UNIT),
    "Softmax": _softmax,
    "Relu": _clipping,
    "Clip": _clipping,
    "LeakyRelu": _leaky,
    "PRelu": _prelu,
    "HardSwish": lambda low, node: _own(low, node, "HARD_SWISH"),
    "HardSigmoid": _hard_sigmoid,
    "Elu": _elu,
    "Gelu": _gelu,
    "Softplus": _by_table(_softplus),
    "Mish": _by_table(lambda x: x * np.tanh(_softplus(x))),
    "Erf": _by_table(special.erf),
    "Exp": _by_table(np.exp),
    "Sqrt": _by_table(np.sqrt),
    "Reciprocal": _by_table(lambda x: 1 / x),
    "Log": _by_table(np.log),
    "Abs": _by_table(np.abs),
    "Neg": _by_table(np.negative),
}
