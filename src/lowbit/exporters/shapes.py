"""Graphs in which every size is known, as files for devices need them."""

from __future__ import annotations

import onnx_ir as ir

from lowbit.exceptions import ModelError
from lowbit.graph import clean

__all__ = ["with_fixed_shapes"]


def with_fixed_shapes(model: ir.Model, kind: str) -> ir.Model:
    """Return a cleaned copy in which every dimension is known.

    Args:
        model: Left unchanged. An open first dimension of an input is the batch and becomes 1.
        kind: What the copy becomes, for the error: `LiteRT`.

    Raises:
        ModelError: An input leaves another dimension open.
    """
    copy = model.clone()
    for value in copy.graph.inputs:
        dims = list(value.shape) if value.shape is not None else []
        if dims and not isinstance(dims[0], int):
            dims[0] = 1
        if not dims or not all(isinstance(dim, int) and dim > 0 for dim in dims):
            shown = ", ".join(str(getattr(dim, "value", dim) or "?") for dim in dims)
            raise ModelError(
                f"Input {value.name!r} has the shape [{shown}]",
                cause=f"A {kind} file has fixed shapes; only the batch, the first dimension, is taken as 1",
                remedy="Give a sample of the sizes that it will be fed, with --data",
            )
        value.shape = ir.Shape(dims)
    for value in copy.graph.outputs:
        value.shape = None
    return clean(copy).model
