"""The rules: for every ONNX operator, the LiteRT kernels that compute it in integers. One family a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowbit.exporters.litert.operators import (
    activation,
    convolution,
    elementwise,
    matrix,
    movement,
    normalization,
    pooling,
    quantization,
    reshaping,
    resizing,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from lowbit.exporters.litert.lowering import Lowering

__all__ = ["RULES"]

RULES: dict[str, Callable[[Lowering, ir.Node], None]] = {
    **quantization.RULES,
    **convolution.RULES,
    **matrix.RULES,
    **elementwise.RULES,
    **activation.RULES,
    **normalization.RULES,
    **pooling.RULES,
    **reshaping.RULES,
    **movement.RULES,
    **resizing.RULES,
}
