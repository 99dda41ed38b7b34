"""Exporting PyTorch modules to ONNX files in the cache."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["export_onnx"]


def export_onnx(
    module: Any,
    arguments: tuple[Any, ...],
    path: Path,
    *,
    inputs: list[str],
    outputs: list[str],
    dynamic: dict[str, Any] | tuple[Any, ...],
) -> Path:
    """Export a module with torch's own exporter, opset 18, to one file; the file appears when it is complete.

    Args:
        module: An evaluated `torch.nn.Module`.
        arguments: Example tensors.
        path: Where to write.
        inputs: Names of the graph's inputs.
        outputs: Names of the graph's outputs.
        dynamic: Dynamic axes by name or place of the module's argument, as `torch.export` takes them.

    Returns:
        `path`.
    """
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with warnings.catch_warnings():
        # The exporter warns about its own deprecated internals.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            arguments,
            str(partial),
            dynamo=True,
            opset_version=18,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=dynamic,
            external_data=False,
            verbose=False,
        )
    partial.replace(path)
    return path
