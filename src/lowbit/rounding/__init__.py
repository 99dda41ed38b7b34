"""Rounding: pure maths from weights to codes, one algorithm a file.

It knows arrays, formats and nothing of graphs; it imports `lowbit.formats` and `lowbit.exceptions` only.
"""

from __future__ import annotations

from lowbit.rounding.code_grid import on_grid, output_errors
from lowbit.rounding.compensate import CodeLimits, compensated, legal_pairs
from lowbit.rounding.gptq import gptq
from lowbit.rounding.kernel_layout import conv_to_kn, kn_to_conv
from lowbit.rounding.nearest import round_nearest
from lowbit.rounding.saturation import SaturationReport, hazards, make_safe, pair_matrix
from lowbit.rounding.weight_range import RANGE_METHODS, RangeMethod, weight_range

__all__ = [
    "RANGE_METHODS",
    "CodeLimits",
    "RangeMethod",
    "SaturationReport",
    "compensated",
    "conv_to_kn",
    "gptq",
    "hazards",
    "kn_to_conv",
    "legal_pairs",
    "make_safe",
    "on_grid",
    "output_errors",
    "pair_matrix",
    "round_nearest",
    "weight_range",
]
