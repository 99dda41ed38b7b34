"""Probing a machine without a model: what its 8-bit products do, and what usual operators cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lowbit.graph import clean, infer_shapes, serialize
from lowbit.methods.calibrate import observed_shapes
from lowbit.methods.probe import probe_model
from lowbit.plan.cost_keys import site_key
from lowbit.plan.probed import OperatorCost
from lowbit.plan.sites import find_sites
from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lowbit.plan.cost_table import CostTable
    from lowbit.targets import Target

__all__ = ["MachineProbe", "probe_machine", "products_saturate"]

_CONVOLUTIONS = (  # label, channels in, out, kernel, size, groups, stride
    ("first layer 3×3, 3→32, 224²", 3, 32, 3, 224, 1, 2),
    ("Conv 3×3, 64→64, 56²", 64, 64, 3, 56, 1, 1),
    ("Conv 1×1, 24→144, 56²", 24, 144, 1, 56, 1, 1),
    ("Conv 1×1, 256→256, 28²", 256, 256, 1, 28, 1, 1),
    ("depthwise 3×3, 96, 56²", 96, 96, 3, 56, 96, 1),
    ("depthwise 5×5, 480, 14²", 480, 480, 5, 14, 480, 1),
)
_MATRICES = (("MatMul 1 row, 1024×1024", 1, 1024, 1024), ("MatMul 128 rows, 384×1536", 128, 384, 1536))


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineProbe:
    """What a machine does.

    Attributes:
        target: The target that was measured.
        saturates: Whether products of uint8 activations and int8 weights saturate in pairs: found by running one.
        operators: Costs of usual operators.
        table: The same as costs for plans.
    """

    target: Target
    saturates: bool
    operators: tuple[OperatorCost, ...]
    table: CostTable


def probe_machine(
    target: Target, *, threads: int = 1, seconds: float = 3.0, advance: Callable[[], None] = lambda: None
) -> MachineProbe:
    """Measure this machine with the engine of `target`.

    Args:
        target: A target that this machine is.
        threads: Threads of the engine.
        seconds: How long to measure.
        advance: Called after every round.

    Raises:
        EngineError: The engine is not installed, or refuses an operator.
    """
    model, labels = _usual_operators()
    sites = find_sites(model, target)
    generator = np.random.default_rng(0)
    feed = {
        value.name: generator.random(value.shape.numpy(), dtype=np.float32)
        for value in model.graph.inputs
        if value.name is not None and value.shape is not None
    }
    shapes = observed_shapes(model, feed)
    probe = probe_model(model, sites, target, shapes, feed, threads=threads, seconds=seconds, advance=advance)
    rows = []
    for site in sites:
        entry = probe.table.operators.get(site_key(site, shapes) or "", {})
        label = labels.get(site.output.name or "")
        if label is not None:
            rows.append(
                OperatorCost(
                    label=label,
                    float_ns=entry.get("float"),
                    static_ns=entry.get("static"),
                    dynamic_ns=entry.get("dynamic"),
                )
            )
    return MachineProbe(
        target=target,
        saturates=products_saturate(),
        operators=tuple(rows),
        table=probe.table,
    )


def products_saturate() -> bool:
    """Whether the engine, on this processor, adds pairs of uint8 × int8 products in a lane that saturates.

    A convolution of the largest codes is run: where the engine is exact the output code is 126, else 64.

    Raises:
        EngineError: The engine is not installed or refuses the model.
    """
    channels = 16
    weight = np.full((8, channels, 1, 1), 127, dtype=np.int8)

    def constant(name: str, array: np.ndarray) -> ir.Value:
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        constants.append(value)
        return value

    constants: list[ir.Value] = []
    source = ir.Value(name="x", shape=ir.Shape([1, channels, 4, 4]), type=ir.TensorType(ir.DataType.FLOAT))
    result = ir.Value(name="y", shape=ir.Shape([1, 8, 4, 4]), type=ir.TensorType(ir.DataType.FLOAT))
    one, zero = constant("one", np.array(1.0, np.float32)), constant("zero", np.array(0, np.uint8))
    # 16 · 255 · 127 = 518,160 in codes of 4,096 is 126; eight saturated pairs of 32,767 are 64.
    coarse = constant("coarse", np.array(4096.0, np.float32))
    codes, weights = constant("w", weight), constant("none", np.array(0, np.int8))
    nodes: list[ir.Node] = []

    def node(operator: str, *inputs: ir.Value, output: ir.Value | None = None) -> ir.Value:
        nodes.append(
            ir.node(operator, list(inputs), outputs=[output] if output is not None else None, name=f"n{len(nodes)}")
        )
        nodes[-1].outputs[0].name = nodes[-1].outputs[0].name or f"t{len(nodes)}"
        return nodes[-1].outputs[0]

    decoded = node("DequantizeLinear", node("QuantizeLinear", source, one, zero), one, zero)
    product = node("Conv", decoded, node("DequantizeLinear", codes, one, weights))
    node("DequantizeLinear", node("QuantizeLinear", product, coarse, zero), coarse, zero, output=result)
    graph = ir.Graph([source], [result], nodes=nodes, initializers=constants, opset_imports={"": 17}, name="saturation")
    session = open_session(serialize(ir.Model(graph, ir_version=8)), threads=1)
    (output,) = session.run({"x": np.full((1, channels, 4, 4), 255.0, dtype=np.float32)})
    exact, saturated = 126 * 4096.0, 64 * 4096.0
    found = float(output.flat[0])
    return abs(found - saturated) < abs(found - exact)


def _usual_operators() -> tuple[ir.Model, dict[str, str]]:
    """Return a model with the usual operators side by side, and the label of each by its output."""
    generator = np.random.default_rng(0)
    inputs: list[ir.Value] = []
    outputs: list[ir.Value] = []
    constants: list[ir.Value] = []
    nodes: list[ir.Node] = []
    labels: dict[str, str] = {}

    def add(
        label: str, operator: str, shape: tuple[int, ...], weight: tuple[int, ...], **attributes: int | Sequence[int]
    ) -> None:
        index = len(nodes)
        source = ir.Value(name=f"x{index}", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        array = generator.standard_normal(weight, dtype=np.float32)
        constant = ir.Value(name=f"w{index}", const_value=ir.tensor(array, name=f"w{index}"))
        node = ir.node(operator, [source, constant], attributes or None, name=f"n{index}")
        node.outputs[0].name = f"y{index}"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        inputs.append(source)
        outputs.append(node.outputs[0])
        nodes.append(node)
        constants.append(constant)
        labels[f"y{index}"] = label

    for label, channels, out, kernel, size, groups, stride in _CONVOLUTIONS:
        pad = kernel // 2
        add(
            label,
            "Conv",
            (1, channels, size, size),
            (out, channels // groups, kernel, kernel),
            group=groups,
            pads=[pad] * 4,
            strides=[stride] * 2,
        )
    for label, rows, depth, columns in _MATRICES:
        add(label, "MatMul", (rows, depth), (depth, columns))
    graph = ir.Graph(inputs, outputs, nodes=nodes, initializers=constants, opset_imports={"": 17}, name="usual")
    return infer_shapes(clean(ir.Model(graph, ir_version=8)).model), labels
