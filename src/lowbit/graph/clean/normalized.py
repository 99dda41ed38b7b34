"""What a folded BatchNormalization says of the outputs of its layer: beta is their mean, |gamma| their deviation.

Kept in memory beside the node, never in a file, and believed as long as weight and bias are those it was noted for.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowbit.graph.clean.values import constant

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

__all__ = ["Normalized", "keep_normalized", "normalized_of", "note_normalized"]

_KEY = "lowbit.normalized"


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalized:
    """Statistics of a layer's output channels over the training data, as its BatchNormalization enforced them.

    Attributes:
        mean: `[C]` float64.
        deviation: `[C]` float64, standard deviation, not negative.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    def mapped(self, scale: NDArray[np.float64] | None, shift: NDArray[np.float64] | float) -> Normalized:
        """Return the statistics of `scale * y + shift`; a scale of `None` is 1."""
        factor = np.ones_like(self.mean) if scale is None else scale
        return Normalized(mean=self.mean * factor + shift, deviation=self.deviation * np.abs(factor))


def note_normalized(node: ir.Node, found: Normalized) -> None:
    """Note what is known of the outputs of a Conv, ConvTranspose or Gemm with the weight and bias that it has now."""
    node.meta[_KEY] = (found, _checksum(node))


def normalized_of(node: ir.Node) -> Normalized | None:
    """Return what was noted; `None` if nothing was, or if weight or bias have changed since."""
    noted = node.meta.get(_KEY)
    if noted is None or noted[1] != _checksum(node):
        return None
    found: Normalized = noted[0]
    return found


def keep_normalized(source: ir.Model, converted: ir.Model) -> None:
    """Carry what was noted over to the same model in another opset, by the names of outputs."""
    noted = {node.outputs[0].name: node.meta[_KEY] for node in source.graph if _KEY in node.meta}
    for node in converted.graph:
        if node.outputs and node.outputs[0].name in noted:
            node.meta[_KEY] = noted[node.outputs[0].name]


def _checksum(node: ir.Node) -> int:
    found = 0
    for value in node.inputs[1:3]:
        array = constant(value)
        found = zlib.crc32(b"" if array is None else np.ascontiguousarray(array).tobytes(), found)
    return found
