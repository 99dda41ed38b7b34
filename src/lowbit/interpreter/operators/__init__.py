"""The operators, one family a file."""

from __future__ import annotations

import importlib

__all__ = ["FAMILIES", "load"]

FAMILIES = (
    "activations",
    "comparisons",
    "control_flow",
    "convolution",
    "elementwise",
    "generation",
    "indexing",
    "microsoft",
    "normalization",
    "pooling",
    "products",
    "quantization",
    "recurrent",
    "reductions",
    "resizing",
    "shapes",
)


def load() -> None:
    """Import every family, which registers its operators."""
    for family in FAMILIES:
        importlib.import_module(f"lowbit.interpreter.operators.{family}")
