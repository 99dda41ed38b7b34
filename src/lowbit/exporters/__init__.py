"""Files for other runtimes, from a quantized ONNX graph; one format a file or folder, found by suffix or by name.

May import from `targets` and below. Writers return bytes: nothing is written before the whole file is known to be good.
"""

from __future__ import annotations

from lowbit.exporters.registry import FORMATS, ExportFormat, ExportOptions, find_format

__all__ = ["FORMATS", "ExportFormat", "ExportOptions", "find_format"]
