"""What ONNX Runtime asks its users to do before its quantizers: opset 13 or later, and its preprocessing step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

from benchmarks.peers.opset import raise_opset

__all__ = ["prepare"]


def prepare(model: Path, folder: Path) -> tuple[Path, str]:
    """Raise the opset, then run `quant_pre_process`: with symbolic shape inference, else without, else not at all.

    Args:
        model: The float ONNX file.
        folder: Where to write what is prepared.

    Returns:
        The model to quantize, and what was unusual in words, empty where nothing was.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model, opset = raise_opset(model, folder / "raised.onnx")
    output, problem = folder / "prepared.onnx", ""
    for skip_symbolic in (False, True):
        try:
            quant_pre_process(str(model), str(output), skip_symbolic_shape=skip_symbolic)
        except Exception as error:  # noqa: BLE001 - whatever the tool raises, its quantizer is still tried
            problem = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        else:
            shapes = "preprocessed without symbolic shapes" if skip_symbolic else ""
            return output, ", ".join(filter(None, (opset, shapes)))
    return model, ", ".join(filter(None, (opset, f"preprocessing failed ({problem})")))
