"""Models of other frameworks as ONNX graphs: PyTorch in this process, TensorFlow and Keras in one of their own.

`import_model` is the door. May import from `graph`, `data` and `runtime`, and from `lowbit.exceptions`. PyTorch is
imported inside functions: a plain ONNX file never loads it.
"""

from __future__ import annotations

from lowbit.importing.opening import Imported, import_model, is_foreign

__all__ = ["Imported", "import_model", "is_foreign"]
