"""The preprocessing step that ONNX Runtime asks its users to run before its quantizers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["prepare"]


def prepare(model: Path, output: Path) -> tuple[Path, str]:
    """Run `quant_pre_process`: with symbolic shape inference, else without, else not at all.

    Returns:
        The model to quantize, and what happened in words.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    problem = ""
    for skip_symbolic in (False, True):
        try:
            quant_pre_process(str(model), str(output), skip_symbolic_shape=skip_symbolic)
        except Exception as error:  # noqa: BLE001 - whatever the tool raises, its quantizer is still tried
            problem = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        else:
            return output, "without symbolic shapes" if skip_symbolic else "done"
    return model, f"failed ({problem})"
