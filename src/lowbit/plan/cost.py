"""Predicted time of one operator on a target: measured, or from its shapes and the target's constants.

All times are in nanoseconds, on one thread. The formulas count multiply-accumulates, output elements, gathered kernel
positions and launches; the constants are in the target's file (`lowbit.targets.CostModel`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lowbit.plan.cost_keys import conversion_key, site_key

if TYPE_CHECKING:
    import onnx_ir as ir

    from lowbit.plan.cost_table import CostTable
    from lowbit.plan.plan import Execution
    from lowbit.plan.sites import Site
    from lowbit.targets import CostModel

# Output channels that one vector of a float kernel holds on the processors described so far.
_BLOCK = 8

__all__ = [
    "Costs",
    "FormulaCosts",
    "MeasuredCosts",
    "Shapes",
    "conversion_cost",
    "dynamic_cost",
    "float_cost",
    "static_cost",
    "where_is",
]

Shapes = Mapping[str, tuple[int, ...]]
"""Concrete shape of every tensor, by name, for one sample."""


class Costs(Protocol):
    """What the planner asks about time, in nanoseconds."""

    def site(self, site: Site, execution: Execution) -> float | None:
        """Return the time of a site run in one way, without conversions at its edges; `None` if unknown."""

    def conversion(self, value: ir.Value, *, quantize: bool) -> float:
        """Return the time of converting a tensor to codes (`quantize`) or back."""


@dataclass(frozen=True, slots=True)
class FormulaCosts:
    """Costs from formulas over shapes, with a target's constants.

    Attributes:
        constants: The target's constants.
        shapes: Shape of every tensor.
    """

    constants: CostModel
    shapes: Shapes

    def site(self, site: Site, execution: Execution) -> float | None:
        """Return the predicted time of a site; weights that are only stored small cost what float costs."""
        if execution == "static":
            return static_cost(site, self.shapes, self.constants)
        if execution == "dynamic":
            return dynamic_cost(site, self.shapes, self.constants)
        return float_cost(site, self.shapes, self.constants)

    def conversion(self, value: ir.Value, *, quantize: bool) -> float:
        """Return the predicted time of converting a tensor."""
        return conversion_cost(self.shapes.get(value.name or ""), self.constants, quantize=quantize)


@dataclass(frozen=True, slots=True)
class MeasuredCosts:
    """Costs that were measured; what was not is filled in by formulas, in proportion to what was.

    Attributes:
        table: The measured costs.
        shapes: Shape of every tensor.
        fallback: Formulas, if the target has constants.
        places: Times of single operators in the place that they have in this model, by path and execution; they hold
            before the table, which knows operators of one kind only by their mean.
        tensors: Times of single conversions likewise, by tensor and `quantize` or `dequantize`.
    """

    table: CostTable
    shapes: Shapes
    fallback: FormulaCosts | None = None
    places: Mapping[tuple[str, str], float] = field(default_factory=dict)
    tensors: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def measured(self, site: Site, execution: Execution) -> float | None:
        """Return the measured time of a site, `None` where the table does not have it."""
        kind = "float" if execution in {"weight-only", "half"} else execution
        if (site.path, kind) in self.places:
            return self.places[site.path, kind]
        key = site_key(site, self.shapes)
        entry = self.table.operators.get(key or "", {})
        if execution in {"weight-only", "half"}:
            return entry.get(execution, entry.get("float"))
        return entry.get(execution)

    def site(self, site: Site, execution: Execution) -> float | None:
        """Return the time of a site."""
        known = self.measured(site, execution)
        if known is not None or self.fallback is None:
            return known
        guess = self.fallback.site(site, execution)
        plain, plain_guess = self.measured(site, "float"), self.fallback.site(site, "float")
        if guess is not None and plain is not None and plain_guess:
            return guess * plain / plain_guess
        return guess

    def conversion(self, value: ir.Value, *, quantize: bool) -> float:
        """Return the time of converting a tensor."""
        kind = "quantize" if quantize else "dequantize"
        if (value.name or "", kind) in self.tensors:
            return self.tensors[value.name or "", kind]
        shape = self.shapes.get(value.name or "")
        if shape is not None:
            entry = self.table.conversions.get(conversion_key(shape, where=where_is(value)), {})
            known = entry.get(kind)
            if known is not None:
                return known
        return self.fallback.conversion(value, quantize=quantize) if self.fallback is not None else 0.0


def where_is(value: ir.Value) -> str:
    """Return whether a tensor is an `input` or `output` of the graph, or lies `inside`."""
    if value.is_graph_input():
        return "input"
    return "output" if value.is_graph_output() and not value.uses() else "inside"


def float_cost(site: Site, shapes: Shapes, costs: CostModel) -> float | None:
    """Return the predicted time of `site` in float32, `None` if a shape is unknown."""
    output = shapes.get(site.node.outputs[0].name or "")
    if output is None:
        return None
    elements = math.prod(output)
    if site.op_type == "Conv" and site.weight_index is not None:
        macs, depthwise, kernel, _ = _convolution(site, elements)
        if depthwise:
            width = max(output[-1], 1)
            border = 1.0 + costs.float_depthwise_border / width
            return costs.node + elements * (costs.float_depthwise_out + costs.float_depthwise_mac * kernel) * border
        return costs.node + elements * costs.float_conv_out + _float_convolution(site, macs, elements, kernel, costs)
    if site.op_type in {"MatMul", "Gemm"}:
        rows, depth, columns = _matrix(site, shapes, output)
        return costs.node + max(
            rows * depth * columns * costs.float_matmul_mac, depth * columns * costs.float_matvec_weight
        )
    per_element = costs.float_elementwise.get(site.op_type)
    if per_element is None:
        return None
    return costs.node + _elements(site, shapes, elements) * per_element


def static_cost(site: Site, shapes: Shapes, costs: CostModel) -> float | None:
    """Return the predicted time of `site` in its integer kernel, without conversions at its edges."""
    output = shapes.get(site.node.outputs[0].name or "")
    if output is None:
        return None
    elements = math.prod(output)
    if site.op_type == "Conv" and site.weight_index is not None:
        macs, depthwise, kernel, channels = _convolution(site, elements)
        if depthwise:
            return costs.node + elements * (costs.int_depthwise_out + costs.int_depthwise_mac * kernel)
        # A 1×1 kernel reads its input in place; any other one gathers it tap by tap.
        taps = 0 if kernel == 1 else elements // max(channels, 1) * kernel * site.attribute("group", 1)
        return costs.node + macs * costs.int_conv_mac + elements * costs.int_conv_out + taps * costs.int_conv_tap
    if site.op_type in {"MatMul", "Gemm"}:
        rows, depth, columns = _matrix(site, shapes, output)
        work = max(rows * depth * columns * costs.int_matmul_mac, depth * columns * costs.int_matvec_weight)
        return costs.node + work + elements * costs.int_matmul_out
    per_element = costs.int_elementwise.get(site.op_type)
    if per_element is None:
        return costs.node
    return costs.node + _elements(site, shapes, elements) * per_element


def dynamic_cost(site: Site, shapes: Shapes, costs: CostModel) -> float | None:
    """Return the predicted time of a matrix product whose activations are quantized at run time."""
    static = static_cost(site, shapes, costs)
    read = shapes.get(site.node.inputs[0].name or "") if site.node.inputs[0] is not None else None
    if static is None or read is None:
        return None
    return static + math.prod(read) * costs.dynamic_quantize


def conversion_cost(shape: tuple[int, ...] | None, costs: CostModel, *, quantize: bool) -> float:
    """Return the predicted time of one QuantizeLinear or DequantizeLinear over a tensor of this shape.

    Four-dimensional tensors also change their memory layout there: integer kernels want channels last.
    """
    if shape is None:
        return costs.node
    elements = math.prod(shape)
    per_element = costs.quantize if quantize else costs.dequantize
    moved = len(shape) == 4 and shape[1] > 1 and math.prod(shape[2:]) > 1
    return costs.node + elements * (per_element + (costs.layout if moved else 0.0))


def _convolution(site: Site, elements: int) -> tuple[int, bool, int, int]:
    """Return multiply-accumulates, whether it is depthwise, kernel positions and output channels."""
    weight = site.weight
    assert weight is not None
    shape = site.weight_array().shape
    kernel = int(np.prod(shape[2:], dtype=np.int64))
    group = site.attribute("group", 1)
    # With several outputs a channel the engine runs a grouped product instead.
    depthwise = group > 1 and shape[1] == 1 and shape[0] == group
    return elements * shape[1] * kernel, depthwise, kernel, shape[0]


def _float_convolution(site: Site, macs: int, elements: int, kernel: int, costs: CostModel) -> float:
    """Return the time of the multiply-accumulates of a dense float convolution."""
    if kernel == 1:
        return macs * costs.float_pointwise_mac
    if site.weight_array().shape[1] * site.attribute("group", 1) < _BLOCK:
        return macs * costs.float_entry_mac
    return macs * costs.float_conv_mac + elements / _BLOCK * kernel * costs.float_conv_tap


def _matrix(site: Site, shapes: Shapes, output: tuple[int, ...]) -> tuple[int, int, int]:
    """Return rows, depth and columns of a matrix product; batches count as rows."""
    columns = output[-1] if output else 1
    rows = math.prod(output) // max(columns, 1)
    read = shapes.get(site.node.inputs[0].name or "") if site.node.inputs[0] is not None else None
    depth = read[-1] if read else (site.weight_array().shape[0] if site.weight_index is not None else 1)
    return rows, depth, columns


def _elements(site: Site, shapes: Shapes, elements: int) -> int:
    """Return how many elements an elementwise or pooling operator touches."""
    if site.op_type not in {"GlobalAveragePool", "AveragePool", "MaxPool"}:
        return elements
    read = shapes.get(site.node.inputs[0].name or "") if site.node.inputs[0] is not None else None
    if site.op_type == "GlobalAveragePool":
        return math.prod(read) if read else elements
    return elements * int(np.prod(site.attribute("kernel_shape", [1])))
