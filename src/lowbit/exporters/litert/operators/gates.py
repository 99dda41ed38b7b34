"""x · HardSigmoid(x), which LiteRT computes at once, as HARD_SWISH."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowbit.exporters.litert.operators.attributes import attribute

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["gated_input"]


def gated_input(node: ir.Node) -> ir.Value | None:
    """Return x of x · HardSigmoid(x) with the slope and offset of HardSwish, `None` for any other product."""
    for value, gate in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        source = _undecoded(gate)
        producer = source.producer() if source is not None else None
        if (
            producer is None
            or producer.op_type != "HardSigmoid"
            or _undecoded(value) is not _undecoded(producer.inputs[0])
        ):
            continue
        alpha, beta = attribute(producer, "alpha", 0.2), attribute(producer, "beta", 0.5)
        if abs(alpha - 1 / 6) < 1e-4 and beta == 0.5:
            return value
    return None


def _undecoded(value: ir.Value | None) -> ir.Value | None:
    """Return the tensor before its Q/DQ pair."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
        return value
    return _undecoded(node.inputs[0])
