"""Any ONNX graph as a differentiable PyTorch module.

`operators/` holds the operators, one family a file; `supported_operators()` lists them. May import from `graph` and
`formats`, the sessions of `runtime`, and `lowbit.exceptions`.
"""

from __future__ import annotations

from lowbit.interpreter.integer_kernels import with_integer_kernels
from lowbit.interpreter.module import Interpreter, to_torch
from lowbit.interpreter.parameters import with_parameters
from lowbit.interpreter.program_file import exported_program, load_program, serialize_program
from lowbit.interpreter.registry import supported_operators

__all__ = [
    "Interpreter",
    "exported_program",
    "load_program",
    "serialize_program",
    "supported_operators",
    "to_torch",
    "with_integer_kernels",
    "with_parameters",
]
