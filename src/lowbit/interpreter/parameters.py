"""The module's tensors: under the initializers' names, and back to initializers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
import torch

from lowbit.exceptions import ModelError
from lowbit.graph import load_model
from lowbit.interpreter.dtypes import to_array

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

    from lowbit.interpreter.module import Interpreter

__all__ = ["Slot", "place", "place_constant", "running_statistics", "with_parameters"]

Slot = tuple[torch.nn.Module, str]
"""A module and the name under which it holds a tensor."""


def place(root: torch.nn.Module, name: str, tensor: torch.Tensor, *, learned: bool) -> Slot:
    """Store a tensor where PyTorch's own state dictionary has it under a name with dots: in a tree of modules.

    Args:
        root: The module whose state dictionary has the name.
        name: Any name.
        tensor: What to store.
        learned: As a parameter, with gradients, or as a buffer.
    """
    module = root
    *path, leaf = name.split(".")
    for part in path:
        # Set directly, here and below: PyTorch refuses names that its classes have attributes of.
        found = module._modules.get(part)
        if found is None:
            found = module._modules[part] = torch.nn.Module()
        module = found
    if learned:
        module._parameters[leaf] = torch.nn.Parameter(tensor)
    else:
        module._buffers[leaf] = tensor
    return module, leaf


def place_constant(root: torch.nn.Module, key: str, tensor: torch.Tensor) -> Slot:
    """Store a tensor that moves with the module and is not in its state dictionary."""
    root._buffers[key] = tensor
    root._non_persistent_buffers_set.add(key)
    return root, key


def running_statistics(model: ir.Model) -> set[str]:
    """Return the initializers that batch normalizations hold their running means and variances in."""
    return {
        str(value.name)
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        if node.op_type == "BatchNormalization"
        for value in node.inputs[3:5]
        if value is not None
    }


def with_parameters(model: str | Path | onnx.ModelProto | ir.Model, module: Interpreter) -> ir.Model:
    """Return a model with the values that a module has learned.

    Args:
        model: What the module was made from; never changed.
        module: The module.

    Returns:
        The same graph. Every initializer keeps its element type; values of a module in another precision are converted.

    Raises:
        ModelError: The module was made from another model.
    """
    written = load_model(model)
    state = module.state_dict()
    targets = module.initializers(written)
    if set(targets) != set(state):
        odd = sorted(set(targets) ^ set(state))
        raise ModelError(f"the module was made from another model: {odd[0]!r} is in one of them only")
    for key, value in targets.items():
        assert value.const_value is not None
        element = value.const_value.dtype
        value.const_value = ir.tensor(to_array(state[key], element), dtype=element, name=value.name)
    return written
