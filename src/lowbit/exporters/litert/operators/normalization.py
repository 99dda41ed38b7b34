"""LayerNormalization: LiteRT has kernels for its steps alone, so one that is left whole is refused with a reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from lowbit.exporters.litert.refusal import Refusal
from lowbit.graph.layer_normalization import why_not_in_steps

if TYPE_CHECKING:
    import onnx_ir as ir

    from lowbit.exporters.litert.lowering import Lowering

__all__ = ["RULES"]


def _refuse(_low: Lowering, node: ir.Node) -> NoReturn:
    why = why_not_in_steps(node) or "--target litert writes it in steps that have one"
    raise Refusal(f"LiteRT has no integer kernel for {node.op_type}: {why}")


RULES = {"LayerNormalization": _refuse}
