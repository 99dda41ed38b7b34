"""ExecuTorch files, lowered to XNNPACK and run in ExecuTorch beside the ONNX artifact before they are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.data import input_specs
from lowbit.exporters.shapes import with_fixed_shapes
from lowbit.methods.export_agreement import compared, described, output_steps, simulated
from lowbit.methods.export_torch import examples
from lowbit.methods.exported import Exported
from lowbit.runtime.executorch_session import executorch_version, lower_program, run_executorch

if TYPE_CHECKING:
    import onnx_ir as ir

    from lowbit.exporters import ExportFormat, ExportOptions
    from lowbit.methods.export_samples import Samples
    from lowbit.methods.stages import Stages

__all__ = ["export_executorch"]


def export_executorch(
    graph: ir.Model, target: ExportFormat, options: ExportOptions, samples: Samples, stages: Stages
) -> Exported:
    """Return a Q/DQ graph as an ExecuTorch program with XNNPACK's kernels.

    Args:
        graph: The artifact; it may be changed.
        target: `executorch`.
        options: Has nothing for this format.
        samples: What both run; the first one says the sizes that the graph leaves open.
        stages: Shows progress.

    Raises:
        ModelError: An operator has no PyTorch form.
        DataError: The data do not fit the model.
        EngineError: ExecuTorch is not installed, or refuses the program.
    """
    del options
    engine = executorch_version()
    from lowbit.interpreter import exported_program

    with stages("Convert", None):
        graph = with_fixed_shapes(samples.shaped(graph), "ExecuTorch")
        specs = input_specs(graph)
        feeds = samples.of(graph)
        inputs, _ = examples(specs, feeds[0])
        program = exported_program(graph, inputs, open_axes=[[] for _ in specs])
        lowered = lower_program(program)
    with stages("Run beside the ONNX model", None):
        wanted = simulated(graph, feeds)
        arrays = [[np.ascontiguousarray(feed[spec.name]) for spec in specs] for feed in feeds]
        outputs = run_executorch(lowered.contents, arrays)
    kernels = {f"xnnpack {name}": count for name, count in lowered.delegated.items()}
    kernels |= {f"portable {name}": count for name, count in lowered.portable.items()}
    listed = ", ".join(f"{count} {name}" for name, count in sorted(lowered.portable.items()))
    notes = (f"XNNPACK does not run these, ExecuTorch's portable kernels do: {listed}",) if listed else ()
    return Exported(
        path=None,
        format=target.name,
        contents=lowered.contents,
        model=lowered.contents,
        kernels=kernels,
        float_kernels=None,
        interface=described(graph),
        agreements=(compared(f"{engine}, xnnpack", wanted, outputs, output_steps(graph, wanted)),),
        arena=None,
        notes=notes,
    )
