"""LiteRT (TensorFlow Lite): from a Q/DQ graph to a flatbuffer that computes in integers from end to end."""

from __future__ import annotations

from lowbit.exporters.litert.rendering import render_litert

__all__ = ["render_litert"]
