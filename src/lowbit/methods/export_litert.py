"""LiteRT files and C arrays of them, run in LiteRT beside the ONNX artifact before they are written."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exceptions import EngineError
from lowbit.exporters.c_array import render_c_array
from lowbit.exporters.litert import render_litert
from lowbit.methods.export_agreement import compared, simulated
from lowbit.methods.exported import Agreement, Exported
from lowbit.runtime.litert_micro import micro_is_installed, run_micro
from lowbit.runtime.litert_session import litert_session, litert_version

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.exporters import ExportFormat, ExportOptions
    from lowbit.exporters.litert.tensors import Program, Tensor
    from lowbit.methods.export_samples import Samples
    from lowbit.methods.stages import Stages
    from lowbit.runtime.session import Feed

__all__ = ["export_litert"]

_LOWEST, _HIGHEST = -128, 127


def export_litert(
    graph: ir.Model, target: ExportFormat, options: ExportOptions, samples: Samples, stages: Stages
) -> Exported:
    """Return a Q/DQ graph as a LiteRT file, or as a C array of one.

    Args:
        graph: The artifact; it may be changed.
        target: `litert` or `c-array`.
        options: Layout, interface and name.
        samples: What both run; the first one says the sizes that the graph leaves open.
        stages: Shows progress.

    Raises:
        ModelError: An operator has no integer kernel; all of them are named.
        DataError: The data do not fit the model.
        EngineError: LiteRT is not installed, or refuses the file.
    """
    with stages("Convert", None):
        graph = samples.shaped(graph)
        program, flatbuffer = render_litert(graph, layout=options.layout, interface=options.interface)
    notes: list[str] = []
    with stages("Run beside the ONNX model", None):
        agreements = _agreements(graph, program, flatbuffer, samples.of(graph))
    arena = None
    if micro_is_installed():
        with stages("Measure the arena", None):
            try:
                arena = run_micro(flatbuffer).arena
            except EngineError as error:
                if target.for_microcontrollers:
                    raise
                notes.append(f"not for microcontrollers: {error}")
    contents = flatbuffer
    if target.for_microcontrollers:
        contents = render_c_array(flatbuffer, program, name=options.name, arena=arena)
    return Exported(
        path=None,
        format=target.name,
        contents=contents,
        model=flatbuffer,
        kernels=dict(Counter(operator.kind for operator in program.operators)),
        float_kernels=len(program.float_operators()) if options.interface == "int8" else _inner_float_kernels(program),
        interface=_interface(program),
        agreements=agreements,
        arena=arena,
        notes=tuple(notes),
    )


def _inner_float_kernels(program: Program) -> int:
    return sum(operator.kind not in {"QUANTIZE", "DEQUANTIZE"} for operator in program.float_operators())


def _interface(program: Program) -> tuple[str, ...]:
    lines = []
    for kind, edges in (("input", program.inputs), ("output", program.outputs)):
        for name, tensor in edges:
            shape = ", ".join(str(size) for size in tensor.shape)
            order = program.orders[name]
            axes = "" if order == tuple(range(len(order))) else f", axes {list(order)} of the ONNX tensor"
            grid = ""
            if tensor.scale is not None:
                grid = f", scale {float(tensor.scale[0]):.9g}, zero point {tensor.zero_point}"
            lines.append(f"{kind} {name}: {tensor.dtype} [{shape}]{axes}{grid}")
    return tuple(lines)


def _grid(program: Program, tensor: Tensor) -> tuple[float, int] | None:
    """Return scale and zero point of an input or output, also where it is float32 at the edge."""
    if tensor.scale is not None:
        return float(tensor.scale[0]), tensor.zero_point
    if tensor.dtype != "float32":
        return None
    for operator in program.operators:
        coded = operator.outputs[0] if operator.inputs[0] is tensor else operator.inputs[0]
        if tensor in (operator.inputs[0], operator.outputs[0]) and coded is not None and coded.scale is not None:
            return float(coded.scale[0]), coded.zero_point
    return None


def _as_litert(program: Program, name: str, tensor: Tensor, array: NDArray[Any]) -> NDArray[Any]:
    """Return an ONNX tensor as the file takes or gives it, in codes where it has a grid."""
    arranged = array.reshape([tensor.shape[program.orders[name].index(axis)] for axis in range(len(tensor.shape))])
    arranged = arranged.transpose(program.orders[name])
    grid = _grid(program, tensor)
    if grid is None or array.dtype == np.int8:
        return arranged.astype(tensor.dtype)
    if array.dtype == np.uint8:
        return (arranged.astype(np.int16) - 128).astype(np.int8)
    codes = np.rint(arranged.astype(np.float32) / np.float32(grid[0])) + grid[1]
    return np.asarray(np.clip(codes, _LOWEST, _HIGHEST), dtype=np.int8)


def _agreements(graph: ir.Model, program: Program, flatbuffer: bytes, feeds: Sequence[Feed]) -> tuple[Agreement, ...]:
    wanted = []
    for arrays in simulated(graph, feeds):
        pairs = zip(program.outputs, arrays, strict=True)
        wanted.append([_as_litert(program, name, tensor, array) for (name, tensor), array in pairs])
    inputs = [[_stored(program, name, tensor, feed[name]) for name, tensor in program.inputs] for feed in feeds]
    found = []
    for kernels in ("xnnpack", "reference"):
        session = litert_session(flatbuffer, kernels=kernels)
        outputs = []
        for feed_codes in inputs:
            arrays = session.run(feed_codes)
            pairs = zip(program.outputs, arrays, strict=True)
            outputs.append([_coded(program, tensor, array) for (_, tensor), array in pairs])
        zeros = [(_grid(program, tensor) or (1.0, 0))[1] for _, tensor in program.outputs]
        steps = [1.0] * len(zeros)
        found.append(compared(f"{litert_version()}, {kernels}", wanted, outputs, steps, zeros))
    return tuple(found)


def _stored(program: Program, name: str, tensor: Tensor, array: NDArray[Any]) -> NDArray[Any]:
    if tensor.dtype != "float32":
        return _as_litert(program, name, tensor, array)
    order = program.orders[name]
    return np.ascontiguousarray(array.transpose(order), dtype=np.float32)


def _coded(program: Program, tensor: Tensor, array: NDArray[Any]) -> NDArray[Any]:
    """Return an output as codes, also where the file gives float32."""
    grid = _grid(program, tensor)
    if tensor.dtype != "float32" or grid is None:
        return array
    return (np.rint(array / np.float32(grid[0])) + grid[1]).astype(np.int8)
