"""`torch.export` programs, loaded again and run beside the ONNX artifact before they are written."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.data import input_specs
from lowbit.graph import infer_shapes
from lowbit.methods.export_agreement import compared, output_steps, simulated
from lowbit.methods.exported import Exported

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx_ir as ir
    import torch
    from numpy.typing import NDArray

    from lowbit.data import InputSpec
    from lowbit.exporters import ExportFormat, ExportOptions
    from lowbit.methods.export_samples import Samples
    from lowbit.methods.stages import Stages
    from lowbit.runtime.session import Feed

__all__ = ["examples", "export_torch", "run_program"]


def export_torch(
    graph: ir.Model, target: ExportFormat, options: ExportOptions, samples: Samples, stages: Stages
) -> Exported:
    """Return an ONNX graph as a program of `torch.export`.

    Args:
        graph: The artifact.
        target: `torch`.
        options: Has nothing for this format.
        samples: What both run; the first one is also what is traced.
        stages: Shows progress.

    Raises:
        ModelError: An operator has no PyTorch form, or decides by values what is computed.
        DataError: The data do not fit the model.
    """
    del options
    import torch

    from lowbit.interpreter import exported_program, load_program, serialize_program

    specs = input_specs(graph)
    with stages("Convert", None):
        feeds = samples.of(graph)
        inputs, open_axes = examples(specs, feeds[0])
        program = exported_program(infer_shapes(graph), inputs, open_axes=open_axes)
        contents = serialize_program(program)
    with stages("Run beside the ONNX model", None):
        wanted = simulated(graph, feeds)
        outputs = run_program(load_program(contents), specs, feeds)
    operators = Counter(
        str(node.target).removesuffix(".default") for node in program.graph.nodes if node.op == "call_function"
    )
    return Exported(
        path=None,
        format=target.name,
        contents=contents,
        model=contents,
        kernels=dict(operators),
        float_kernels=None,
        interface=_interface(program, specs, graph),
        agreements=(compared(f"torch {torch.__version__}", wanted, outputs, output_steps(graph, wanted)),),
        arena=None,
        notes=_notes(program, specs, operators),
    )


def examples(specs: Sequence[InputSpec], feed: Feed) -> tuple[list[torch.Tensor], list[list[int]]]:
    """Return what to trace: every input, of two samples where the batch is open, and the axes that are open."""
    import torch

    inputs, open_axes = [], []
    for spec in specs:
        array = np.asarray(feed[spec.name])
        axes = [axis for axis, dim in enumerate(spec.shape) if not isinstance(dim, int)]
        if 0 in axes and array.shape[0] == 1:
            array = np.repeat(array, 2, axis=0)
        inputs.append(torch.from_numpy(np.ascontiguousarray(array)))
        open_axes.append(axes)
    return inputs, open_axes


def run_program(
    program: Callable[..., tuple[torch.Tensor, ...]], specs: Sequence[InputSpec], feeds: Sequence[Feed]
) -> list[list[NDArray[Any]]]:
    """Return the outputs of a program for every sample."""
    import torch

    found = []
    with torch.no_grad():
        for feed in feeds:
            inputs = [torch.from_numpy(np.ascontiguousarray(feed[spec.name])) for spec in specs]
            found.append([output.detach().numpy() for output in program(*inputs)])
    return found


def _placed(program: torch.export.ExportedProgram, count: int) -> list[Any]:
    """Return the inputs of a program as it was traced: fake tensors with symbolic sizes."""
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    return [node.meta["val"] for node in nodes[len(nodes) - count :]]


def _interface(program: torch.export.ExportedProgram, specs: Sequence[InputSpec], graph: ir.Model) -> tuple[str, ...]:
    lines = []
    for spec, value in zip(specs, _placed(program, len(specs)), strict=True):
        sizes = [size if isinstance(size, int) else spec.shape[axis] or "any" for axis, size in enumerate(value.shape)]
        lines.append(f"input {spec.name}: {spec.dtype} [{', '.join(map(str, sizes))}]")
    lines += [f"output {position}: {value.name}" for position, value in enumerate(graph.graph.outputs)]
    return tuple(lines)


def _notes(
    program: torch.export.ExportedProgram, specs: Sequence[InputSpec], operators: Counter[str]
) -> tuple[str, ...]:
    notes = []
    for spec, value in zip(specs, _placed(program, len(specs)), strict=True):
        fixed = [
            f"{dim or axis} at {value.shape[axis]}"
            for axis, dim in enumerate(spec.shape)
            if not isinstance(dim, int) and isinstance(value.shape[axis], int)
        ]
        if fixed:
            notes.append(f"the model fixes sizes of {spec.name} that ONNX leaves open: {', '.join(fixed)}")
    if any(name.startswith("quantized_decomposed") for name in operators):
        notes.append("before torch.export.load: import torch.ao.quantization.fx._decomposed")
    return tuple(notes)
