"""The verb `export`: a quantized model as a file of another runtime, run there before it is written."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lowbit.data import Preprocessing, input_specs, open_data
from lowbit.exceptions import EngineError
from lowbit.exporters import ExportOptions, find_format
from lowbit.graph import load_model, save_files
from lowbit.methods.exported import Agreement, Exported
from lowbit.methods.stages import Stages, silent
from lowbit.runtime.engines import SIMULATION, open_in
from lowbit.runtime.litert_micro import micro_is_installed, run_micro
from lowbit.runtime.litert_session import litert_session, litert_version
from lowbit.runtime.staging import staged

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx
    from numpy.typing import NDArray

    from lowbit.exporters.litert.tensors import Program, Tensor
    from lowbit.runtime.session import Feed

__all__ = ["Exported", "export"]

_SAMPLES = 8
_LOWEST, _HIGHEST = -128, 127
# Kernels round differently, and a Softmax makes much of one step of a logit; what lies below this is no rounding.
_TRUSTED_DB = 15.0


def export(
    model: str | Path | onnx.ModelProto | ir.Model,
    path: str | Path | None = None,
    *,
    format: str | None = None,  # noqa: A002 - what the command line calls it
    layout: str = "nhwc",
    io: str = "int8",
    data: Any = None,
    preprocessing: Preprocessing | None = None,
    samples: int = _SAMPLES,
    stages: Stages = silent,
) -> Exported:
    """Write a quantized ONNX model as a file of another runtime, with the very codes and scales that it has.

    The file is loaded in LiteRT, with XNNPACK's and with the reference kernels, and runs beside the ONNX model first.

    Args:
        model: The artifact: a graph with Q/DQ pairs, best made with `target="litert"`.
        path: Where to write; its suffix says the format. Without it, nothing is written.
        format: `litert` or `c-array`, where the suffix does not say.
        layout: `nhwc`: pictures go in and out with the channels last, as the kernels have them. `keep`: as in ONNX.
        io: `int8`: inputs and outputs are codes. `float`: float32, converted at the edges.
        data: Samples to compare on, as for `lowbit.quantize`; random codes without it. The first one also says the
            sizes that the model leaves open.
        preprocessing: What to do to images.
        samples: How many samples.
        stages: Shows progress.

    Raises:
        ModelError: The model cannot be read, or has operators that the format cannot hold; nothing is written.
        RecipeError: There is no such format or option.
        DataError: The data do not fit the model.
        EngineError: An engine is not installed or refuses the file.
        OutputError: The file cannot be written.
    """
    target = find_format(path if path is not None else "model.tflite", format)
    name = Path(path).stem if path is not None else "model"
    options = ExportOptions(layout=layout, interface=io, name=name)  # type: ignore[arg-type]
    with stages("Convert", None):
        graph = _shaped(load_model(model), data, preprocessing)
        rendered = target.render(graph, options)
    program, flatbuffer = rendered.program, rendered.flatbuffer
    notes: list[str] = []
    with stages("Run beside the ONNX model", None):
        feeds = list(_feeds(graph, program, data, preprocessing, samples))
        agreements = _agreements(graph, program, flatbuffer, feeds)
    arena = None
    if micro_is_installed():
        with stages("Measure the arena", None):
            try:
                arena = run_micro(flatbuffer).arena
            except EngineError as error:
                if target.for_microcontrollers:
                    raise
                notes.append(f"not for microcontrollers: {error}")
    notes += [
        f"warning: {agreement.engine} is only {agreement.sqnr_db:.0f} dB from the ONNX artifact; compare on your data"
        for agreement in agreements
        if agreement.sqnr_db < _TRUSTED_DB
    ]
    contents = target.contents(rendered, options, arena)
    if path is not None:
        save_files(path, contents)
    return Exported(
        path=None if path is None else Path(path),
        format=target.name,
        contents=contents,
        model=flatbuffer,
        kernels=dict(Counter(operator.kind for operator in program.operators)),
        float_kernels=len(program.float_operators()) if io == "int8" else _inner_float_kernels(program),
        interface=_interface(program),
        agreements=agreements,
        arena=arena,
        notes=tuple(notes),
    )


def _shaped(graph: ir.Model, data: Any, preprocessing: Preprocessing | None) -> ir.Model:
    """Return a graph with the shapes of the first sample where it leaves dimensions open."""
    open_ = [value for value in graph.graph.inputs if value.shape is None or not value.shape.is_static()]
    if data is None or not open_:
        return graph
    with open_data(data, input_specs(graph), preprocessing=preprocessing, limit=1) as dataset:
        feed = next(iter(dataset))
    for value in open_:
        value.shape = ir.Shape(feed[value.name or ""].shape)
    return graph


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


def _feeds(
    graph: ir.Model, program: Program, data: Any, preprocessing: Preprocessing | None, samples: int
) -> Iterator[Feed]:
    """Yield samples as the ONNX model takes them."""
    if data is not None:
        with open_data(data, input_specs(graph), preprocessing=preprocessing, limit=samples) as dataset:
            yield from dataset
        return
    generator = np.random.default_rng(0)
    specs = {spec.name: spec for spec in input_specs(graph)}
    for _ in range(samples):
        feed = {}
        for name, tensor in program.inputs:
            codes = generator.integers(*_code_range(program, tensor), size=tensor.shape, endpoint=True)
            feed[name] = _as_onnx(program, name, tensor, codes, specs[name].dtype)
        yield feed


def _code_range(program: Program, tensor: Tensor) -> tuple[int, int]:
    """Return which integers make sense as an input: all codes, or the rows of the table that they look up."""
    if tensor.dtype != "int32":
        return _LOWEST, _HIGHEST
    rows = [
        operator.inputs[0].shape[0]
        for operator in program.operators
        if operator.kind == "GATHER" and operator.inputs[1] is tensor and operator.inputs[0] is not None
    ]
    return 0, min(rows, default=2) - 1


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


def _as_onnx(program: Program, name: str, tensor: Tensor, codes: NDArray[Any], dtype: np.dtype) -> NDArray[Any]:
    order = program.orders[name]
    arranged = codes.transpose([order.index(axis) for axis in range(len(order))])
    grid = _grid(program, tensor)
    if grid is None or dtype == np.int8:
        return arranged.astype(dtype)
    if dtype == np.uint8:
        return (arranged + 128).astype(np.uint8)
    return np.asarray((arranged - grid[1]) * np.float32(grid[0]), dtype=dtype)


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
    with staged(graph) as source:
        reference = open_in(SIMULATION, source)
        names = [name for name, _ in program.outputs]
        wanted = []
        for feed in feeds:
            arrays = reference.run(feed, names)
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
        found.append(_compared(f"{litert_version()}, {kernels}", wanted, outputs, zeros))
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


def _compared(
    engine: str,
    wanted: Sequence[Sequence[NDArray[Any]]],
    outputs: Sequence[Sequence[NDArray[Any]]],
    zero_points: Sequence[int],
) -> Agreement:
    steps, signals = [], []
    for mine_all, theirs_all in zip(wanted, outputs, strict=True):
        for mine, theirs, zero_point in zip(mine_all, theirs_all, zero_points, strict=True):
            steps.append(np.abs(mine.astype(np.int64) - theirs.astype(np.int64)).reshape(-1))
            signals.append(mine.astype(np.float64).reshape(-1) - zero_point)
    every = np.concatenate(steps)
    noise, signal = float(np.sum(every.astype(np.float64) ** 2)), float(np.sum(np.concatenate(signals) ** 2))
    top1 = None
    first = [(mine[0], theirs[0]) for mine, theirs in zip(wanted, outputs, strict=True)]
    if first and first[0][0].ndim == 2 and first[0][0].shape[1] > 1:
        top1 = float(np.mean([_same_top1(mine, theirs) for mine, theirs in first]))
    return Agreement(
        engine=engine,
        samples=len(wanted),
        largest=int(every.max(initial=0)),
        within_one=float(np.mean(every <= 1)),
        same_top1=top1,
        sqnr_db=float("inf") if noise == 0 else float(10 * np.log10(max(signal, 1e-30) / noise)),
    )


def _same_top1(mine: NDArray[Any], theirs: NDArray[Any]) -> bool:
    """Whether the same class wins; where codes tie, any of the winners counts."""
    winners = mine[0] == mine[0].max()
    return bool(winners[int(theirs[0].argmax())])
