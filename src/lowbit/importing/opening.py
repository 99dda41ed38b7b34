"""`import_model`: from whatever framework a model comes to an ONNX graph."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.exceptions import ModelError
from lowbit.graph import load_model
from lowbit.importing.imported import Imported

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Imported", "import_model", "is_foreign"]

_TORCH = {".pt", ".pth", ".pt2", ".bin", ".ckpt", ".safetensors"}
_TENSORFLOW = {".keras", ".h5", ".hdf5", ".tflite", ".pb"}


def is_foreign(source: object) -> bool:
    """Return whether a model is of another framework, so that `import_model` has to bring it in."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        return path.suffix.lower() in _TORCH | _TENSORFLOW or (path / "saved_model.pb").is_file()
    return _is_torch(source) or _is_keras(source)


def import_model(
    source: Any,
    example_inputs: Any = None,
    *,
    data: Any = None,
    architecture: Callable[[], Any] | Any = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    python: str | Path | None = None,
    opset: int = 17,
) -> Imported:
    """Bring a model of any framework in as an ONNX graph.

    Args:
        source: A `torch.nn.Module`, `torch.export.ExportedProgram` or TorchScript module; a `keras.Model`; or a path:
            `.pt2`, TorchScript, `.safetensors`, a saved state_dict, `.keras`, `.h5`, `.tflite` or a SavedModel folder.
            ONNX is taken as it is.
        example_inputs: For PyTorch: a tensor, a tuple of the arguments of `forward`, or a dict of its named arguments.
        data: Where example inputs are taken from if there are none: the first sample of calibration data.
        architecture: For files of PyTorch weights: the module, or its class.
        dynamic: For PyTorch: open axes by the input's name, e.g. `{"x": {0: "batch"}}`; by default found by themselves.
        python: For TensorFlow and Keras: the interpreter of the environment that has them. By default this one, or that
            in `LOWBIT_TENSORFLOW_PYTHON`.
        opset: For TensorFlow and Keras: the ONNX operator set to write.

    Raises:
        ModelError: The model cannot be read, or cannot be expressed in ONNX.
        EngineError: TensorFlow is not installed where it is looked for.
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        suffix = path.suffix.lower()
        if suffix in _TENSORFLOW or (path / "saved_model.pb").is_file():
            from lowbit.importing.tensorflow_models import from_tensorflow

            return from_tensorflow(path, python=python, opset=opset)
        if suffix in _TORCH:
            from lowbit.importing.torch_files import from_torch_file

            return from_torch_file(path, example_inputs, architecture, dynamic=dynamic)
        return Imported(model=load_model(path))
    if _is_torch(source):
        return _from_torch(source, example_inputs, data, dynamic)
    if _is_keras(source):
        from lowbit.importing.tensorflow_models import from_keras

        return from_keras(source, python=python, opset=opset)
    if isinstance(source, dict):
        raise ModelError(
            "a dict is no model",
            cause="weights alone do not say what is computed",
            remedy="Load them into their module",
        )
    return Imported(model=load_model(source))


def _from_torch(
    source: Any, example_inputs: Any, data: Any, dynamic: Mapping[str, Mapping[int, str]] | None
) -> Imported:
    import torch

    if isinstance(source, torch.export.ExportedProgram):
        from lowbit.importing.torch_module import from_program

        return from_program(source)
    if example_inputs is None:
        from lowbit.importing.examples import example_inputs_from

        example_inputs = example_inputs_from(data, source)
    if isinstance(source, torch.jit.ScriptModule):
        from lowbit.importing.torch_files import from_torchscript

        return from_torchscript(source, example_inputs)
    from lowbit.importing.torch_module import from_module

    return from_module(source, example_inputs, dynamic=dynamic)


def _is_torch(source: object) -> bool:
    """Whether this is PyTorch's; where PyTorch is not loaded, nothing can be."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    export = sys.modules.get("torch.export")
    program = getattr(export, "ExportedProgram", None)
    return isinstance(source, torch.nn.Module) or (program is not None and isinstance(source, program))


def _is_keras(source: object) -> bool:
    return any(base.__module__.partition(".")[0] in {"keras", "tf_keras"} for base in type(source).__mro__)
