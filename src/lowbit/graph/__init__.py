"""The ONNX graph: load it, clean it, rewrite it, save it.

May import from `formats`, `statistics` and `rounding`, and from `lowbit.exceptions`.
"""

from __future__ import annotations

from lowbit.graph.clean import CleanResult, clean, infer_shapes, operators, opset_of, raise_opset
from lowbit.graph.digest import digest
from lowbit.graph.loading import load_model
from lowbit.graph.saving import model_size, save_files, save_model, serialize

__all__ = [
    "CleanResult",
    "clean",
    "digest",
    "infer_shapes",
    "load_model",
    "model_size",
    "operators",
    "opset_of",
    "raise_opset",
    "save_files",
    "save_model",
    "serialize",
]
