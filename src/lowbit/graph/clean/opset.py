"""Raise the operator set of a model to one that the product needs."""

from __future__ import annotations

import onnx
import onnx.version_converter
import onnx_ir as ir

from lowbit.exceptions import ModelError
from lowbit.graph.clean.normalized import keep_normalized
from lowbit.graph.clean.shapes import annotate_shapes, graph_protos
from lowbit.graph.clean.weightless import restore_weights, weightless_proto

__all__ = ["opset_of", "raise_opset"]


def opset_of(model: ir.Model) -> int:
    """Return the version of the standard operator set that a model imports; 0 if it imports none."""
    return max(model.opset_imports.get("", 0), model.opset_imports.get("ai.onnx", 0))


def raise_opset(model: ir.Model, version: int) -> ir.Model:
    """Return a copy of a model that uses at least this version of the standard operator set.

    Operators of other domains are left as they are. The IR version is raised to what the operator set needs. A model
    that is already there is only copied.

    Args:
        model: Left unchanged. Model-local functions must have been inlined.
        version: Operator set, such as 13 (per-channel `DequantizeLinear`) or 21 (4-bit and blocked).

    Raises:
        ModelError: ONNX's converter cannot convert the model, or makes an invalid one.
    """
    source = opset_of(model)
    if source >= version or source == 0:
        return _with_ir_version(model.clone())
    try:
        proto = onnx.version_converter.convert_version(weightless_proto(model), version)
        for graph in graph_protos(proto.graph):
            del graph.value_info[:]  # the converter writes entries without a shape, which are not valid
        onnx.checker.check_model(proto)
        converted = ir.from_proto(proto)
    except Exception as error:  # the C++ converter throws many types; each means the same to the caller
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"Opset {source} cannot be raised to {version}",
            cause=lines[0],
            remedy=f"Export the model with opset {version} or later",
        ) from error
    restore_weights(converted, model)
    if _interface(converted) != _interface(model):
        # NOTE: ONNX's converter does so for Scan before opset 9, whose batch axis it drops from the graph inputs.
        raise ModelError(
            f"Opset {source} cannot be raised to {version}",
            cause="The converted model would have other inputs or outputs",
            remedy=f"Export the model with opset {version} or later",
        )
    for domain, number in model.opset_imports.items():
        if domain not in {"", "ai.onnx"}:
            converted.opset_imports.setdefault(domain, number)
    converted.metadata_props.update(model.metadata_props)
    keep_normalized(model, converted)
    converted.producer_name, converted.producer_version = model.producer_name, model.producer_version
    annotate_shapes(converted)
    return _with_ir_version(converted)


def _interface(model: ir.Model) -> list[tuple[str | None, str, int | None]]:
    values = (*model.graph.inputs, *model.graph.outputs)
    return [(value.name, str(value.type), None if value.shape is None else len(value.shape)) for value in values]


def _with_ir_version(model: ir.Model) -> ir.Model:
    """Normalize the default domain's name and raise the IR version to what the operator sets need."""
    imports = model.opset_imports
    if "ai.onnx" in imports:
        imports[""] = max(imports.pop("ai.onnx"), imports.get("", 0))
    ids = [onnx.helper.make_opsetid(domain, number) for domain, number in imports.items()]
    needed = onnx.helper.find_min_ir_version_for(ids, ignore_unknown=True)
    model.ir_version = max(model.ir_version or 0, needed)
    return model
