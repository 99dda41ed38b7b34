"""Rounding: pure maths from weights to codes, one algorithm a file.

It knows arrays, formats and nothing of graphs; it imports `lowbit.formats` and `lowbit.exceptions` only.
"""

from __future__ import annotations

from lowbit.rounding.code_grid import on_grid, output_errors
from lowbit.rounding.codebook import STARTS, Start, codebook_error, learn_codebook
from lowbit.rounding.compensate import CodeLimits, compensated, legal_pairs
from lowbit.rounding.gptq import gptq
from lowbit.rounding.kernel_layout import conv_to_kn, kn_to_conv
from lowbit.rounding.low_rank import low_rank
from lowbit.rounding.nearest import round_nearest
from lowbit.rounding.saturation import SaturationReport, hazards, make_safe, pair_matrix
from lowbit.rounding.scaled_codebook import fitted_parameters, learned_parameters, own_levels
from lowbit.rounding.sparse_outliers import outliers
from lowbit.rounding.weight_range import RANGE_METHODS, RangeMethod, weight_range

__all__ = [
    "RANGE_METHODS",
    "STARTS",
    "CodeLimits",
    "RangeMethod",
    "SaturationReport",
    "Start",
    "codebook_error",
    "compensated",
    "conv_to_kn",
    "fitted_parameters",
    "gptq",
    "hazards",
    "kn_to_conv",
    "learn_codebook",
    "learned_parameters",
    "legal_pairs",
    "low_rank",
    "make_safe",
    "on_grid",
    "outliers",
    "output_errors",
    "own_levels",
    "pair_matrix",
    "round_nearest",
    "weight_range",
]
