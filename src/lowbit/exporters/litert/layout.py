"""In which order of axes an input should arrive, so that the first kernels can read it as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowbit.exporters.litert.placement import NHWC, identity

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["wanted_order"]

# Read pictures channels last.
_SPATIAL = frozenset(
    {
        *("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
        *("Resize", "DepthToSpace", "SpaceToDepth", "BatchNormalization"),
    }
)
# Do not care.
_INDIFFERENT = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "Identity", "Dropout", "Relu", "Clip", "LeakyRelu", "PRelu"),
        *("Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Gelu", "Add", "Sub", "Mul", "Max", "Min", "Pad"),
        *("Slice", "Split", "Concat"),
    }
)
_CHANNELS_LAST = {3: (0, 2, 1), 4: NHWC}


def wanted_order(value: ir.Value) -> tuple[int, ...]:
    """Return which axis of a tensor each stored axis should be: as the first kernels with an opinion read it."""
    rank = len(value.shape) if value.shape is not None else 0
    queue: list[tuple[ir.Value, tuple[int, ...]]] = [(value, identity(rank))]
    seen = set()
    while queue:
        current, axes = queue.pop(0)
        if current in seen:
            continue
        seen.add(current)
        for use in current.uses():
            node = use.node
            if node.op_type in _SPATIAL and use.idx == 0:
                last = _CHANNELS_LAST.get(rank)
                return identity(rank) if last is None else tuple(axes[axis] for axis in last)
            if node.op_type == "Transpose":
                found = node.attributes.get("perm")
                permutation = list(found.as_ints()) if found is not None else list(reversed(range(rank)))
                queue.append((node.outputs[0], tuple(axes[axis] for axis in permutation)))
            elif node.op_type in _INDIFFERENT:
                queue += [
                    (output, axes) for output in node.outputs if output.shape is not None and len(output.shape) == rank
                ]
    return identity(rank)
