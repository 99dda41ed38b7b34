"""The interpreter: an ONNX graph run node by node, with autograd through every differentiable operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx_ir as ir
import torch

from lowbit.exceptions import ModelError
from lowbit.graph import load_model
from lowbit.interpreter.dtypes import from_array
from lowbit.interpreter.registry import Call, Function, find_operator

if TYPE_CHECKING:
    import onnx

__all__ = ["Interpreter", "to_torch"]

_DEFAULT = ("", "ai.onnx")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Step:
    """One node, ready to run."""

    function: Function
    call: Call
    name: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    graphs: Mapping[str, _Block]
    done_with: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Block:
    """A graph or subgraph: its nodes in order, and the names of what goes in and out."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, torch.Tensor]
    steps: tuple[_Step, ...]


class Interpreter(torch.nn.Module):
    """An ONNX graph as a module: takes the graph's inputs in order, returns a tuple of its outputs in order.

    Floating-point initializers are parameters, all others buffers, under the initializers' own names; `state_dict` has
    these names, dots included. Operators without a function are computed by ONNX Runtime, without gradients; `islands`
    names them.

    Attributes:
        input_names: Names of the graph's inputs.
        output_names: Names of its outputs.
        islands: Nodes that ONNX Runtime computes, as `name (operator)`.
    """

    def __init__(self, model: ir.Model) -> None:
        super().__init__()
        graph = model.graph
        self.islands: list[str] = []
        self._functions = model.functions
        self._versions = {("" if key in _DEFAULT else key): version for key, version in model.opset_imports.items()}
        initializers = set(graph.initializers)
        self.input_names = tuple(str(value.name) for value in graph.inputs if value.name not in initializers)
        self.output_names = tuple(str(value.name) for value in graph.outputs)
        for name, value in graph.initializers.items():
            self._keep(name, _tensor(value))
        self._block = self._compiled(graph, main=True)

    def _keep(self, name: str, tensor: torch.Tensor) -> None:
        # Set directly: PyTorch refuses names with dots, which state dictionaries are full of.
        if tensor.is_floating_point() and tensor.element_size() > 1:
            self._parameters[name] = torch.nn.Parameter(tensor)
        else:
            self._buffers[name] = tensor

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> tuple[Any, ...]:
        """Compute the outputs.

        Args:
            *inputs: The graph's inputs, in order.
            **named: Inputs by name, instead or besides.

        Raises:
            ModelError: An input is missing or unknown.
        """
        if len(inputs) > len(self.input_names):
            raise ModelError(
                f"the graph takes {len(self.input_names)} inputs, {len(inputs)} were given",
                remedy=f"give {', '.join(self.input_names) or 'none'}",
            )
        values: dict[str, Any] = {**self._parameters, **self._buffers}
        values.update(zip(self.input_names, inputs, strict=False))
        for name, tensor in named.items():
            if name not in self.input_names:
                raise ModelError(f"the graph has no input {name!r}", remedy=f"use {', '.join(self.input_names)}")
            values[name] = tensor
        for name in self.input_names:
            values.setdefault(name, None)
        return tuple(self._run(self._block, values))

    # ---- compiling

    def _compiled(self, graph: ir.Graph, *, main: bool = False, versions: Mapping[str, int] | None = None) -> _Block:
        versions = self._versions if versions is None else versions
        nodes = list(graph)
        outputs = tuple(str(value.name) for value in graph.outputs)
        last: dict[str, int] = {}
        for index, node in enumerate(nodes):
            for name in (*_read(node),):
                last[name] = index
        made = {str(value.name) for node in nodes for value in node.outputs if value.name}
        steps = []
        for index, node in enumerate(nodes):
            freed = tuple(
                name
                for name in dict.fromkeys(_read(node))
                if last[name] == index and name in made and name not in outputs
            )
            steps.append(self._step(node, freed, versions))
        constants = {} if main else {str(name): _tensor(value) for name, value in graph.initializers.items()}
        return _Block(
            inputs=tuple(str(value.name) for value in graph.inputs),
            outputs=outputs,
            constants=constants,
            steps=tuple(steps),
        )

    def _step(self, node: ir.Node, freed: tuple[str, ...], versions: Mapping[str, int]) -> _Step:
        domain = "" if node.domain in _DEFAULT else node.domain
        attributes: dict[str, Any] = {}
        graphs: dict[str, _Block] = {}
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                graphs[attribute.name] = self._compiled(attribute.as_graph(), versions=versions)
            else:
                attributes[attribute.name] = _plain(attribute)
        wanted = max((index + 1 for index, value in enumerate(node.outputs) if value.name), default=0)
        call = Call(
            op_type=node.op_type,
            domain=domain,
            version=versions.get(domain, 1),
            attributes=attributes,
            outputs=wanted,
            types=tuple(value.dtype if value is not None else None for value in node.inputs),
        )
        function = find_operator(domain, node.op_type) or self._function(node, call)
        return _Step(
            function=function,
            call=call,
            name=node.name or "",
            inputs=tuple(value.name if value is not None and value.name else None for value in node.inputs),
            outputs=tuple(str(value.name or "") for value in node.outputs),
            graphs=graphs,
            done_with=freed,
        )

    def _function(self, node: ir.Node, call: Call) -> Function:
        """Return what computes an operator without a mapping: its own function body, or ONNX Runtime."""
        own = next(
            (body for key, body in self._functions.items() if key[:2] == (node.domain, node.op_type)), None
        )
        if own is not None:
            return self._body(own, call)
        from lowbit.interpreter.bodies import standard_body
        from lowbit.interpreter.islands import island

        body = standard_body(node, call)
        if body is not None:
            return self._body(body, call)
        self.islands.append(f"{node.name} ({node.op_type})")
        return island(node, call)

    def _body(self, function: ir.Function, call: Call) -> Function:
        versions = {("" if key in _DEFAULT else key): version for key, version in function.opset_imports.items()}
        graph = function.graph
        _bind(graph, call, function)
        block = self._compiled(graph, versions=versions)

        def run(_call: Call, *inputs: Any) -> tuple[Any, ...]:
            values = dict(zip(block.inputs, inputs, strict=False))
            for name in block.inputs:
                values.setdefault(name, None)
            return tuple(self._run(block, values))

        return run

    # ---- running

    def _run(self, block: _Block, values: dict[str, Any]) -> list[Any]:
        values.update(block.constants)
        for step in block.steps:
            inputs = [values[name] if name is not None else None for name in step.inputs]
            call = step.call
            if step.graphs or self.training:
                graphs = {name: self._graph(inner, values) for name, inner in step.graphs.items()}
                call = replace(call, attributes={**call.attributes, **graphs}, training=self.training)
            result = step.function(call, *inputs)
            produced = result if isinstance(result, tuple) else (result,)
            for name, value in zip(step.outputs, produced, strict=False):
                if name:
                    values[name] = value
            for name in step.done_with:
                values.pop(name, None)
        return [values[name] for name in block.outputs]

    def _graph(self, block: _Block, outer: dict[str, Any]) -> Any:
        def run(*inputs: Any) -> list[Any]:
            return self._run(block, {**outer, **dict(zip(block.inputs, inputs, strict=False))})

        return run


def to_torch(model: str | Path | onnx.ModelProto | ir.Model) -> Interpreter:
    """Return an ONNX model as a differentiable PyTorch module.

    Args:
        model: Path of an ONNX file, a `ModelProto` or an `onnx_ir.Model`; never changed.

    Returns:
        A module that takes the graph's inputs in order and returns a tuple of its outputs in order; on any device, with
        autograd through every differentiable operator. Quantize/dequantize pairs pass gradients straight through.

    Raises:
        ModelError: The model cannot be read, or has element types that PyTorch does not have.
    """
    return Interpreter(load_model(model))


def _read(node: ir.Node) -> list[str]:
    """Return the names of all tensors that a node reads, those that its subgraphs take from outside included."""
    names = [value.name for value in node.inputs if value is not None and value.name]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            inner = attribute.as_graph()
            for child in inner:
                names += _read(child)
            names += [value.name for value in inner.outputs if value.name]
    return [str(name) for name in names]


def _tensor(value: ir.Value) -> torch.Tensor:
    if value.const_value is None:
        raise ModelError(f"the initializer {value.name!r} has no value", remedy="save the model with its weights")
    return from_array(np.asarray(value.const_value.numpy()))


def _plain(attribute: ir.Attr) -> Any:
    kind = attribute.type
    if kind == ir.AttributeType.TENSOR:
        return from_array(np.asarray(attribute.as_tensor().numpy()))
    if kind == ir.AttributeType.STRING:
        return attribute.as_string()
    if kind in {ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS}:
        return list(cast("Sequence[Any]", attribute.value))
    return attribute.value


def _bind(graph: ir.Graph, call: Call, function: ir.Function) -> None:
    """Replace references to a function's attributes by the caller's values, or by their defaults."""
    defaults = {attribute.name: attribute for attribute in function.attributes.values() if attribute.value is not None}
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for attribute in list(node.attributes.values()):
            if not attribute.is_ref():
                continue
            name = attribute.ref_attr_name
            node.attributes.pop(attribute.name)
            if name in call.attributes:
                node.attributes.add(_attribute(attribute.name, call.attributes[name], attribute.type))
            elif name in defaults:
                default = defaults[str(name)]
                node.attributes.add(ir.Attr(attribute.name, default.type, default.value))


def _attribute(name: str, value: Any, kind: ir.AttributeType) -> ir.Attr:
    if isinstance(value, torch.Tensor):
        return ir.AttrTensor(name, ir.tensor(value.numpy()))
    return ir.Attr(name, kind, value)
