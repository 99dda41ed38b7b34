"""The verb `export`: a quantized model as a file of another runtime, run there before it is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.exceptions import RecipeError
from lowbit.exporters import ExportOptions, find_format
from lowbit.graph import load_model, save_files
from lowbit.methods.export_executorch import export_executorch
from lowbit.methods.export_litert import export_litert
from lowbit.methods.export_openvino import export_openvino
from lowbit.methods.export_qonnx import export_qonnx
from lowbit.methods.export_samples import Samples
from lowbit.methods.export_torch import export_torch
from lowbit.methods.exported import Exported
from lowbit.methods.stages import Stages, silent

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx
    import onnx_ir as ir

    from lowbit.data import Preprocessing
    from lowbit.exporters import ExportFormat

__all__ = ["Exported", "export"]

_SAMPLES = 8
# Kernels round differently, and a Softmax makes much of one step of a logit; what lies below this is no rounding.
_TRUSTED_DB = 15.0

_EXPORTERS: dict[str, Callable[[ir.Model, ExportFormat, ExportOptions, Samples, Stages], Exported]] = {
    "litert": export_litert,
    "c-array": export_litert,
    "openvino": export_openvino,
    "qonnx": export_qonnx,
    "torch": export_torch,
    "executorch": export_executorch,
}


def export(
    model: str | Path | onnx.ModelProto | ir.Model,
    path: str | Path | None = None,
    *,
    format: str | None = None,  # noqa: A002 - what the command line calls it
    layout: str | None = None,
    io: str | None = None,
    data: Any = None,
    preprocessing: Preprocessing | None = None,
    samples: int = _SAMPLES,
    stages: Stages = silent,
) -> Exported:
    """Write a quantized ONNX model as a file of another runtime, with the very codes and scales that it has.

    The file is loaded in its runtime and runs beside the ONNX model first.

    Args:
        model: The artifact: a graph with Q/DQ pairs, best made for the target of that runtime.
        path: Where to write; its suffix says the format. Without it, nothing is written.
        format: One of `lowbit.exporters.FORMATS`, where the suffix does not say; without either, `litert`.
        layout: Of LiteRT files. `nhwc`, the default: pictures go in and out with the channels last, as the kernels
            have them. `keep`: as in ONNX.
        io: Of LiteRT files. `int8`, the default: inputs and outputs are codes. `float`: float32, with a conversion at
            the edges.
        data: Samples to compare on, as for `lowbit.quantize`; random codes without it. For LiteRT, QONNX and
            ExecuTorch the first one also says the sizes that the model leaves open.
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
    files = target.files(Path(path)) if path is not None else ()
    options = ExportOptions(
        layout=_option(target, "layout", layout, "nhwc"),  # type: ignore[arg-type]
        interface=_option(target, "io", io, "int8"),  # type: ignore[arg-type]
        name=Path(path).stem if path is not None else "model",
    )
    source = Samples(data=data, preprocessing=preprocessing, count=samples)
    exported = _EXPORTERS[target.name](load_model(model), target, options, source, stages)
    warnings = tuple(
        f"warning: {agreement.engine} is only {agreement.sqnr_db:.0f} dB from the ONNX artifact; compare on your data"
        for agreement in exported.agreements
        if agreement.sqnr_db < _TRUSTED_DB
    )
    if files:
        beside = {} if exported.beside is None else {files[1]: exported.beside}
        save_files(files[0], exported.contents, beside)
    return replace(exported, path=files[0] if files else None, notes=(*exported.notes, *warnings))


def _option(target: ExportFormat, name: str, value: str | None, default: str) -> str:
    """Return an option's value.

    Raises:
        RecipeError: It is set where the format has no such thing.
    """
    if value is not None and not target.integer_kernels:
        raise RecipeError(
            f"{name} is {value!r}", cause=f"{target.name} files have no such choice", remedy=f"leave {name} out"
        )
    return default if value is None else value
