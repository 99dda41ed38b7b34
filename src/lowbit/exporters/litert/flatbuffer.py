"""A program as the bytes of a `.tflite` file, by the schema that the engine's own package ships."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exceptions import EngineError
from lowbit.exporters.litert.versions import version_of

if TYPE_CHECKING:
    from lowbit.exporters.litert.tensors import Operator, Program, Tensor

__all__ = ["serialize_program"]

_SCHEMA_VERSION = 3
# Microcontrollers read int32 in place, and vector loads want whole lines.
_ALIGNMENT = 16
_IDENTIFIER = b"TFL3"
_TYPES = {"float32": "FLOAT32", "int32": "INT32", "int16": "INT16", "int8": "INT8"}
# Options tables whose names do not follow from the kernels' names.
_OPTIONS = {
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "MEAN": "ReducerOptions",
    "REDUCE_MAX": "ReducerOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "PADV2": "PadV2Options",
    "BATCH_MATMUL": "BatchMatMulOptions",
}
_WITHOUT_OPTIONS = frozenset({"LOGISTIC", "TANH", "RELU", "RELU6", "PRELU", "RSQRT"})
_PLACEHOLDER = 127


def serialize_program(program: Program) -> bytes:
    """Return a program as a flatbuffer; the same bytes every time.

    Raises:
        EngineError: The package with the schema is not installed.
    """
    schema = _schema()
    buffers = _Buffers()
    tensors = _tensors(program)
    index = {tensor: position for position, tensor in enumerate(tensors)}
    codes: dict[tuple[str, int], int] = {}
    graph = schema.SubGraphT()
    graph.name = "main"
    graph.tensors = [_tensor(schema, tensor, buffers) for tensor in tensors]
    graph.inputs = [index[tensor] for _, tensor in program.inputs]
    graph.outputs = [index[tensor] for _, tensor in program.outputs]
    graph.operators = [_operator(schema, operator, index, codes) for operator in program.operators]
    model = schema.ModelT()
    model.version = _SCHEMA_VERSION
    model.description = "lowbit"
    model.operatorCodes = [_code(schema, kind, version) for kind, version in codes]
    model.subgraphs = [graph]
    model.signatureDefs = [_signature(schema, program, index)]
    model.buffers = [_AlignedBuffer(schema, data) for data in buffers.contents]
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def _schema() -> Any:
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise EngineError(
            "LiteRT is not installed",
            cause="Its package ai-edge-litert has the schema of .tflite files",
            remedy='pip install "lowbit[litert]"',
        ) from error
    return schema_py_generated


class _Buffers:
    """The contents of buffers; the first is empty, as the schema wants it, and equal ones are one."""

    def __init__(self) -> None:
        self.contents: list[bytes] = [b""]
        self._known: dict[bytes, int] = {}

    def add(self, data: bytes) -> int:
        if data not in self._known:
            self._known[data] = len(self.contents)
            self.contents.append(data)
        return self._known[data]


class _AlignedBuffer:
    """A buffer whose data start at a multiple of 16 bytes, which the schema asks for and its Python code ignores."""

    def __init__(self, schema: Any, data: bytes) -> None:
        self.schema = schema
        self.data = data

    def Pack(self, builder: Any) -> Any:  # noqa: N802 - the schema's objects are written through this name
        """Write the buffer and return where it is."""
        vector = None
        if self.data:
            builder.StartVector(1, len(self.data), _ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.Head() : builder.Head() + len(self.data)] = self.data
            vector = builder.EndVector()
        self.schema.BufferStart(builder)
        if vector is not None:
            self.schema.BufferAddData(builder, vector)
        return self.schema.BufferEnd(builder)


def _tensors(program: Program) -> list[Tensor]:
    """Return all tensors of a program: inputs first, then in the order in which operators mention them."""
    found: dict[Tensor, None] = {tensor: None for _, tensor in program.inputs}
    for operator in program.operators:
        found.update({tensor: None for tensor in (*operator.inputs, *operator.outputs) if tensor is not None})
    return list(found)


def _tensor(schema: Any, tensor: Tensor, buffers: _Buffers) -> Any:
    result = schema.TensorT()
    result.name = tensor.name
    result.shape = np.asarray(tensor.shape, dtype=np.int32)
    result.type = getattr(schema.TensorType, _TYPES[tensor.dtype])
    result.buffer = 0 if tensor.data is None else buffers.add(tensor.data.tobytes())
    if tensor.scale is not None:
        quantization = schema.QuantizationParametersT()
        quantization.scale = np.asarray(tensor.scale, dtype=np.float32)
        quantization.zeroPoint = np.full(tensor.scale.shape, tensor.zero_point, dtype=np.int64)
        quantization.quantizedDimension = tensor.axis if tensor.scale.size > 1 else 0
        result.quantization = quantization
    return result


def _operator(schema: Any, operator: Operator, index: dict[Tensor, int], codes: dict[tuple[str, int], int]) -> Any:
    result = schema.OperatorT()
    result.opcodeIndex = codes.setdefault((operator.kind, version_of(operator)), len(codes))
    result.inputs = [-1 if tensor is None else index[tensor] for tensor in operator.inputs]
    result.outputs = [index[tensor] for tensor in operator.outputs]
    if operator.kind not in _WITHOUT_OPTIONS:
        name = (
            _OPTIONS.get(operator.kind) or "".join(part.capitalize() for part in operator.kind.split("_")) + "Options"
        )
        options = getattr(schema, f"{name}T")()
        for field, value in operator.options.items():
            if not hasattr(options, field):
                raise AttributeError(f"{name} of the schema has no field {field}")
            setattr(options, field, value)
        result.builtinOptions = options
        result.builtinOptionsType = getattr(schema.BuiltinOptions, name)
    return result


def _code(schema: Any, kind: str, version: int) -> Any:
    result = schema.OperatorCodeT()
    result.builtinCode = getattr(schema.BuiltinOperator, kind)
    # Readers from before 2020 look here.
    result.deprecatedBuiltinCode = min(result.builtinCode, _PLACEHOLDER)
    result.version = version
    return result


def _signature(schema: Any, program: Program, index: dict[Tensor, int]) -> Any:
    def named(name: str, tensor: Tensor) -> Any:
        result = schema.TensorMapT()
        result.name, result.tensorIndex = name, index[tensor]
        return result

    signature = schema.SignatureDefT()
    signature.signatureKey = "serving_default"
    signature.subgraphIndex = 0
    signature.inputs = [named(name, tensor) for name, tensor in program.inputs]
    signature.outputs = [named(name, tensor) for name, tensor in program.outputs]
    return signature
