"""Operators that move codes about: joining, cutting, padding, looking up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.exporters.litert.constants import plain_constant
from lowbit.exporters.litert.lowering import static_shape
from lowbit.exporters.litert.operators.attributes import attribute, constant_input
from lowbit.exporters.litert.operators.fusing import written
from lowbit.exporters.litert.operators.quantization import take_input
from lowbit.exporters.litert.placement import NHWC, Placed, identity, without_axes
from lowbit.exporters.litert.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.exporters.litert.lowering import Lowering
    from lowbit.exporters.litert.tensors import Grid, Tensor

__all__ = ["RULES"]


def _concat(low: Lowering, node: ir.Node) -> None:
    output = node.outputs[0]
    found = [None if plain_constant(value) is not None else low.placed(value) for value in node.inputs]
    parts = [part for part in found if part is not None]
    if not parts:
        raise Refusal("it only joins constants")
    grids = {part.grid for part in parts}
    coded = any(use.node.op_type == "QuantizeLinear" for use in output.uses())
    grid = low.grid_behind(output) if coded else parts[0].grid
    if not coded and len(grids) > 1:
        raise Refusal(f"its inputs have different scales and its output {output.name} no QuantizeLinear behind it")
    order = max(parts, key=lambda part: part.tensor.bytes).order
    axis = attribute(node, "axis", 0) % len(order)
    tensors: list[Tensor | None] = []
    for value, part in zip(node.inputs, found, strict=True):
        if part is not None:
            on_grid = part if grid is None else low.on_grid(part, grid)
            tensors.append(low.ordered(on_grid, order))
        else:
            assert grid is not None
            real = plain_constant(value)
            assert real is not None
            tensors.append(low.coded_constant("constant", real.transpose(order), grid))
    shape = [static_shape(output)[position] for position in order]
    options = {"axis": order.index(axis), "fusedActivationFunction": 0}
    y = low.emit("CONCATENATION", tensors, shape, grid=grid, options=options, name=written(output))
    low.put(output, y, order, grid)


def _slice(low: Lowering, node: ir.Node) -> None:
    placed = low.placed(node.inputs[0])
    rank = len(placed.order)
    starts, ends = constant_input(node, 1).reshape(-1), constant_input(node, 2).reshape(-1)
    axes, steps = constant_input(node, 3), constant_input(node, 4)
    axes = range(len(starts)) if axes is None else axes.reshape(-1)
    steps = np.ones(len(starts), dtype=np.int64) if steps is None else steps.reshape(-1)
    ranges = [range(size) for size in placed.shape]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:
            raise Refusal("LiteRT's integer slice does not go backwards")
        ranges[int(axis) % rank] = ranges[int(axis) % rank][int(start) : int(end) : int(step)]
    _cut(low, placed, ranges, node.outputs[0])


def _cut(low: Lowering, placed: Placed, ranges: list[range], output: ir.Value) -> None:
    """Write STRIDED_SLICE for a range of every ONNX axis."""
    every = [ranges[axis] for axis in placed.order]
    stored, sizes = _few_axes(every, placed.tensor.shape)
    shape = [len(positions) for positions in stored]
    y = low.emit(
        "STRIDED_SLICE",
        [
            low.reshape(placed.tensor, sizes, placed.grid),
            low.integers("begin", [positions.start for positions in stored]),
            low.integers("end", [positions.stop for positions in stored]),
            low.integers("strides", [positions.step for positions in stored]),
        ],
        shape,
        grid=placed.grid,
        name=written(output),
    )
    low.put(output, low.reshape(y, [len(positions) for positions in every], placed.grid), placed.order, placed.grid)


def _few_axes(ranges: list[range], shape: tuple[int, ...]) -> tuple[list[range], list[int]]:
    """Return a cut and the shape that it cuts with neighbouring axes joined that it leaves whole, if there are many."""
    if len(shape) <= len(NHWC):
        return ranges, list(shape)
    joined: list[range] = []
    sizes: list[int] = []
    before = False
    for positions, size in zip(ranges, shape, strict=True):
        whole = positions == range(size)
        if whole and before:
            sizes[-1] *= size
            joined[-1] = range(sizes[-1])
        else:
            joined.append(positions)
            sizes.append(size)
        before = whole
    return joined, sizes


def _split(low: Lowering, node: ir.Node) -> None:
    placed = low.placed(node.inputs[0])
    axis = attribute(node, "axis", 0) % len(placed.order)
    start = 0
    for output in node.outputs:
        size = static_shape(output)[axis]
        if output.uses() or output.is_graph_output():
            ranges = [range(whole) for whole in placed.shape]
            ranges[axis] = range(start, start + size)
            _cut(low, placed, ranges, output)
        start += size


def _pad(low: Lowering, node: ir.Node) -> None:
    if attribute(node, "mode", "constant") != "constant":
        raise Refusal(f"LiteRT pads with zeros here, not by {attribute(node, 'mode', '')}")
    placed = low.placed(node.inputs[0], padded=True)
    if placed.pads is not None:
        placed = low.placed(node.inputs[0])
    rank = len(placed.order)
    flat = constant_input(node, 1).reshape(-1)
    axes = constant_input(node, 3)
    chosen = range(rank) if axes is None else [int(axis) % rank for axis in axes.reshape(-1)]
    value = constant_input(node, 2)
    pads = [(0, 0)] * rank
    for position, axis in enumerate(chosen):
        pads[axis] = (int(flat[position]), int(flat[position + len(flat) // 2]))
    if any(side < 0 for pair in pads for side in pair):
        raise Refusal("it cuts with negative pads")
    output = node.outputs[0]
    if value is None or not np.any(value):
        # Written where it is needed: a convolution often does it itself.
        low.values[output] = Placed(tensor=placed.tensor, order=placed.order, grid=placed.grid, pads=tuple(pads))
        return
    assert placed.grid is not None
    code = int(placed.grid.encode(np.asarray(value, dtype=np.float64)).reshape(-1)[0])
    low.values[output] = low.pad(placed, pads, code)


def _gather(low: Lowering, node: ir.Node) -> None:
    table = plain_constant(node.inputs[0])
    if table is not None:
        _embedding(low, node, table)
        return
    placed = low.placed(node.inputs[0])
    axis = attribute(node, "axis", 0) % len(placed.order)
    indices = constant_input(node, 1)
    wrapped = np.where(indices < 0, indices + placed.shape[axis], indices)
    output = node.outputs[0]
    if wrapped.ndim == 0:
        ranges = [range(size) for size in placed.shape]
        ranges[axis] = range(int(wrapped), int(wrapped) + 1)
        _cut(low, placed, ranges, output)
        one = low.values[output]
        shape = [size for position, size in enumerate(one.tensor.shape) if one.order[position] != axis]
        tensor = low.reshape(one.tensor, shape, placed.grid)
        low.put(output, tensor, without_axes(one.order, [axis]), placed.grid)
        return
    if wrapped.ndim != 1:
        raise Refusal("its indices are no list")
    position = placed.order.index(axis)
    shape = list(placed.tensor.shape)
    shape[position] = len(wrapped)
    inputs = [placed.tensor, low.integers("indices", wrapped)]
    y = low.emit("GATHER", inputs, shape, grid=placed.grid, options={"axis": position}, name=written(output))
    low.put(output, y, placed.order, placed.grid)


def _embedding(low: Lowering, node: ir.Node, table: NDArray[np.float64]) -> None:
    """Look rows of a constant table up: coded on the grid of the result, as the Q behind it would."""
    if attribute(node, "axis", 0) != 0:
        raise Refusal("it looks up in a constant along another axis than the first")
    indices = node.inputs[1]
    assert indices is not None
    if indices not in low.values and indices.is_graph_input():
        take_input(low, indices, None)
    found = low.placed(indices)
    output = node.outputs[0]
    grid = low.grid_behind(output)
    rows = low.coded_constant(node.inputs[0].name or "table", table, grid)  # type: ignore[union-attr]
    index = low.ordered(found, identity(len(found.order)))
    shape = (*index.shape, *table.shape[1:])
    y = low.emit("GATHER", [rows, index], shape, grid=grid, options={"axis": 0}, name=written(output))
    low.put(output, y, identity(len(shape)), grid)


def _expand(low: Lowering, node: ir.Node) -> None:
    placed = low.placed(node.inputs[0])
    target = static_shape(node.outputs[0])
    rank = len(target)
    plain: Grid | None = placed.grid
    order = placed.order
    tensor = placed.tensor
    if len(order) < rank:
        tensor = low.ordered(placed, identity(len(order)))
        tensor = low.reshape(tensor, (1,) * (rank - len(order)) + tensor.shape, plain)
        order = identity(rank)
    shape = [target[axis] for axis in order]
    if tuple(shape) != tensor.shape:
        inputs = [tensor, low.integers("shape", shape)]
        tensor = low.emit("BROADCAST_TO", inputs, shape, grid=plain, name=written(node.outputs[0]))
    low.put(node.outputs[0], tensor, order, plain)


def _blocks(low: Lowering, node: ir.Node) -> None:
    kind = {"DepthToSpace": "DEPTH_TO_SPACE", "SpaceToDepth": "SPACE_TO_DEPTH"}[node.op_type]
    if attribute(node, "mode", "DCR") != "DCR":
        raise Refusal("LiteRT has DepthToSpace in the mode DCR only")
    placed = low.placed(node.inputs[0])
    if len(placed.order) != len(NHWC):
        raise Refusal("its input is no picture")
    shape = static_shape(node.outputs[0])
    y = low.emit(
        kind,
        [low.ordered(placed, NHWC)],
        [shape[axis] for axis in NHWC],
        grid=placed.grid,
        options={"blockSize": attribute(node, "blocksize", 1)},
        name=written(node.outputs[0]),
    )
    low.put(node.outputs[0], y, NHWC, placed.grid)


RULES: dict[str, Callable[[Lowering, ir.Node], None]] = {
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Pad": _pad,
    "Gather": _gather,
    "Expand": _expand,
    "DepthToSpace": _blocks,
    "SpaceToDepth": _blocks,
}
