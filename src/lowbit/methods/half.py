"""What may compute in a 16-bit float, and what is guarded because it would overflow or lose its digits there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx_ir as ir

from lowbit.exceptions import RecipeError
from lowbit.graph.constants import constant_array
from lowbit.graph.half import GUARDED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lowbit.formats import Element, Format
    from lowbit.methods.calibrate import Calibration
    from lowbit.plan.sites import Site

__all__ = ["check_half", "guarded", "guarded_by_range"]

# Data that calibration has not seen may be this many times larger before a 16-bit float overflows.
_HEADROOM = 4.0


def check_half(activations: Format, weights: Format) -> None:
    """Check that a recipe asks for a 16-bit float that something can compute in.

    Raises:
        RecipeError: Weights and activations differ, or nothing here computes in that type.
    """
    name = activations.element.name
    if activations.element.bits != 16 or weights.element.name != name:
        raise RecipeError(
            f"activations are {name} and weights {weights.element.name}",
            remedy="give the same 16-bit float for both, e.g. --weights float16 --activations float16",
        )
    if name == "bfloat16":
        raise RecipeError(
            "activations are bfloat16",
            cause="ONNX Runtime, which checks every artifact, has no bfloat16 kernels on processors",
            remedy="store weights in it: --weights bfloat16 --activations none",
        )


def guarded(site: Site, element: Element) -> str | None:
    """Return why a site has to stay in float32 whatever data it sees, `None` if it need not.

    Args:
        site: An operator, with the functions that are fused to it.
        element: The 16-bit float.
    """
    if site.op_type in GUARDED or any(node.op_type in GUARDED for node in site.fused):
        return f"{site.op_type} overflows or loses its digits in {element.name}"
    if site.output.dtype not in (ir.DataType.FLOAT, None):
        return "it computes indices or shapes, not float32 numbers"
    for array in _constants(site):
        largest = float(np.max(np.abs(array), initial=0))
        if largest > element.maximum:
            return f"its constant reaches {largest:.3g}, beyond where {element.name} ends"
        if 0 < largest < _smallest(element):
            return f"its constant of {largest:.3g} loses its digits in {element.name}"
    return None


def guarded_by_range(site: Site, element: Element, calibration: Calibration) -> str | None:
    """Return why a site has to stay in float32 for what calibration saw of its output, `None` if it need not."""
    histogram = calibration.histograms[site.output.name or ""]
    largest = max(abs(histogram.low), abs(histogram.high))
    if largest > element.maximum / _HEADROOM:
        return f"its output reaches {largest:.3g}, too close to where {element.name} ends"
    if 0 < largest < _smallest(element):
        return f"its output stays below {largest:.3g}, where {element.name} loses its digits"
    return None


def _smallest(element: Element) -> float:
    """Return the smallest number that has all of its digits."""
    return float(ml_dtypes.finfo(element.dtype).tiny)


def _constants(site: Site) -> Iterator[NDArray[np.float32]]:
    """Yield the float32 constants that a site reads."""
    for node in (site.node, site.bias_node, *site.fused):
        for value in node.inputs if node is not None else ():
            array = constant_array(value)
            if array is not None and array.dtype == np.float32:
                yield array
