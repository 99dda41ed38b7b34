"""The verb `inspect`: what an ONNX file contains, in which formats, and what is not quantized and why."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from lowbit.exceptions import EngineError, TargetError
from lowbit.graph import infer_shapes, load_model, model_size, serialize
from lowbit.graph.clean.names import name_nodes
from lowbit.methods.stored_formats import StoredFormats
from lowbit.plan.embedded import embedded_plan
from lowbit.plan.plan import Plan, SitePlan
from lowbit.plan.sites import Site, find_sites
from lowbit.runtime.kernels import INTEGER_KERNELS, read_kernels
from lowbit.runtime.session import engine_version
from lowbit.runtime.staging import staged
from lowbit.targets import TARGETS, Target, find_target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx

__all__ = ["Inspection", "Stored", "TensorInfo", "inspect"]

_UNEXPLAINED = "left in float"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """An input or output: name, element type and shape, a dimension of unknown size by its name or `?`."""

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None

    def __str__(self) -> str:
        """Return it as people write it, e.g. `x float32 [N, 3, 224, 224]`."""
        shape = "of any shape" if self.shape is None else f"[{', '.join(map(str, self.shape))}]"
        return f"{self.name} {self.dtype} {shape}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """All constant tensors of one storage type.

    Attributes:
        dtype: Storage type, e.g. `int8`.
        tensors: How many there are.
        elements: Their numbers in total.
        bytes: Their bytes in total, 4-bit types packed.
    """

    dtype: str
    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What one ONNX file contains.

    Attributes:
        source: File name, or `model`.
        bytes: Size on disk, external data included.
        opsets: Version of each operator domain; the standard one is `ai.onnx`.
        ir_version: Version of the file format.
        producer: Tool that wrote it, with its version.
        inputs: Inputs of the graph.
        outputs: Outputs of the graph.
        stored: Constant tensors by storage type, the largest first.
        operators: Every operator with its formats, as a site of a plan; those that only decode weights are left out.
        conversions: How many QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear of activations there are.
        plan: The plan that lowbit left in the file, if it did.
        engine: Engine and version.
        kernels: Operator counts after the engine's own optimization, `None` if the engine does not load the file.
        integer_kernels: How many of them compute in integers.
        refusal: Why the engine does not load the file, or an empty string.
    """

    source: str
    bytes: int
    opsets: Mapping[str, int]
    ir_version: int
    producer: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    stored: tuple[Stored, ...]
    operators: tuple[SitePlan, ...]
    conversions: Mapping[str, int] = field(default_factory=dict)
    plan: Plan | None = None
    engine: str = ""
    kernels: Mapping[str, int] | None = None
    integer_kernels: int = 0
    refusal: str = ""

    @property
    def parameters(self) -> int:
        """How many numbers the constant tensors hold in total."""
        return sum(stored.elements for stored in self.stored)

    @property
    def quantized(self) -> tuple[SitePlan, ...]:
        """The operators that are not in float."""
        return tuple(operator for operator in self.operators if operator.execution != "float")

    def as_plan(self) -> Plan:
        """Return the file's own plan or, where there is none, what the graph shows of it, for reports."""
        if self.plan is not None:
            return self.plan
        kinds = {operator.execution for operator in self.quantized if operator.weights is not None}
        method = kinds.pop() if len(kinds) == 1 else "mixed" if kinds else "float"
        return Plan(target="the engine", method=method, model_sha256="", sites=self.operators)


def inspect(
    model: str | Path | onnx.ModelProto | ir.Model, *, target: str | Target = "host", engine: bool = True
) -> Inspection:
    """Describe an ONNX file, whoever wrote it.

    Args:
        model: Path of an ONNX file, a `ModelProto` or an `onnx_ir.Model`.
        target: Where the reasons for what is in float come from.
        engine: Whether the engine is asked what it makes of the file.

    Raises:
        ModelError: The model cannot be read.
        TargetError: The target is unknown.
    """
    loaded = load_model(model)
    name_nodes(loaded)
    plan = embedded_plan(loaded)
    kernels: dict[str, int] | None = None
    integer, refusal = 0, ""
    if engine:
        try:
            if isinstance(model, (str, Path)):
                kernels = read_kernels(model).counts()
            else:
                with staged(loaded) as staged_model:
                    kernels = read_kernels(staged_model).counts()
            integer = sum(count for name, count in kernels.items() if name in INTEGER_KERNELS)
        except EngineError as error:
            refusal = error.cause or error.what
    graph = infer_shapes(loaded)
    formats = StoredFormats(graph)
    return Inspection(
        source=Path(model).name if isinstance(model, (str, Path)) else loaded.graph.name or "model",
        bytes=model_size(model) if isinstance(model, (str, Path)) else len(serialize(loaded)),
        opsets={domain or "ai.onnx": version for domain, version in loaded.opset_imports.items()},
        ir_version=loaded.ir_version,
        producer=" ".join(filter(None, (loaded.producer_name, loaded.producer_version))),
        inputs=tuple(_info(value) for value in loaded.graph.inputs if value.name not in loaded.graph.initializers),
        outputs=tuple(_info(value) for value in loaded.graph.outputs),
        stored=_stored(loaded),
        operators=_told(tuple(_operators(graph, formats, _target(target), plan))),
        conversions=formats.conversions(),
        plan=plan,
        engine=engine_version(),
        kernels=kernels,
        integer_kernels=integer,
        refusal=refusal,
    )


def _operators(graph: ir.Model, formats: StoredFormats, target: Target, plan: Plan | None) -> Iterator[SitePlan]:
    reasons = {site.node: site.reason for site in plan.sites} if plan is not None else {}
    for site in find_sites(graph, target):
        if formats.is_plumbing(site.node):
            continue
        execution, weights, activations = formats.of(site)
        yield SitePlan(
            node=site.path,
            op_type=site.op_type,
            execution=execution,
            weights=weights,
            activations=activations,
            reason=reasons.get(site.path) or _reason(site, execution, formats, target),
        )


def _told(operators: tuple[SitePlan, ...]) -> tuple[SitePlan, ...]:
    """Where nothing is quantized, say so instead of wondering about every operator."""
    if any(operator.execution != "float" for operator in operators):
        return operators
    return tuple(
        dataclasses.replace(operator, reason="nothing in this file is quantized")
        if operator.reason.startswith(_UNEXPLAINED)
        else operator
        for operator in operators
    )


def _reason(site: Site, execution: str, formats: StoredFormats, target: Target) -> str:
    """Say what the graph shows of why an operator is what it is."""
    if execution == "static":
        return "codes in, codes out" if formats.writes_codes(site) else "codes in, float out"
    if execution == "dynamic":
        return "its input is quantized at run time"
    if execution == "weight-only":
        return "weights stored small, activations in float"
    if execution == "half":
        return "computes in 16-bit floats"
    refusal = site.refusals.get("static")
    if refusal:
        return refusal
    weight = formats.has_weight(site)
    if formats.reads_codes(site):
        return "its input is quantized, its weight is not" if weight else "one of its inputs is not quantized"
    return f"{_UNEXPLAINED}, though {target.engine} has an integer kernel"


def _target(target: str | Target) -> Target:
    """Return the target; a machine that is none still gets the reasons of the first one."""
    try:
        return find_target(target)
    except TargetError:
        if target != "host":
            raise
        return next(iter(TARGETS.values()))


def _stored(model: ir.Model) -> tuple[Stored, ...]:
    rows: dict[str, list[int]] = {}
    for tensor in _tensors(model):
        row = rows.setdefault(tensor.dtype.name.lower(), [0, 0, 0])
        row[0] += 1
        row[1] += tensor.size
        row[2] += tensor.nbytes
    found = [
        Stored(dtype=_dtype(name), tensors=tensors, elements=elements, bytes=size)
        for name, (tensors, elements, size) in rows.items()
    ]
    return tuple(sorted(found, key=lambda stored: -stored.bytes))


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
    for graph in model.graphs():
        for node in graph:
            for attribute in node.attributes.values():
                if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()


def _info(value: ir.Value) -> TensorInfo:
    shape: tuple[int | str, ...] | None = None
    if value.shape is not None:
        shape = tuple(_size(dim) for dim in value.shape)
    return TensorInfo(
        name=value.name or "", dtype=_dtype(value.dtype.name.lower()) if value.dtype else "of any type", shape=shape
    )


def _size(dim: int | ir.SymbolicDim) -> int | str:
    """Return a dimension as people read it; some exporters write -1 for one that they leave open."""
    if isinstance(dim, int):
        return dim if dim >= 0 else "?"
    return dim.value or "?"


def _dtype(name: str) -> str:
    """Return an element type as NumPy spells it."""
    return {"float": "float32", "double": "float64"}.get(name, name)
