"""Operators on two tensors, element by element."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.exporters.litert.constants import plain_constant, stored_codes
from lowbit.exporters.litert.operators.attributes import constant_input
from lowbit.exporters.litert.operators.fusing import fused, written
from lowbit.exporters.litert.operators.gates import gated_input
from lowbit.exporters.litert.placement import Placed, identity
from lowbit.exporters.litert.refusal import Refusal
from lowbit.exporters.litert.tensors import Grid

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.exporters.litert.lowering import Lowering
    from lowbit.exporters.litert.tensors import Tensor

__all__ = ["RULES"]

_FUSING = frozenset({"ADD", "SUB", "MUL"})
_SQUARE, _INVERSE_ROOT = 2.0, -0.5


def _binary(low: Lowering, node: ir.Node, kind: str) -> None:
    if len(node.inputs) != 2:
        raise Refusal(f"it has {len(node.inputs)} inputs, LiteRT's {kind} two")
    _combined(low, node, kind, [_operand(low, value) for value in node.inputs])


def _operand(low: Lowering, value: ir.Value | None) -> Placed | tuple[NDArray[np.float64], Grid]:
    """Return an operand: a tensor of the program, or a constant with its grid."""
    real = plain_constant(value)
    if real is None:
        return low.placed(value)
    stored = stored_codes(value)
    if stored is not None and stored.scale.size == 1:
        codes, zero = stored.codes, int(stored.zero_point.reshape(()))
        shift = 128 if codes.max(initial=0) > 127 or zero > 127 else 0
        if codes.min(initial=0) - shift >= -128 and codes.max(initial=0) - shift <= 127:
            return stored.real(), Grid(float(stored.scale.reshape(())), zero - shift)
    return _own_grid(np.asarray(real, dtype=np.float64))


def _own_grid(real: NDArray[np.float64]) -> tuple[NDArray[np.float64], Grid]:
    """Return a float constant with a symmetric grid; a single number is exact on it."""
    return real, _symmetric_grid(real, "int8")


def _symmetric_grid(real: NDArray[np.float64], dtype: str) -> Grid:
    limit = float(np.abs(real).max(initial=0.0))
    return Grid(float(np.float32(limit / np.iinfo(dtype).max)) if limit else 1.0, 0, dtype)


def _widened(real: NDArray[np.float64]) -> tuple[NDArray[np.float64], Grid]:
    """Return a constant for a kernel that computes with int16 codes."""
    return real, _symmetric_grid(real, "int16")


def _combined(
    low: Lowering, node: ir.Node, kind: str, operands: list[Placed | tuple[NDArray[np.float64], Grid]]
) -> None:
    shapes = [operand.shape if isinstance(operand, Placed) else operand[0].shape for operand in operands]
    try:
        shape = np.broadcast_shapes(*shapes)
    except ValueError as error:
        raise Refusal(f"its inputs have the shapes {shapes}") from error
    rank = len(shape)
    full = [operand for operand in operands if isinstance(operand, Placed) and len(operand.order) == rank]
    order = max(full, key=lambda operand: operand.tensor.bytes).order if full else identity(rank)
    end, grid, bounds = low.result_grid(node.outputs[0])
    if grid.dtype == "int16":
        operands = [each if isinstance(each, Placed) else _widened(each[0]) for each in operands]
    tensors = [_arranged(low, operand, order, grid if kind in {"MAXIMUM", "MINIMUM"} else None) for operand in operands]
    options: dict[str, object] = {}
    rest = bounds
    if kind in _FUSING:
        options["fusedActivationFunction"], rest = fused(grid, bounds)
    if kind in {"ADD", "SUB"} and grid.dtype == "int16":
        options["potScaleInt16"] = False
    y = low.emit(kind, tensors, [shape[axis] for axis in order], grid=grid, options=options, name=written(end))
    low.put(end, low.clamp(y, grid, rest), order, grid)


def _arranged(
    low: Lowering, operand: Placed | tuple[NDArray[np.float64], Grid], order: tuple[int, ...], grid: Grid | None
) -> Tensor:
    """Return an operand with all axes, in an order, on its own grid or on a given one."""
    rank = len(order)
    if not isinstance(operand, Placed):
        real, own = operand
        arranged = real.reshape((1,) * (rank - real.ndim) + real.shape).transpose(order)
        return low.coded_constant("constant", arranged, grid or own)
    if grid is not None:
        operand = low.on_grid(operand, grid)
    if len(operand.order) < rank:
        plain = low.ordered(operand, identity(len(operand.order)))
        shape = (1,) * (rank - len(operand.order)) + plain.shape
        operand = Placed(tensor=low.reshape(plain, shape, operand.grid), order=identity(rank), grid=operand.grid)
    return low.ordered(operand, order)


def _multiply(low: Lowering, node: ir.Node) -> None:
    gated = gated_input(node)
    if gated is None:
        _binary(low, node, "MUL")
        return
    placed = low.placed(gated)
    end, grid, bounds = low.result_grid(node.outputs[0])
    y = low.emit("HARD_SWISH", [placed.tensor], placed.tensor.shape, grid=grid, name=written(end))
    low.put(end, low.clamp(y, grid, bounds), placed.order, grid)


def _divide(low: Lowering, node: ir.Node) -> None:
    divisor = plain_constant(node.inputs[1])
    if divisor is None:
        raise Refusal("LiteRT has no integer division by a tensor")
    reciprocal = 1.0 / np.asarray(divisor, dtype=np.float64)
    _combined(low, node, "MUL", [_operand(low, node.inputs[0]), _own_grid(reciprocal)])


def _power(low: Lowering, node: ir.Node) -> None:
    exponents = np.unique(constant_input(node, 1))
    placed = low.placed(node.inputs[0])
    if exponents.tolist() == [_SQUARE]:
        _combined(low, node, "MUL", [placed, placed])
    elif exponents.tolist() == [_INVERSE_ROOT]:
        end, grid, bounds = low.result_grid(node.outputs[0])
        y = low.emit("RSQRT", [placed.tensor], placed.tensor.shape, grid=grid, name=written(end))
        low.put(end, low.clamp(y, grid, bounds), placed.order, grid)
    else:
        raise Refusal("LiteRT has no integer kernel for powers other than 2 and -1/2")


RULES = {
    "Add": lambda low, node: _binary(low, node, "ADD"),
    "Sub": lambda low, node: _binary(low, node, "SUB"),
    "Mul": _multiply,
    "Div": _divide,
    "Pow": _power,
    "Max": lambda low, node: _binary(low, node, "MAXIMUM"),
    "Min": lambda low, node: _binary(low, node, "MINIMUM"),
}
