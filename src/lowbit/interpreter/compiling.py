"""From an ONNX graph to a program: names resolved, attributes plain, every node with what computes it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from lowbit.exceptions import ModelError
from lowbit.interpreter.attributes import bound, constant, plain, tensor
from lowbit.interpreter.bodies import standard_body
from lowbit.interpreter.dtypes import to_dtype
from lowbit.interpreter.fusion import with_sections
from lowbit.interpreter.islands import island
from lowbit.interpreter.program import Block, Step
from lowbit.interpreter.registry import Call, Function, find_operator

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Compiler", "initial_value"]

_DEFAULT = ("", "ai.onnx")
_DEEPEST = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scope:
    """Where a node stands.

    Attributes:
        versions: Versions of the operator sets.
        bindings: Attributes of the function around it, as its caller or its defaults set them.
        path: The nodes around it; tells apart constants of the same name.
        depth: How many functions are open around it.
        main: Whether its graph is the model's own, whose initializers the caller holds.
    """

    versions: Mapping[str, int]
    bindings: Mapping[str, ir.Attr] = field(default_factory=dict)
    path: str = ""
    depth: int = 0
    main: bool = False


@dataclass(slots=True, kw_only=True)
class Compiler:
    """Compiles the graphs of one model.

    Attributes:
        functions: The model's own functions.
        taken: Keys of tensors that are in use.
        constants: Tensors of `Constant` nodes and of initializers inside functions, by key.
        inner: Initializers of subgraphs, by key: the name or, where that is taken, the path and the name.
        islands: Nodes that ONNX Runtime computes, as `name (operator)`.
    """

    functions: Mapping[ir.OperatorIdentifier, ir.Function]
    taken: set[str]
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    inner: dict[str, ir.Value] = field(default_factory=dict)
    islands: list[str] = field(default_factory=list)

    def compile(self, model: ir.Model) -> Block:
        """Return the program of a model's graph; its initializers are among the values that it is given."""
        return self._block(model.graph, _Scope(versions=_versions(model.opset_imports), main=True))

    def _block(self, graph: ir.Graph, scope: _Scope) -> Block:
        nodes = list(graph)
        outputs = tuple(str(value.name) for value in graph.outputs)
        reads = [_read(node) for node in nodes]
        last = {name: index for index, names in enumerate(reads) for name in names}
        made = {str(value.name) for node in nodes for value in node.outputs if value.name}
        constants = {} if scope.main else self._initializers(graph, scope)
        inner = replace(scope, main=False)
        steps = []
        for index, node in enumerate(nodes):
            if node.op_type == "Constant" and node.domain in _DEFAULT:
                constants[str(node.outputs[0].name)] = self._constant(node, scope)
                continue
            done = [name for name in reads[index] if last[name] == index and name in made and name not in outputs]
            steps.append(self._step(node, tuple(done), inner))
        inputs = tuple(str(value.name) for value in graph.inputs)
        known = {*inputs, *made, *graph.initializers}
        captured = dict.fromkeys(name for names in (*reads, outputs) for name in names if name not in known)
        return Block(
            inputs=inputs,
            outputs=outputs,
            results=tuple(_result(value) for value in graph.outputs),
            captured=tuple(captured),
            constants=constants,
            steps=with_sections(steps, frozenset({*graph.initializers, *constants}), outputs),
        )

    def _initializers(self, graph: ir.Graph, scope: _Scope) -> dict[str, str]:
        keys = {}
        for name, value in graph.initializers.items():
            keys[name] = self._key(name, scope)
            if scope.depth:
                self.constants[keys[name]] = initial_value(value)
            else:
                self.inner[keys[name]] = value
        return keys

    def _constant(self, node: ir.Node, scope: _Scope) -> str:
        found = bound(node, scope.bindings)
        if not found:
            raise ModelError(f"the Constant {node.name!r} has no value", remedy="give the function its attribute")
        key = self._key(f"<constant {node.outputs[0].name}>", scope)
        self.constants[key] = constant(found[0])
        return key

    def _key(self, name: str, scope: _Scope) -> str:
        key, count = name, 1
        while key in self.taken:
            key, count = f"{scope.path}/{name}" if count == 1 else f"{scope.path}/{name}#{count}", count + 1
        self.taken.add(key)
        return key

    def _step(self, node: ir.Node, done_with: tuple[str, ...], scope: _Scope) -> Step:
        plain_ones: dict[str, Any] = {}
        graphs: dict[str, Block] = {}
        attributes = bound(node, scope.bindings)
        for attribute in attributes:
            if attribute.type == ir.AttributeType.GRAPH:
                path = f"{scope.path}/{node.name or node.op_type}.{attribute.name}"
                graphs[attribute.name] = self._block(attribute.as_graph(), replace(scope, path=path))
            else:
                plain_ones[attribute.name] = plain(attribute)
        domain = "" if node.domain in _DEFAULT else node.domain
        call = Call(
            op_type=node.op_type,
            domain=domain,
            version=scope.versions.get(domain, 1),
            attributes=plain_ones,
            outputs=max((index + 1 for index, value in enumerate(node.outputs) if value.name), default=0),
            types=tuple(value.dtype if value is not None else None for value in node.inputs),
        )
        function, body = self._meaning(node, call, attributes, scope)
        return Step(
            function=function,
            body=body,
            calls=(call, replace(call, training=True)),
            name=node.name or "",
            inputs=tuple(value.name if value is not None and value.name else None for value in node.inputs),
            outputs=tuple(str(value.name or "") for value in node.outputs),
            graphs=graphs,
            done_with=done_with,
        )

    def _meaning(
        self, node: ir.Node, call: Call, attributes: list[ir.Attr], scope: _Scope
    ) -> tuple[Function | None, Block | None]:
        """Return what computes a node: the model's own function, a mapping, the standard's body, or ONNX Runtime."""
        body = self.functions.get((node.domain, node.op_type, node.overload))
        if body is None:
            mapped = find_operator(call.domain, call.op_type)
            if mapped is not None:
                return mapped, None
            body = standard_body(node, attributes, call)
        if body is not None:
            return None, self._body(body, node, attributes, scope)
        self.islands.append(f"{node.name or ''} ({node.op_type})".strip())
        return island(node, attributes, call), None

    def _body(self, function: ir.Function, node: ir.Node, attributes: list[ir.Attr], scope: _Scope) -> Block:
        if scope.depth >= _DEEPEST:
            raise ModelError(
                f"the function {function.name!r} is defined by itself", remedy="functions of a model may not recurse"
            )
        bindings = {name: item for name, item in function.attributes.items() if item.value is not None}
        bindings.update((attribute.name, attribute) for attribute in attributes)
        inside = _Scope(
            versions={**scope.versions, **_versions(function.opset_imports)},
            bindings=bindings,
            path=f"{scope.path}/{node.name or node.op_type}",
            depth=scope.depth + 1,
        )
        return self._block(function.graph, inside)


def initial_value(value: ir.Value) -> torch.Tensor:
    """Return an initializer as a tensor.

    Raises:
        ModelError: It has no value, or one of a type that PyTorch does not have.
    """
    if value.const_value is None:
        raise ModelError(f"the initializer {value.name!r} has no value", remedy="save the model with its weights")
    return tensor(value.const_value)


def _result(value: ir.Value) -> tuple[torch.dtype, tuple[int, ...]]:
    known = value.dtype not in {None, ir.DataType.UNDEFINED, ir.DataType.STRING}
    shape = () if value.shape is None else tuple(size if isinstance(size, int) else 0 for size in value.shape)
    return to_dtype(int(value.dtype or 0)) if known else torch.float32, shape


def _versions(imports: Mapping[str, int]) -> dict[str, int]:
    return {"" if domain in _DEFAULT else domain: version for domain, version in imports.items()}


def _read(node: ir.Node) -> tuple[str, ...]:
    """Return the names of all tensors that a node reads, those that its subgraphs take from outside included."""
    names = [str(value.name) for value in node.inputs if value is not None and value.name]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            names += _captured(attribute.as_graph())
    return tuple(dict.fromkeys(names))


def _captured(graph: ir.Graph) -> list[str]:
    known = {str(value.name) for value in graph.inputs} | set(graph.initializers)
    known |= {str(value.name) for node in graph for value in node.outputs}
    names = [name for node in graph for name in _read(node)] + [str(value.name) for value in graph.outputs]
    return [name for name in names if name not in known]
