"""QONNX files, executed by the `qonnx` package beside the ONNX artifact before they are written."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from lowbit.exporters.qonnx import render_qonnx
from lowbit.graph import serialize
from lowbit.graph.constants import constant_array
from lowbit.methods.export_agreement import compared, described, output_steps, simulated
from lowbit.methods.exported import Exported
from lowbit.runtime.qonnx_session import qonnx_session, qonnx_version

if TYPE_CHECKING:
    import onnx_ir as ir

    from lowbit.exporters import ExportFormat, ExportOptions
    from lowbit.methods.export_samples import Samples
    from lowbit.methods.stages import Stages

__all__ = ["export_qonnx"]

_QUANTIZERS = ("BipolarQuant", "Quant")


def export_qonnx(
    graph: ir.Model, target: ExportFormat, options: ExportOptions, samples: Samples, stages: Stages
) -> Exported:
    """Return a Q/DQ graph as a QONNX model.

    Args:
        graph: The artifact; it may be changed.
        target: `qonnx`.
        options: Has nothing for this format.
        samples: What both run; the first one says the sizes that the graph leaves open.
        stages: Shows progress.

    Raises:
        ModelError: A node cannot be said in QONNX.
        DataError: The data do not fit the model.
        EngineError: The package is not installed, or refuses the model.
    """
    del options
    with stages("Convert", None):
        graph = samples.shaped(graph)
        rendered = render_qonnx(graph)
        contents = serialize(rendered)
    with stages("Run beside the ONNX model", None):
        session = qonnx_session(contents)
        feeds = samples.of(graph)
        wanted = simulated(graph, feeds)
        outputs = [session.run(feed, [value.name or "" for value in graph.graph.outputs]) for feed in feeds]
    return Exported(
        path=None,
        format=target.name,
        contents=contents,
        model=contents,
        kernels=dict(Counter(node.op_type for node in rendered.graph)),
        float_kernels=None,
        interface=described(rendered),
        agreements=(compared(qonnx_version(), wanted, outputs, output_steps(graph, wanted)),),
        arena=None,
        notes=_notes(rendered),
    )


def _notes(model: ir.Model) -> tuple[str, ...]:
    """Return the widths of the quantizers, and what FINN and hls4ml will not take."""
    widths: Counter[str] = Counter()
    shifted = 0
    for node in model.graph:
        if node.op_type not in _QUANTIZERS:
            continue
        if node.op_type == "BipolarQuant":
            widths["bipolar"] += 1
            continue
        bits, zero_point = constant_array(node.inputs[3]), constant_array(node.inputs[2])
        assert bits is not None
        widths[f"{'int' if node.attributes['signed'].as_int() else 'uint'}{int(bits)}"] += 1
        shifted += zero_point is not None and bool(np.any(zero_point))
    if not widths:
        return ("warning: nothing in the model is quantized",)
    notes = ["quantizers: " + ", ".join(f"{count} {width}" for width, count in sorted(widths.items()))]
    if shifted:
        notes.append(
            f"{shifted} of them have a zero point that is not 0, which FINN and hls4ml do not take: quantize with "
            "--activations int8:symmetric"
        )
    return tuple(notes)
