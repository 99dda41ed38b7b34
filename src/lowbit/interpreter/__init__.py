"""Any ONNX graph as a differentiable PyTorch module."""

from __future__ import annotations

from lowbit.interpreter.module import Interpreter, to_torch
from lowbit.interpreter.registry import supported_operators

__all__ = ["Interpreter", "supported_operators", "to_torch"]
