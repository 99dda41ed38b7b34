"""OpenVINO's saved IR, loaded from its files and run beside the ONNX artifact before it is written."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.methods.export_agreement import compared, described, output_steps, simulated
from lowbit.methods.exported import Exported
from lowbit.runtime.openvino_session import openvino_ir, openvino_kernels, openvino_session, openvino_version
from lowbit.runtime.staging import staged

if TYPE_CHECKING:
    import onnx_ir as ir

    from lowbit.exporters import ExportFormat, ExportOptions
    from lowbit.methods.export_samples import Samples
    from lowbit.methods.stages import Stages

__all__ = ["export_openvino"]

# Only what is in memory changes its order or its type; nothing is computed.
_MOVES = frozenset({"Concatenation", "Convert", "Reorder", "Reshape", "Split", "StridedSlice", "Transpose"})


def export_openvino(
    graph: ir.Model, target: ExportFormat, options: ExportOptions, samples: Samples, stages: Stages
) -> Exported:
    """Return an ONNX graph as OpenVINO IR, with the kernels that OpenVINO's CPU plugin makes of it.

    Args:
        graph: The artifact.
        target: `openvino`.
        options: Has nothing for this format.
        samples: What both run.
        stages: Shows progress.

    Raises:
        DataError: The data do not fit the model.
        EngineError: OpenVINO is not installed, or refuses the model.
    """
    del options
    with stages("Convert", None), staged(graph) as source:
        xml, weights = openvino_ir(source)
    with stages("Run beside the ONNX model", None), tempfile.TemporaryDirectory(prefix="lowbit-") as folder:
        path = Path(folder) / "model.xml"
        path.write_bytes(xml)
        path.with_suffix(".bin").write_bytes(weights)
        session = openvino_session(path, threads=1)
        kernels = openvino_kernels(session)
        feeds = samples.of(graph)
        wanted = simulated(graph, feeds)
        names = [value.name or "" for value in graph.graph.outputs]
        outputs = [session.run(feed, names) for feed in feeds]
        del session
    integer = kernels.integer_count()
    notes = () if integer else ("no kernel computes in integers: quantize with --target openvino-x86-vnni or -avx2",)
    return Exported(
        path=None,
        format=target.name,
        contents=xml,
        beside=weights,
        model=xml,
        kernels=kernels.counts(),
        float_kernels=sum(not kernel.integer and kernel.op_type not in _MOVES for kernel in kernels.kernels),
        interface=described(graph),
        agreements=(compared(openvino_version(), wanted, outputs, output_steps(graph, wanted)),),
        arena=None,
        notes=notes,
    )
