"""Passes that make a float model ready for quantization without changing what it computes.

Each file holds one pass: a function that changes a graph in place and counts what it did. `cleaning.py` is the list.
May import from nothing but `lowbit.exceptions`.
"""

from __future__ import annotations

from lowbit.graph.clean.cleaning import CleanResult, clean
from lowbit.graph.clean.operators import operators
from lowbit.graph.clean.opset import opset_of, raise_opset
from lowbit.graph.clean.shapes import infer_shapes

__all__ = ["CleanResult", "clean", "infer_shapes", "operators", "opset_of", "raise_opset"]
