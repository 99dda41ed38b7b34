"""Causes of bad layers that lie in the codes of a weight; a weight of one scale is `lowbit.methods.causes`' matter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.plan.diagnosis import Cause

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.rounding import SaturationReport

__all__ = ["coarse_weights", "saturation"]

# SQNR of weights below which they, and not activations, limit a layer: 8 bits give 35 to 45 dB, 4 bits 15 to 22.
_COARSE_DB = 27.0
# Repairs that add less than this to the rounding error do not explain a bad layer.
_REPAIRED = 1.1


def saturation(node: str, tensor: str, report: SaturationReport) -> Cause | None:
    """Tell whether the repair of pairs of products that would saturate costs the weights their accuracy.

    Args:
        node: The operator.
        tensor: Its weight.
        report: What `make_safe` found and did.
    """
    if not report.hazards:
        return None
    growth = report.error_after / report.error_before if report.error_before > 0 else math.inf
    if growth < _REPAIRED:
        return None
    return Cause(
        kind="saturation",
        node=node,
        tensor=tensor,
        evidence={"hazards": report.hazards, "pairs": report.pairs, "repaired": report.repaired, "growth": growth},
        text=(
            f"{report.hazards} of {report.pairs} pairs of products could saturate; making "
            f"{report.repaired} of {report.channels} channels safe multiplied the rounding error by {growth:.2f}"
        ),
        remedy="round by outputs (rounding: gptq or learned), or run where products are exact (VNNI)",
    )


def coarse_weights(node: str, tensor: str, weight: NDArray[Any], decoded: NDArray[Any], *, fmt: str) -> Cause | None:
    """Tell whether the weights themselves are rounded coarsely.

    Args:
        node: The operator.
        tensor: Its weight.
        weight: The float weight, any shape.
        decoded: What its codes stand for, of the same shape.
        fmt: Their format as text.
    """
    signal = float(np.sum(np.square(weight, dtype=np.float64)))
    noise = float(np.sum(np.square(weight.astype(np.float64) - decoded)))
    if not signal or not noise:
        return None
    found = 10.0 * math.log10(signal / noise)
    if found >= _COARSE_DB:
        return None
    return Cause(
        kind="coarse weights",
        node=node,
        tensor=tensor,
        evidence={"sqnr_db": found},
        text=f"{fmt} leaves {tensor} {found:.1f} dB",
        remedy="weight_range: mse, round by outputs (rounding: gptq or learned), finer scales or more bits",
    )
