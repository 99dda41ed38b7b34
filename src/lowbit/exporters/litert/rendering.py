"""A quantized ONNX graph as a LiteRT model, or every reason why it cannot be one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowbit.exceptions import ModelError
from lowbit.exporters.litert.constants import plain_constant
from lowbit.exporters.litert.flatbuffer import serialize_program
from lowbit.exporters.litert.lowering import Lowering
from lowbit.exporters.litert.operators import RULES
from lowbit.exporters.litert.placement import NHWC, identity
from lowbit.exporters.litert.refusal import Refusal
from lowbit.exporters.litert.tidying import tidy
from lowbit.exporters.shapes import with_fixed_shapes

if TYPE_CHECKING:
    import onnx_ir as ir

    from lowbit.exporters.litert.tensors import Program, Tensor

__all__ = ["program_of", "render_litert"]

_NAMED = 5
_CHANNELS_LAST = (NHWC, (0, 2, 1))


def render_litert(model: ir.Model, *, layout: str = "nhwc", interface: str = "int8") -> tuple[Program, bytes]:
    """Return a quantized model as a LiteRT program, and as the bytes of its flatbuffer.

    Args:
        model: A graph with Q/DQ pairs, from lowbit or another tool; left unchanged. An open first dimension of an
            input is the batch and becomes 1.
        layout: `nhwc` or `keep`: see `ExportOptions`.
        interface: `int8` or `float`.

    Raises:
        ModelError: An operator has no integer kernel, or the graph is float there; all of them are named.
        EngineError: The package with the schema is not installed.
    """
    program = program_of(model, layout=layout, interface=interface)
    return program, serialize_program(program)


def program_of(model: ir.Model, *, layout: str = "nhwc", interface: str = "int8") -> Program:
    """Return a quantized model as a LiteRT program; arguments and errors as of `render_litert`."""
    graph = with_fixed_shapes(model, "LiteRT").graph
    low = Lowering()
    refusals: list[tuple[str, str, str]] = []
    unknown: set[ir.Value] = set()
    for node in graph:
        if node in low.done or _constant(node):
            continue
        if any(value in unknown for value in node.inputs if value is not None):
            unknown.update(node.outputs)
            continue
        low.node = node
        try:
            rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if rule is None:
                raise Refusal(f"LiteRT has no integer kernel for {node.op_type}")  # noqa: TRY301 - one way to refuse
            rule(low, node)
        except Refusal as refusal:
            refusals.append((node.name or node.op_type, node.op_type, str(refusal)))
            unknown.update(node.outputs)
            unknown.update(output for done in low.done for output in done.outputs if output not in low.values)
    low.node = None
    if not refusals:
        try:
            _outputs(low, graph, layout)
            _inputs(low, graph, layout)
        except Refusal as refusal:
            refusals.append((graph.name or "the graph", "", str(refusal)))
    if refusals:
        raise _refused(refusals)
    if interface == "float":
        _float_edges(low)
    tidy(low.program)
    return low.program


def _constant(node: ir.Node) -> bool:
    """Whether a node only prepares a constant, which whoever reads it decodes."""
    return node.op_type in {"QuantizeLinear", "DequantizeLinear", "Cast", "Constant"} and all(
        plain_constant(value) is not None for value in node.inputs if value is not None
    )


def _outputs(low: Lowering, graph: ir.Graph, layout: str) -> None:
    taken: set[int] = set()
    for value in graph.outputs:
        placed = low.placed(value)
        if placed.grid is not None and placed.grid.dtype != "int8":
            raise Refusal(f"the output {value.name} has codes of {placed.grid.dtype}, and no int8 behind them")
        order = placed.order
        if order not in _CHANNELS_LAST or layout == "keep":
            order = identity(len(placed.order))
        tensor = low.ordered(placed, order)
        if id(tensor) in taken or tensor.data is not None or any(tensor is given for _, given in low.program.inputs):
            tensor = low.emit("RESHAPE", [tensor, low.integers("shape", tensor.shape)], tensor.shape, grid=placed.grid)
        taken.add(id(tensor))
        name = value.name or "output"
        tensor.name = low.name(name)
        low.program.outputs.append((name, tensor))
        low.program.orders[name] = order


def _inputs(low: Lowering, graph: ir.Graph, layout: str) -> None:
    """Put the inputs in the model's order, and give them the model's layout where that was asked for."""
    found = dict(low.program.inputs)
    ordered: list[tuple[str, Tensor]] = []
    for value in graph.inputs:
        tensor = found.get(value.name or "")
        if tensor is None:
            raise Refusal(f"no operator reads the input {value.name}")
        order = low.program.orders[value.name or ""]
        placed = low.values[value]
        plain = identity(len(order))
        if layout == "keep" and order != plain:
            position = len(low.program.operators)
            given = low.tensor(f"{value.name}_given", [tensor.shape[order.index(axis)] for axis in plain], placed.grid)
            permutation = low.integers("permutation", order)
            low.add("TRANSPOSE", [given, permutation], [tensor])
            low.program.operators.insert(0, low.program.operators.pop(position))
            given.name, tensor.name = tensor.name, given.name
            low.program.orders[value.name or ""] = plain
            tensor = given
        ordered.append((value.name or "", tensor))
    low.program.inputs[:] = ordered


def _float_edges(low: Lowering) -> None:
    """Let the model take and give float32: a QUANTIZE behind every input, a DEQUANTIZE before every output."""
    for edges, kind in ((low.program.inputs, "QUANTIZE"), (low.program.outputs, "DEQUANTIZE")):
        for index, (name, tensor) in enumerate(edges):
            if tensor.dtype != "int8":
                continue
            outer = low.tensor(f"{name}_float", tensor.shape, None)
            outer.dtype = "float32"
            outer.name, tensor.name = tensor.name, f"{name}_codes"
            pair = (outer, tensor) if kind == "QUANTIZE" else (tensor, outer)
            low.add(kind, [pair[0]], [pair[1]])
            if kind == "QUANTIZE":
                low.program.operators.insert(0, low.program.operators.pop())
            edges[index] = (name, outer)


def _refused(refusals: list[tuple[str, str, str]]) -> ModelError:
    """Return one error that names the operators and their reasons."""
    shown = [f"{name} ({op_type}): {reason}" if op_type else f"{name}: {reason}" for name, op_type, reason in refusals]
    more = f"; and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
    what = "1 operator" if len(shown) == 1 else f"{len(shown)} operators"
    return ModelError(
        f"{what} of the model cannot become LiteRT kernels",
        cause="; ".join(shown[:_NAMED]) + more,
        remedy="Quantize the float model with --target litert, which gives codes to every tensor that LiteRT can hold",
    )
