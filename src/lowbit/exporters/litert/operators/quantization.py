"""Q and DQ themselves: they say on which grid a tensor is; only a change of grid is work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from lowbit.exporters.litert.constants import grid_of, plain_constant
from lowbit.exporters.litert.layout import wanted_order
from lowbit.exporters.litert.lowering import static_shape
from lowbit.exporters.litert.placement import identity
from lowbit.exporters.litert.refusal import Refusal

if TYPE_CHECKING:
    from lowbit.exporters.litert.lowering import Lowering
    from lowbit.exporters.litert.tensors import Grid

__all__ = ["RULES", "take_input"]


def take_input(low: Lowering, value: ir.Value, grid: Grid | None) -> None:
    """Make an input of the model an input of the program, in the order in which the kernels read it."""
    if grid is not None and grid.dtype != "int8":
        raise Refusal(f"the input {value.name} has codes of {grid.dtype}, an input of LiteRT's kernels has int8")
    shape = static_shape(value)
    order = wanted_order(value) if grid is not None else identity(len(shape))
    tensor = low.tensor(value.name or "input", [shape[axis] for axis in order], grid)
    low.program.inputs.append((value.name or "input", tensor))
    low.program.orders[value.name or "input"] = order
    low.put(value, tensor, order, grid)


def _quantize(low: Lowering, node: ir.Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    if plain_constant(source) is not None:
        return  # whoever reads it takes the codes
    grid = grid_of(node)
    if source not in low.values:
        if not source.is_graph_input():
            raise Refusal(f"its input {source.name} is float")
        take_input(low, source, grid)
    low.values[output] = low.on_grid(low.placed(source, padded=True, shuffled=True), grid)


def _dequantize(low: Lowering, node: ir.Node) -> None:
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    if plain_constant(output) is not None:
        return
    grid = grid_of(node)
    if source not in low.values:
        if not source.is_graph_input():
            raise Refusal(f"its input {source.name} is not made by integer operators")
        take_input(low, source, grid)
    found = low.placed(source, padded=True, shuffled=True)
    if found.grid != grid:
        raise Refusal("it decodes with other parameters than the codes were made with")
    low.values[output] = found


def _same(low: Lowering, node: ir.Node) -> None:
    source = node.inputs[0]
    if plain_constant(source) is None:
        low.values[node.outputs[0]] = low.placed(source, padded=True, shuffled=True)


def _cast(low: Lowering, node: ir.Node) -> None:
    source = node.inputs[0]
    if plain_constant(source) is not None:
        return
    found = low.placed(source, padded=True, shuffled=True)
    to = ir.DataType(node.attributes["to"].as_int())
    if (found.grid is None) != (to in {ir.DataType.INT32, ir.DataType.INT64}):
        raise Refusal(f"it casts to {to.name.lower()}")
    low.values[node.outputs[0]] = found


RULES = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Identity": _same,
    "Dropout": _same,
    "Cast": _cast,
}
