"""QONNX: quantization of any width as `Quant` nodes on float tensors, which FINN and hls4ml read."""

from __future__ import annotations

from lowbit.exporters.qonnx.rendering import render_qonnx

__all__ = ["render_qonnx"]
