"""Bring an ONNX model in from a file, a protobuf or a graph, or say in one line why it cannot be used."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from lowbit.exceptions import ModelError
from lowbit.graph.clean.weightless import weightless_proto

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["load_model"]

_PROTOBUF_LIMIT = 2**31 - 1


def load_model(source: str | Path | onnx.ModelProto | ir.Model) -> ir.Model:
    """Load a model and check that it is whole: structure, tensor sizes and external data.

    External data stay on disk and are mapped when a tensor is read, so a model larger than the memory can be loaded.

    Args:
        source: Path of an `.onnx` file, a protobuf, or a graph. A graph is cloned and never changed; the clone shares
            the tensors' memory.

    Returns:
        A graph that the caller may change freely.

    Raises:
        ModelError: The file is missing, is not ONNX, is cut off or is structurally invalid; or its external data are
            missing, too short, or lie outside the model's folder.
    """
    if isinstance(source, ir.Model):
        try:
            model = source.clone()
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                "The model is not a valid ONNX graph",
                cause=_first_line(_root_cause(error)),
                remedy="Every value must be produced before the node that reads it",
            ) from error
        for tensor in _tensors(model):
            if isinstance(tensor, ir.ExternalTensor):
                _check_external(tensor, Path(tensor.base_dir))
        _check_structure(model, "The model")
        return model
    if isinstance(source, onnx.ModelProto):
        proto, label, folder = source, "The model", None
    else:
        path = Path(source)
        proto, label, folder = _parse(path), str(path), path.parent
    return _from_proto(proto, label, folder)


def _parse(path: Path) -> onnx.ModelProto:
    if path.is_dir():
        raise ModelError(f"{path} is a folder, not an ONNX file", remedy="Give the path of the .onnx file inside it")
    try:
        size = path.stat().st_size
        if size > _PROTOBUF_LIMIT:
            raise ModelError(
                f"{path} has {size:,} bytes",
                cause="A single protobuf cannot hold more than 2 GB",
                remedy="Save the model again with external data (onnx.save with save_as_external_data=True)",
            )
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist", remedy="Check the path of the model") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read", cause=error.strerror or str(error)) from error
    if not data:
        raise ModelError(f"{path} is empty", cause="It has 0 bytes", remedy="Export or download the model again")
    try:
        proto = onnx.ModelProto()
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(
            f"{path} is not an ONNX model, or is cut off",
            cause=f"Its {len(data):,} bytes do not parse as the ONNX protobuf",
            remedy="Export or download it again; a model of another framework goes through `lowbit import` first",
        ) from error
    return proto


def _from_proto(proto: onnx.ModelProto, label: str, folder: Path | None) -> ir.Model:
    if not proto.HasField("graph") or not proto.opset_import:
        missing = "no graph" if not proto.HasField("graph") else "no operator set"
        raise ModelError(
            f"{label} is not an ONNX model", cause=f"It holds {missing}", remedy="Export or download the model again"
        )
    if any(graph.sparse_initializer for graph in _graphs(proto.graph)):
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        proto = copy
        for graph in _graphs(proto.graph):
            _densify(graph, label)
    try:
        model = ir.from_proto(proto)
        model.graph.sort()  # engines accept nodes in any order; everything else here relies on it
    except Exception as error:  # onnx_ir raises many types on malformed graphs; none may leak
        raise ModelError(f"{label} is not a valid ONNX graph", cause=_first_line(_root_cause(error))) from error
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            if folder is None:
                raise ModelError(
                    f"Tensor {tensor.name!r} lies in the external file {str(tensor.location)!r}",
                    cause="A protobuf does not say in which folder that is",
                    remedy="Pass the path of the model instead, or load the protobuf with its external data",
                )
            _check_external(tensor, folder)
            tensor.base_dir = os.fspath(folder)
        elif isinstance(tensor, ir.serde.TensorProtoTensor):
            _check_length(tensor, label)
    _check_structure(model, label)
    return model


def _check_structure(model: ir.Model, label: str) -> None:
    """Run ONNX's checker on the graph without its weights, which is possible at any model size."""
    try:
        onnx.checker.check_model(weightless_proto(model))
    except (onnx.checker.ValidationError, ValueError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"{label} is not a valid ONNX graph",
            cause=_first_line(_root_cause(error)),
            remedy="Export the model again, or try a newer version of the onnx package",
        ) from error


def _check_length(tensor: ir.serde.TensorProtoTensor, label: str) -> None:
    raw = tensor.raw
    if raw.HasField("raw_data") and len(raw.raw_data) != tensor.nbytes:
        raise ModelError(
            f"Tensor {tensor.name!r} of {label} has {len(raw.raw_data):,} bytes",
            cause=f"Its type {tensor.dtype.name} and shape {tensor.shape} need {tensor.nbytes:,}",
            remedy="Export or download the model again",
        )


def _check_external(tensor: ir.ExternalTensor, folder: Path) -> None:
    """Refuse external data that leave the model's folder, are missing, or are shorter than the tensor."""
    location = os.fspath(tensor.location)
    what = f"Tensor {tensor.name!r} lies in the external file {location!r}"
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    absolute = posix.is_absolute() or bool(windows.drive) or bool(windows.root)
    if not location or absolute or ".." in posix.parts or ".." in windows.parts:
        raise ModelError(
            what,
            cause="External data must be named relative to the model's folder and stay inside it",
            remedy="Do not use this file unless you trust its origin; otherwise save it again with a plain file name",
        )
    path = folder / location
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ModelError(
            what,
            cause=f"It is a symbolic link that leaves the model's folder, to {path.resolve()}",
            remedy="Copy the data file itself into the model's folder",
        )
    try:
        status = path.stat()
    except OSError as error:
        raise ModelError(
            what,
            cause=f"{path} cannot be read: {error.strerror}",
            remedy="Put the data file beside the model, under the name it had when the model was saved",
        ) from error
    if not path.is_file():
        raise ModelError(what, cause=f"{path} is not a regular file")
    if status.st_nlink > 1:
        # NOTE: onnx_ir refuses to map such a file (a hard link can smuggle a secret into the folder), but only when
        # the tensor is read; it is better said now.
        raise ModelError(
            what,
            cause=f"{path} is a hard link, which could be a file from elsewhere",
            remedy="Replace it by a copy of itself",
        )
    offset, length = tensor.offset or 0, tensor.length
    if offset < 0 or (length is not None and length != tensor.nbytes):
        raise ModelError(
            what,
            cause=f"Offset {offset} and length {length} do not fit its {tensor.nbytes:,} bytes",
            remedy="Save the model again",
        )
    if offset + tensor.nbytes > status.st_size:
        raise ModelError(
            what,
            cause=f"{path} has {status.st_size:,} bytes and the tensor ends at {offset + tensor.nbytes:,}",
            remedy="The data file is cut off or belongs to another model: copy or download it again",
        )


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield every tensor of the model once: initializers and attributes, in subgraphs and functions too."""
    roots: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in model.graphs():
        yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
    for root in roots:
        for node in ir.traversal.RecursiveGraphIterator(root):
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()
                elif attribute.type == ir.AttributeType.TENSORS:
                    yield from attribute.as_tensors()


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            children: Iterable[onnx.GraphProto] = (
                [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
            )
            for child in children:
                yield from _graphs(child)


def _densify(graph: onnx.GraphProto, label: str) -> None:
    """Replace sparse initializers by dense ones: onnx_ir knows only those."""
    for sparse in graph.sparse_initializer:
        if sparse.values.data_location == TensorProto.EXTERNAL:
            raise ModelError(
                f"Sparse tensor {sparse.values.name!r} of {label} lies in an external file",
                cause="Only dense tensors may be stored outside",
                remedy="Save the model with dense weights",
            )
        values = onnx.numpy_helper.to_array(sparse.values)
        indices = onnx.numpy_helper.to_array(sparse.indices)
        dense = np.zeros(tuple(sparse.dims), dtype=values.dtype)
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
        graph.initializer.append(onnx.numpy_helper.from_array(dense, sparse.values.name))
    del graph.sparse_initializer[:]


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
