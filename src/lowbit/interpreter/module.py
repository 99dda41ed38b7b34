"""The interpreter: an ONNX graph run node by node, with autograd through every differentiable operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from lowbit.exceptions import ModelError
from lowbit.graph import infer_shapes, load_model
from lowbit.interpreter.codes import as_declared
from lowbit.interpreter.compiling import Compiler, initial_value
from lowbit.interpreter.parameters import Slot, place, place_constant, running_statistics
from lowbit.interpreter.program import run

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

__all__ = ["Interpreter", "to_torch"]


class Interpreter(torch.nn.Module):  # type: ignore[misc]
    """An ONNX graph as a module: takes the graph's inputs in order, returns a tuple of its outputs in order.

    Floating-point initializers are parameters, all others buffers, under the initializers' own names in `state_dict`;
    the running statistics of batch normalizations are buffers too. An initializer inside a subgraph has its own name,
    or, if another tensor has that, its path. Constants move with the module but are not part of its state.

    In training (`train()`), Dropout drops and BatchNormalization uses the statistics of the batch and updates the
    running ones, as PyTorch's own layers do; in evaluation every operator computes what its attributes say.

    Attributes:
        input_names: Names of the graph's inputs that have no initializer.
        output_names: Names of its outputs.
        islands: Nodes that ONNX Runtime computes, without gradients, as `name (operator)`.
    """

    def __init__(self, model: ir.Model) -> None:
        super().__init__()
        graph = model.graph
        own = set(graph.initializers)
        self.input_names = tuple(str(value.name) for value in graph.inputs if value.name not in own)
        self.output_names = tuple(str(value.name) for value in graph.outputs)
        self._defaults = tuple(str(value.name) for value in graph.inputs if value.name in own)
        self._optional = frozenset(str(value.name) for value in graph.inputs if isinstance(value.type, ir.OptionalType))
        compiler = Compiler(functions=model.functions, taken={*own})
        self._block = compiler.compile(model)
        self.islands = tuple(compiler.islands)
        self._slots: dict[str, Slot] = {}
        statistics = running_statistics(model)
        for key, value in {**graph.initializers, **compiler.inner}.items():
            tensor = initial_value(value)
            learned = tensor.is_floating_point() and _is_wide(value) and value.name not in statistics
            self._slots[key] = place(self, key, tensor, learned=learned)
        for key, tensor in compiler.constants.items():
            self._slots[key] = place_constant(self, key, tensor)

    def forward(self, *inputs: Any, **named: Any) -> tuple[Any, ...]:
        """Compute the outputs.

        Args:
            *inputs: The graph's inputs, in order: tensors, lists of tensors, `None` for an empty optional.
            **named: Inputs by name, instead or besides; those that have an initializer as their default too.

        Returns:
            The graph's outputs in order; tensors, or lists of tensors for sequences.

        Raises:
            ModelError: An input is missing, given twice or unknown.
        """
        if len(inputs) > len(self.input_names):
            raise ModelError(
                f"the graph takes {len(self.input_names)} inputs, {len(inputs)} were given",
                remedy=f"give {', '.join(self.input_names) or 'none'}",
            )
        tensors = {
            key: module._parameters[leaf] if leaf in module._parameters else module._buffers[leaf]
            for key, (module, leaf) in self._slots.items()
        }
        values: dict[str, Any] = {**tensors, **dict(zip(self.input_names, inputs, strict=False))}
        given = set(self.input_names[: len(inputs)])
        for name, value in named.items():
            if name in given or (name not in self.input_names and name not in self._defaults):
                known = ", ".join((*self.input_names, *self._defaults))
                problem = f"the input {name!r} is given twice" if name in given else f"the graph has no input {name!r}"
                raise ModelError(problem, remedy=f"inputs are {known or 'none'}")
            values[name] = value
            given.add(name)
        for name in self.input_names:
            if name not in given:
                if name not in self._optional:
                    raise ModelError(f"the input {name!r} is missing", remedy=f"give {', '.join(self.input_names)}")
                values[name] = None
        outputs = run(self._block, values, tensors, training=self.training)
        return tuple(as_declared(value, kind) for value, (kind, _) in zip(outputs, self._block.results, strict=True))

    def extra_repr(self) -> str:
        """Return what `print` shows: the interface, and what has no gradient."""
        islands = f", without gradients: {', '.join(self.islands)}" if self.islands else ""
        return f"({', '.join(self.input_names)}) -> ({', '.join(self.output_names)}){islands}"

    def initializers(self, model: ir.Model) -> dict[str, ir.Value]:
        """Return the initializers of the model that this module was made from, by their keys in the state."""
        compiler = Compiler(functions=model.functions, taken={*model.graph.initializers})
        compiler.compile(model)
        return {**model.graph.initializers, **compiler.inner}


def to_torch(model: str | Path | onnx.ModelProto | ir.Model) -> Interpreter:
    """Return an ONNX model as a differentiable PyTorch module.

    Args:
        model: Path of an ONNX file, a `ModelProto` or an `onnx_ir.Model`; never changed.

    Returns:
        A module that takes the graph's inputs in order and returns a tuple of its outputs in order; on any device, with
        autograd through every differentiable operator. Quantize/dequantize pairs pass gradients straight through.
        In evaluation, as the file is meant; `train()` lets Dropout drop and BatchNormalization use its batch.
        Weights in `Constant` nodes are constants; `lowbit.graph.clean` makes initializers of them, which learn.

    Raises:
        ModelError: The model cannot be read, or has element types that PyTorch does not have.
    """
    module = Interpreter(infer_shapes(load_model(model)))
    module.eval()
    return module


def _is_wide(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.dtype.bitwidth >= 16
