"""Model-local functions, written out where they are called."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import onnx_ir.passes.common as ir_passes

__all__ = ["inline_functions"]


def inline_functions(model: ir.Model) -> Counter[str]:
    """Replace each call of a model-local function by the function's nodes."""
    count = len(model.functions)
    if not count:
        return Counter()
    # NOTE: the main graph may use a function's operator set without importing it until the body stands in it.
    for function in model.functions.values():
        for domain, version in function.opset_imports.items():
            model.opset_imports.setdefault(domain, version)
    ir_passes.InlinePass()(model)
    model.functions.clear()
    return Counter({"{n} model-local function{s} inlined": count})
