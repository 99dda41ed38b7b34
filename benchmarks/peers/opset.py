"""Raising the opset of old models, which the peers leave to their users: per-channel scales need opset 13."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["OLDEST", "raise_opset"]

OLDEST = 13
RAISED = 17


def raise_opset(model: Path, output: Path) -> tuple[Path, str]:
    """Convert a model below opset 13 to opset 17 with ONNX's converter; leave others as they are.

    Returns:
        The model to quantize, and what happened in words, empty where nothing did.
    """
    import onnx
    from onnx import version_converter

    loaded = onnx.load(model)
    opset = next(entry.version for entry in loaded.opset_import if entry.domain in ("", "ai.onnx"))
    if opset >= OLDEST:
        return model, ""
    try:
        onnx.save(version_converter.convert_version(loaded, RAISED), output)
    except Exception as error:  # noqa: BLE001 - whatever the converter raises, the quantizer is still tried
        return model, f"opset {opset} could not be raised ({type(error).__name__})"
    return output, f"opset raised from {opset}"
