"""The identity of a model: equal for equal content, whatever file it came from."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["digest"]


def digest(model: ir.Model) -> str:
    """Return the SHA-256 of what a model computes and how its parts are called, as 64 hexadecimal digits.

    Counted are operator sets, graph inputs and outputs with their types, nodes in order with all attributes,
    initializers by name, and functions. Not counted are documentation, metadata, the producer and inferred shapes, nor
    where the bytes of a tensor are stored. Tensors are read one at a time; external ones in chunks.

    Args:
        model: Left unchanged.
    """
    writer = _Hash()
    _write_opsets(writer, model.opset_imports)
    _write_graph(writer, model.graph)
    for identifier, function in sorted(model.functions.items()):
        writer.text("function", *identifier)
        _write_opsets(writer, function.opset_imports)
        writer.text(*(value.name or "" for value in (*function.inputs, *function.outputs)))
        _write_attributes(writer, function.attributes.values())
        for node in function:
            _write_node(writer, node)
    return writer.hexdigest()


class _Hash:
    """SHA-256 over fields that each carry their length, so that no two sequences of fields coincide."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        self._sha.update(data)
        return len(data)

    def text(self, *fields: str) -> None:
        self.integer(len(fields))
        for field in fields:
            data = field.encode("utf-8", "surrogateescape")
            self.integer(len(data))
            self.write(data)

    def integer(self, *numbers: int) -> None:
        for number in numbers:
            self.write(struct.pack("<q", number))

    def hexdigest(self) -> str:
        return self._sha.hexdigest()


def _write_opsets(writer: _Hash, opsets: dict[str, int]) -> None:
    named = {"" if domain == "ai.onnx" else domain: version for domain, version in opsets.items()}
    for domain, version in sorted(named.items()):
        writer.text("opset", domain)
        writer.integer(version)


def _write_graph(writer: _Hash, graph: ir.Graph) -> None:
    writer.text("graph")
    for role, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            shape = "?" if value.shape is None else str([str(dimension) for dimension in value.shape])
            writer.text(role, value.name or "", str(value.type), shape)
    for name, value in sorted(graph.initializers.items()):
        writer.text("initializer", name)
        if value.const_value is not None:
            _write_tensor(writer, value.const_value)
    for node in graph:
        _write_node(writer, node)
    writer.text("end")


def _write_node(writer: _Hash, node: ir.Node) -> None:
    writer.text("node", node.name or "", node.domain, node.op_type, node.overload)
    writer.text(*("" if value is None else value.name or "" for value in node.inputs))
    writer.text(*(value.name or "" for value in node.outputs))
    _write_attributes(writer, node.attributes.values())


def _write_attributes(writer: _Hash, attributes: Iterable[ir.Attr]) -> None:
    for attribute in sorted(attributes, key=lambda attribute: attribute.name):
        writer.text("attribute", attribute.name, attribute.type.name, attribute.ref_attr_name or "")
        if attribute.is_ref() or attribute.value is None:
            continue
        match attribute.type:
            case ir.AttributeType.TENSOR:
                _write_tensor(writer, attribute.as_tensor())
            case ir.AttributeType.TENSORS:
                for tensor in attribute.as_tensors():
                    _write_tensor(writer, tensor)
            case ir.AttributeType.GRAPH:
                _write_graph(writer, attribute.as_graph())
            case ir.AttributeType.GRAPHS:
                for graph in attribute.as_graphs():
                    _write_graph(writer, graph)
            case _:
                writer.text(repr(attribute.value))


def _write_tensor(writer: _Hash, tensor: ir.TensorProtocol) -> None:
    writer.text("tensor", tensor.dtype.name)
    shape = tensor.shape.numpy()
    writer.integer(len(shape), *shape)
    if isinstance(tensor, ir.StringTensor):
        writer.text(*(item.decode("utf-8", "surrogateescape") for item in tensor.string_data()))
    elif tensor.dtype == ir.DataType.STRING:
        writer.text(*(bytes(item).decode("utf-8", "surrogateescape") for item in tensor.numpy().reshape(-1)))
    elif isinstance(tensor, ir.ExternalTensor):
        tensor.tofile(writer)
    else:
        writer.write(tensor.tobytes())
