"""The verb `compare`: any two ONNX files of one network, measured side by side in the engine."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lowbit.data import Preprocessing, input_specs, open_data
from lowbit.exceptions import ModelError
from lowbit.graph import clean, load_model, save_model
from lowbit.graph.constants import constant_array, is_constant
from lowbit.graph.editor import abbreviated
from lowbit.methods.classification import default_metric, metric_name, top1_accuracy
from lowbit.methods.inspect import inspect
from lowbit.methods.stages import Stages, silent
from lowbit.methods.verify import Metric, sqnr_db, verify
from lowbit.plan.verification import LayerQuality, Verification
from lowbit.runtime.session import Feed, open_session
from lowbit.runtime.staging import staged, with_outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

__all__ = ["compare", "compare_layers", "top1_accuracy"]

_LAYER_SAMPLES = 8
_FUSED = frozenset({"Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid"})


def compare(
    float_model: str | Path | onnx.ModelProto | ir.Model,
    artifact: str | Path | onnx.ModelProto | ir.Model,
    data: Any,
    *,
    labels: str | Path | None = None,
    preprocessing: Preprocessing | None = None,
    metric: Metric | None = None,
    samples: int | None = None,
    seed: int = 0,
    threads: int = 1,
    measure_seconds: float = 2.0,
    stages: Stages = silent,
) -> Verification:
    """Measure quality, size, memory and latency of an artifact beside its float model; who wrote it does not matter.

    Args:
        float_model: Path of an ONNX file, a `ModelProto` or an `onnx_ir.Model`.
        artifact: The same, compressed by lowbit or by any other tool.
        data: Test data, as for `lowbit.quantize`.
        labels: A file of labels.
        preprocessing: What to do to images.
        metric: Function of the outputs (a list of arrays per sample) and the labels; higher is better. Without it,
            labels give the top-1 accuracy, if the first output is `[batch, classes]`.
        samples: Largest number of samples.
        seed: Chooses the samples, if there are more.
        threads: Threads for latency and peak memory; everything else uses all processors.
        measure_seconds: How long latency is measured.
        stages: Shows progress.

    Returns:
        What was measured; layers are the tensors that both graphs have, recognised by their names.

    Raises:
        ModelError: A model cannot be read, or the two do not have the same inputs and outputs.
        DataError: The data do not fit the models.
        EngineError: The engine does not run a model.
    """
    with tempfile.TemporaryDirectory(prefix="lowbit-") as temporary:
        with stages("Load both models", None):
            first, second = load_model(float_model), load_model(artifact)
            _check_interface(first, second)
            float_path = _file(float_model, first, Path(temporary) / "float.onnx")
            artifact_path = _file(artifact, second, Path(temporary) / "artifact.onnx")
            dataset = open_data(
                data, input_specs(first), preprocessing=preprocessing, limit=samples, seed=seed, labels=labels
            )
        with dataset:
            scored = metric or default_metric(dataset, float_path, required=labels is not None)
            with stages("Compare in the engine", dataset.count()) as advance:
                measured = verify(
                    float_path=float_path,
                    artifact_path=artifact_path,
                    cleaned=None,
                    artifact=None,
                    plan=None,
                    sites=(),
                    feeds=dataset,
                    labels=dataset.labels,
                    metric=scored,
                    metric_name=metric_name(scored),
                    threads=threads,
                    seconds=measure_seconds,
                    advance=advance,
                )
            with stages("Compare layer by layer", None):
                feeds = [feed for feed, _ in zip(dataset, range(_LAYER_SAMPLES), strict=False)]
                layers = compare_layers(clean(first).model, second, feeds)
            planned = sum(
                operator.execution in {"static", "dynamic"} and operator.weights is not None
                for operator in inspect(second, engine=False).operators
            )
            return dataclasses.replace(measured, layers=layers, planned_integer=planned, warnings=dataset.warnings)


def compare_layers(
    cleaned: ir.Model, artifact: ir.Model, feeds: Sequence[Feed], *, threads: int = 0
) -> tuple[LayerQuality, ...]:
    """Compare every tensor that both graphs have.

    A tensor of the float graph is found again under its own name, or as the input of a QuantizeLinear; where that tool
    removed an activation function because the codes clip in the same way, the function's output is compared.

    Args:
        cleaned: The cleaned float model.
        artifact: The compressed model.
        feeds: The samples.
        threads: Threads of the engine; 0 takes all.

    Returns:
        One entry per tensor, in topological order.
    """
    rows = _rows(cleaned, artifact)
    if not rows:
        return ()
    exact_names = tuple(dict.fromkeys(row.tensor for row in rows))
    decoded_names = tuple(dict.fromkeys(row.decoded for row in rows))
    # Codes may leave the graph without disturbing the engine's fusions; a decoded tensor would.
    code_names = tuple(dict.fromkeys(row.codes for row in rows if row.codes is not None))
    with staged(with_outputs(cleaned, exact_names)) as source:
        reference = open_session(source, threads=threads)
    with staged(with_outputs(artifact, decoded_names)) as source:
        simulated = open_session(source, threads=threads, optimized=False)
    with staged(with_outputs(artifact, code_names)) as source:
        real = open_session(source, threads=threads)
    powers = np.zeros((len(rows), 3))  # signal, simulated noise, real noise
    comparable = [True] * len(rows)
    for feed in feeds:
        exact = dict(zip(exact_names, reference.run(feed, list(exact_names)), strict=True))
        decoded = dict(zip(decoded_names, simulated.run(feed, list(decoded_names)), strict=True))
        codes = dict(zip(code_names, real.run(feed, list(code_names)), strict=True)) if code_names else {}
        for index, row in enumerate(rows):
            wanted = exact[row.tensor].astype(np.float64)
            if decoded[row.decoded].shape != wanted.shape:
                comparable[index] = False  # another tensor of the same name
                continue
            error = decoded[row.decoded].astype(np.float64) - wanted
            powers[index, :2] += np.vdot(wanted, wanted), np.vdot(error, error)
            if row.codes is not None:
                error = (codes[row.codes].astype(np.float64) - row.zero_point) * row.scale - wanted
                powers[index, 2] += np.vdot(error, error)
    return tuple(
        LayerQuality(
            node=row.node,
            op_type=row.op_type,
            tensor=row.tensor,
            sqnr_real_db=sqnr_db(signal, real_noise) if row.codes is not None else None,
            sqnr_simulated_db=sqnr_db(signal, noise),
        )
        for row, (signal, noise, real_noise), same in zip(rows, powers.tolist(), comparable, strict=True)
        if same
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One tensor in both graphs; `scale` and `zero_point` are scalars and belong to `codes`."""

    node: str
    op_type: str
    tensor: str
    decoded: str
    codes: str | None = None
    scale: float = 1.0
    zero_point: float = 0.0


def _rows(cleaned: ir.Model, artifact: ir.Model) -> list[_Row]:
    named: dict[str, ir.Node] = {}
    reading: dict[str, ir.Node] = {}
    present: set[str] = set()
    for node in artifact.graph:
        present.update(value.name for value in node.outputs if value.name)
        if node.op_type == "QuantizeLinear" and node.inputs[0] is not None and not is_constant(node.inputs[0]):
            named[node.name or ""] = named[node.outputs[0].name or ""] = node
            reading.setdefault(node.inputs[0].name or "", node)
    rows: dict[str, _Row] = {}
    for node in cleaned.graph:
        for value in node.outputs:
            name = value.name or ""
            quantizer = named.get(f"{name}_QuantizeLinear") or named.get(abbreviated(f"{name}_codes"))
            if quantizer is None and name in reading:
                quantizer = reading[name]
                value = _absorbed(value, present)
            tensor = value.name or ""
            if tensor in rows or value.dtype is not ir.DataType.FLOAT:
                continue
            row = _coded(_root(node, quantizer), tensor, quantizer) if quantizer is not None else None
            if row is None and name == tensor and name in present:
                row = _Row(node=node.name or "", op_type=node.op_type, tensor=tensor, decoded=tensor)
            if row is not None:
                rows[tensor] = row
    return list(rows.values())


def _absorbed(value: ir.Value, present: set[str]) -> ir.Value:
    """Return what became of `value` behind the activation functions that the artifact no longer has."""
    while True:
        uses = tuple(value.uses())
        if len(uses) != 1 or uses[0].node.op_type not in _FUSED or uses[0].node.outputs[0].name in present:
            return value
        value = uses[0].node.outputs[0]


def _root(node: ir.Node, quantizer: ir.Node) -> ir.Node:
    """Return the operator whose codes these are, where the artifact has lost the activation function behind it."""
    written = quantizer.inputs[0].producer() if quantizer.inputs[0] is not None else None
    while node.op_type in _FUSED and (written is None or written.op_type != node.op_type):
        source = node.inputs[0]
        producer = source.producer() if source is not None else None
        if source is None or producer is None or len(source.uses()) != 1:
            break
        node = producer
    return node


def _coded(node: ir.Node, tensor: str, quantizer: ir.Node) -> _Row | None:
    """Return the row of a tensor that is quantized per tensor, `None` if its codes cannot be read back."""
    codes = quantizer.outputs[0]
    decoder = next((use.node for use in codes.uses() if use.node.op_type == "DequantizeLinear"), None)
    scale = constant_array(quantizer.inputs[1])
    zero = constant_array(quantizer.inputs[2]) if len(quantizer.inputs) > 2 else np.zeros(1)
    if decoder is None or not decoder.outputs[0].name or not codes.name or scale is None or zero is None:
        return None
    if scale.size != 1 or zero.size != 1:
        return None
    return _Row(
        node=node.name or "",
        op_type=node.op_type,
        tensor=tensor,
        decoded=decoder.outputs[0].name,
        codes=codes.name,
        scale=float(scale.reshape(-1)[0]),
        zero_point=float(zero.reshape(-1)[0]),
    )


def _file(source: object, loaded: ir.Model, path: Path) -> Path:
    if isinstance(source, (str, Path)):
        return Path(source)
    save_model(loaded, path)
    return path


def _check_interface(first: ir.Model, second: ir.Model) -> None:
    """Refuse two models that cannot be fed or read alike."""
    wanted = {spec.name: spec for spec in input_specs(first)}
    given = {spec.name: spec for spec in input_specs(second)}
    if set(wanted) != set(given):
        raise ModelError(
            f"the float model has the inputs {sorted(wanted)}, the artifact {sorted(given)}",
            remedy="compare two files of the same network",
        )
    for name, spec in wanted.items():
        if spec.dtype != given[name].dtype or len(spec.shape) != len(given[name].shape):
            raise ModelError(
                f"the input {spec} of the float model is {given[name]} in the artifact",
                cause="both are fed with the same samples",
                remedy="quantize with --io float to compare",
            )
    outputs = [[value.name for value in model.graph.outputs] for model in (first, second)]
    if outputs[0] != outputs[1]:
        raise ModelError(
            f"the float model has the outputs {outputs[0]}, the artifact {outputs[1]}",
            remedy="compare two files of the same network",
        )
