"""From a Q/DQ graph to a LiteRT program: the state that the operators' rules share, and what they ask of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exporters.litert.constants import grid_of
from lowbit.exporters.litert.placement import Placed
from lowbit.exporters.litert.refusal import Refusal
from lowbit.exporters.litert.tensors import Grid, Operator, Program, Tensor
from lowbit.graph.constants import constant_array

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

__all__ = ["Lowering", "clip_bounds", "joined", "only_use", "static_shape"]


# Have int16 kernels in LiteRT and in LiteRT for Microcontrollers.
_IN_16_BITS = frozenset({"ADD", "SUB", "MUL", "MEAN", "RSQRT", "RESHAPE"})


class Lowering:
    """Builds a program; the rules in `operators/` call its methods in the order of the graph.

    Attributes:
        program: What was built.
        values: Where each ONNX tensor is that has codes (or plain integers).
        done: Nodes that another node's rule has taken with it.
        node: The node whose rule runs.
    """

    def __init__(self) -> None:
        self.program = Program()
        self.values: dict[ir.Value, Placed] = {}
        self.done: set[ir.Node] = set()
        self.node: ir.Node | None = None
        self._names: set[str] = set()
        self._reordered: dict[tuple[Tensor, tuple[int, ...]], Tensor] = {}
        self._constants: dict[tuple[object, ...], Tensor] = {}

    def name(self, wish: str) -> str:
        """Return `wish`, or `wish_1` … where that is taken."""
        name, number = wish, 0
        while name in self._names:
            number += 1
            name = f"{wish}_{number}"
        self._names.add(name)
        return name

    def emit(
        self,
        kind: str,
        inputs: Sequence[Tensor | None],
        shape: Sequence[int],
        *,
        grid: Grid | None,
        options: dict[str, Any] | None = None,
        name: str | None = None,
    ) -> Tensor:
        """Add a kernel call with one output, in codes of `grid`, or int32 without one, and return that output."""
        output = self.tensor(name or kind.lower(), shape, grid)
        self.add(kind, inputs, [output], options)
        return output

    def tensor(self, name: str, shape: Sequence[int], grid: Grid | None) -> Tensor:
        """Return a new tensor that is no constant."""
        if grid is None:
            return Tensor(self.name(name), tuple(int(size) for size in shape), "int32")
        scale = np.asarray([grid.scale], dtype=np.float32)
        return Tensor(self.name(name), tuple(int(size) for size in shape), grid.dtype, scale, grid.zero_point)

    def add(
        self,
        kind: str,
        inputs: Sequence[Tensor | None],
        outputs: list[Tensor],
        options: dict[str, Any] | None = None,
    ) -> None:
        """Add a kernel call.

        Raises:
            Refusal: LiteRT's kernel does not compute with codes of these widths.
        """
        _check_widths(kind, [*inputs, *outputs])
        source = (self.node.name or self.node.op_type) if self.node is not None else ""
        self.program.operators.append(Operator(kind, list(inputs), outputs, options or {}, source))

    def constant(
        self,
        name: str,
        array: NDArray[Any],
        *,
        scale: NDArray[np.float32] | None = None,
        zero_point: int = 0,
        axis: int = 0,
    ) -> Tensor:
        """Return a constant; equal ones are stored once."""
        key = (
            array.dtype.str,
            array.shape,
            array.tobytes(),
            None if scale is None else scale.tobytes(),
            zero_point,
            axis,
        )
        if key not in self._constants:
            dtype = str(array.dtype)
            found = Tensor(self.name(name), array.shape, dtype, scale, zero_point, axis, np.ascontiguousarray(array))
            self._constants[key] = found
        return self._constants[key]

    def integers(self, name: str, values: Sequence[int] | NDArray[Any]) -> Tensor:
        """Return a constant of int32."""
        return self.constant(name, np.asarray(values, dtype=np.int32))

    def coded_constant(self, name: str, real: NDArray[Any], grid: Grid) -> Tensor:
        """Return a constant on a grid."""
        scale = np.asarray([grid.scale], dtype=np.float32)
        return self.constant(name, grid.encode(real), scale=scale, zero_point=grid.zero_point)

    def placed(self, value: ir.Value | None, *, padded: bool = False, shuffled: bool = False) -> Placed:
        """Return where a tensor is, with its padding done and its elements in order unless the caller takes them so.

        Raises:
            Refusal: It is float.
        """
        found = self.values.get(value) if value is not None else None
        if found is None:
            raise Refusal(f"its input {value.name if value is not None else '?'} is float: no QuantizeLinear before it")
        if found.pads is not None and not padded:
            found = self.pad(found, found.pads, None)
        if found.shuffle is not None and not shuffled:
            raise Refusal("its input is in another order than ONNX's")
        return found

    def pad(self, placed: Placed, pads: Sequence[tuple[int, int]], lowest: int | None) -> Placed:
        """Put zeros around a tensor, or the code `lowest`; `pads` go by ONNX's axes."""
        table = np.asarray([pads[axis] for axis in placed.order], dtype=np.int32)
        shape = [size + low + high for size, (low, high) in zip(placed.tensor.shape, table, strict=True)]
        inputs: list[Tensor | None] = [placed.tensor, self.constant("paddings", table)]
        kind = "PAD"
        if lowest is not None:
            assert placed.grid is not None
            kind = "PADV2"
            scale = np.asarray([placed.grid.scale], dtype=np.float32)
            value = np.asarray([lowest], dtype=np.int8)
            inputs.append(self.constant("padding", value, scale=scale, zero_point=placed.grid.zero_point))
        tensor = self.emit(kind, inputs, shape, grid=placed.grid)
        return Placed(tensor=tensor, order=placed.order, grid=placed.grid)

    def ordered(self, placed: Placed, order: Sequence[int]) -> Tensor:
        """Return a tensor stored in a certain order of its axes."""
        wanted = tuple(order)
        if placed.order == wanted:
            return placed.tensor
        key = (placed.tensor, tuple(placed.order.index(axis) for axis in wanted))
        if key not in self._reordered:
            shape = tuple(placed.stored[axis] for axis in wanted)
            long = [axis for axis in placed.order if placed.stored[axis] != 1]
            if long == [axis for axis in wanted if placed.stored[axis] != 1]:
                self._reordered[key] = self.reshape(placed.tensor, shape, placed.grid)
            else:
                self._reordered[key] = self._transposed(placed.tensor, key[1], placed.grid)
        return self._reordered[key]

    def _transposed(self, tensor: Tensor, permutation: Sequence[int], grid: Grid | None) -> Tensor:
        """Write a TRANSPOSE, of as few axes as it really exchanges: what stays together counts as one axis."""
        groups = joined(permutation, tensor.shape)
        sources = sorted(groups)
        sizes = [int(np.prod([tensor.shape[axis] for axis in group])) for group in sources]
        flat = self.reshape(tensor, sizes, grid)
        order = [sources.index(group) for group in groups]
        inputs = [flat, self.integers("permutation", order)]
        moved = self.emit("TRANSPOSE", inputs, [sizes[axis] for axis in order], grid=grid, name="transposed")
        return self.reshape(moved, [tensor.shape[axis] for axis in permutation], grid)

    def reshape(self, tensor: Tensor, shape: Sequence[int], grid: Grid | None) -> Tensor:
        """Return the same elements in another shape."""
        if tuple(shape) == tensor.shape:
            return tensor
        target = self.integers("shape", list(shape))
        return self.emit("RESHAPE", [tensor, target], shape, grid=grid, options={"newShape": list(shape)})

    def on_grid(self, placed: Placed, grid: Grid) -> Placed:
        """Return a tensor on another grid: requantized if it is not there already."""
        if placed.grid == grid or placed.grid is None:
            return placed
        tensor = self.emit("QUANTIZE", [placed.tensor], placed.tensor.shape, grid=grid, name="requantized")
        return Placed(tensor=tensor, order=placed.order, grid=grid, pads=placed.pads, shuffle=placed.shuffle)

    def put(self, value: ir.Value, tensor: Tensor, order: Sequence[int], grid: Grid | None) -> None:
        """Say where an ONNX tensor is."""
        self.values[value] = Placed(tensor=tensor, order=tuple(order), grid=grid)

    def grid_behind(self, value: ir.Value) -> Grid:
        """Return the grid of the `QuantizeLinear` behind a tensor.

        Raises:
            Refusal: There is none.
        """
        quantize = next((use.node for use in value.uses() if use.node.op_type == "QuantizeLinear"), None)
        if quantize is None:
            raise Refusal(f"its output {value.name} is float: no QuantizeLinear behind it")
        return grid_of(quantize)

    def result_grid(self, value: ir.Value) -> tuple[ir.Value, Grid, tuple[float, float]]:
        """Return what an operator writes with the activation functions behind it.

        Args:
            value: The operator's own output.

        Returns:
            The tensor behind the functions, its grid, and what they let through.

        Raises:
            Refusal: No codes are made of it.
        """
        low, high = -np.inf, np.inf
        while not any(use.node.op_type == "QuantizeLinear" for use in value.uses()):
            consumer = only_use(value)
            bounds = clip_bounds(consumer) if consumer is not None else None
            if consumer is None or bounds is None:
                break
            low, high = max(low, bounds[0]), min(high, bounds[1])
            self.done.add(consumer)
            value = consumer.outputs[0]
        return value, self.grid_behind(value), (low, high)

    def clamp(self, tensor: Tensor, grid: Grid, bounds: tuple[float, float]) -> Tensor:
        """Return a tensor cut off at bounds that its grid reaches beyond."""
        lowest, highest = grid.limits
        half = grid.scale / 2
        for kind, bound, cuts in (
            ("MAXIMUM", bounds[0], bounds[0] > lowest + half),
            ("MINIMUM", bounds[1], bounds[1] < highest - half),
        ):
            if cuts:
                limit = self.coded_constant("limit", np.full((1,) * max(len(tensor.shape), 1), bound), grid)
                tensor = self.emit(kind, [tensor, limit], tensor.shape, grid=grid)
        return tensor


def _check_widths(kind: str, tensors: Sequence[Tensor | None]) -> None:
    widths = {tensor.dtype for tensor in tensors if tensor is not None and tensor.scale is not None}
    if "int16" not in widths or kind == "QUANTIZE":
        return
    if kind not in _IN_16_BITS:
        raise Refusal(f"its codes are int16, for which no {kind} is written here")
    if len(widths) > 1:
        raise Refusal(f"its codes are {' and '.join(sorted(widths))}, LiteRT's {kind} takes one width")


def only_use(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads a tensor, `None` if there are more or none, or if the model gives it out."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def clip_bounds(node: ir.Node) -> tuple[float, float] | None:
    """Return what a `Relu` or `Clip` lets through, `None` for other nodes and computed bounds."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip":
        return None
    bounds = []
    for index, default in ((1, float("-inf")), (2, float("inf"))):
        given = node.inputs[index] if index < len(node.inputs) else None
        array = constant_array(given)
        if given is not None and array is None:
            return None
        bounds.append(default if array is None else float(array))
    return bounds[0], bounds[1]


def static_shape(value: ir.Value) -> tuple[int, ...]:
    """Return a tensor's shape.

    Raises:
        Refusal: It is not known before the model runs.
    """
    if value.shape is None or not all(isinstance(size, int) for size in value.shape):
        raise Refusal(f"the shape of {value.name} is only known when the model runs")
    return tuple(int(size) for size in value.shape)  # type: ignore[arg-type]


def joined(permutation: Sequence[int], shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the axes that a transposition moves together, in their new order; axes of size 1 go with any other."""
    groups: list[tuple[int, ...]] = []
    for axis in permutation:
        if shape[axis] == 1:
            continue
        last = groups[-1][-1] if groups else None
        if last is not None and last < axis and all(shape[between] == 1 for between in range(last + 1, axis)):
            groups[-1] = (*groups[-1], axis)
        else:
            groups.append((axis,))
    return groups
