"""The `Quant` and `BipolarQuant` nodes themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from lowbit.exporters.qonnx.quantizer import Quantizer
    from lowbit.graph.editor import Editor

__all__ = ["DOMAIN", "VERSION", "quant_node"]

DOMAIN = "qonnx.custom_op.general"
VERSION = 1


def quant_node(editor: Editor, value: ir.Value, quantizer: Quantizer, name: str) -> ir.Node:
    """Return a node that quantizes a float32 tensor, not yet in the graph; its constants are.

    Args:
        editor: Editor of the model.
        value: The tensor.
        quantizer: What the node does to it.
        name: Preferred name of its output.
    """
    graph = editor.model.graph
    editor.use_domain(DOMAIN, VERSION)
    inputs = [value, editor.constant(graph, f"{name}_scale", quantizer.scale)]
    attributes: dict[str, int | str] = {}
    if not quantizer.bipolar:
        inputs += [
            editor.constant(graph, f"{name}_zero_point", quantizer.zero_point),
            editor.constant(graph, f"{name}_bits", np.asarray(quantizer.bits, dtype=np.float32)),
        ]
        attributes = {"signed": int(quantizer.signed), "narrow": int(quantizer.narrow), "rounding_mode": "ROUND"}
    kind = "BipolarQuant" if quantizer.bipolar else "Quant"
    return editor.node(
        kind,
        inputs,
        name=f"{name}_{kind}",
        outputs=[name],
        attributes=attributes,
        domain=DOMAIN,
        dtypes=[ir.DataType.FLOAT],
        shape=value.shape,
    )
