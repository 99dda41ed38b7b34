"""Verification: the artifact in its engine, beside the float model, on data that calibration has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from lowbit.graph import model_size
from lowbit.graph.editor import abbreviated
from lowbit.methods.interface import Interface, coded_interface
from lowbit.plan.verification import LayerQuality, MetricResult, OutputQuality, Verification
from lowbit.runtime.engines import kernels_in, open_in, version_of
from lowbit.runtime.memory import peak_memory_mb
from lowbit.runtime.session import Feed, available_threads, open_session
from lowbit.runtime.staging import staged, with_outputs
from lowbit.runtime.timing import Latency, compare_latency

if TYPE_CHECKING:
    from pathlib import Path

    from lowbit.plan.plan import Plan
    from lowbit.plan.sites import Site
    from lowbit.runtime.kernels import KernelGraph

__all__ = ["Metric", "sqnr_db", "unfused_sites", "verify"]

Metric = Callable[[list[list[NDArray[Any]]], NDArray[Any] | None], float]
"""The user's own metric: outputs (one list of arrays per feed) and labels (or `None`) to a number, higher is better."""

_INFINITE_DB = 200.0
_CLASSES = (2, 100_000)


@dataclass(slots=True)
class _Noise:
    """Running sums of signal and noise power of one tensor."""

    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0

    def add(self, reference: NDArray[Any], actual: NDArray[Any]) -> None:
        exact = np.asarray(reference, dtype=np.float64)
        error = np.asarray(actual, dtype=np.float64) - exact
        self.signal += float(np.vdot(exact, exact))
        self.noise += float(np.vdot(error, error))
        if error.size:
            self.largest = max(self.largest, float(np.abs(error).max()))

    def decibel(self) -> float:
        return sqnr_db(self.signal, self.noise)


def sqnr_db(signal: float, noise: float) -> float:
    """Return the signal to quantization noise ratio of two sums of squares, in decibel, within ±200."""
    if not math.isfinite(noise):
        return -_INFINITE_DB
    if noise == 0.0:
        return _INFINITE_DB
    if signal == 0.0:
        return -_INFINITE_DB
    return max(-_INFINITE_DB, min(_INFINITE_DB, 10.0 * math.log10(signal / noise)))


@dataclass(slots=True)
class _Output:
    real: _Noise = field(default_factory=_Noise)
    simulated: _Noise = field(default_factory=_Noise)
    agreeing: int = 0
    decisions: int = 0
    classes: bool = True

    def add(self, reference: NDArray[Any], real: NDArray[Any], simulated: NDArray[Any]) -> None:
        self.real.add(reference, real)
        self.simulated.add(reference, simulated)
        self.classes &= _looks_like_classes(reference)
        if self.classes:
            same = reference.argmax(axis=-1) == real.argmax(axis=-1)
            self.agreeing += int(same.sum())
            self.decisions += same.size


def verify(
    *,
    float_path: Path,
    artifact_path: Path,
    cleaned: ir.Model | None,
    artifact: ir.Model | None,
    plan: Plan | None,
    sites: Sequence[Site],
    feeds: Iterable[Feed],
    labels: NDArray[Any] | None = None,
    metric: Metric | None = None,
    metric_name: str = "metric",
    threads: int = 1,
    engine: str = "onnxruntime",
    latency_feed: Feed | None = None,
    batch: int | None = None,
    quality_threads: int = 0,
    layer_samples: int = 8,
    seconds: float = 2.0,
    memory: bool = True,
    advance: Callable[[], None] = lambda: None,
) -> Verification:
    """Measure an artifact beside its float model.

    Args:
        float_path: The user's float model.
        artifact_path: The artifact.
        cleaned: The cleaned float model, for the comparison layer by layer; `None` leaves that out.
        artifact: The artifact as a graph.
        plan: The artifact's plan; `None` if it is unknown.
        sites: The cleaned model's sites.
        feeds: Verification samples.
        labels: Labels of the samples, for `metric`.
        metric: The user's metric.
        metric_name: Its name.
        threads: Threads for latency and memory.
        engine: Engine that runs both models; the simulation is always ONNX Runtime's, with all optimizations off.
        latency_feed: What latency is measured with; the first sample by default.
        batch: Number of samples in it, for the record.
        quality_threads: Threads for everything else; 0 takes all.
        layer_samples: How many samples are compared layer by layer.
        seconds: How long latency is measured; 0 leaves it out.
        memory: Whether peak memory is measured.
        advance: Called after every sample.

    Raises:
        EngineError: A model does not load or run.
        DataError: There is no sample.
    """
    reference = open_in(engine, float_path, threads=quality_threads)
    real = open_in(engine, artifact_path, threads=quality_threads)
    simulated = open_session(artifact_path, threads=quality_threads, optimized=False)
    interface = coded_interface(simulated, plan)
    outputs = {name: _Output() for name in reference.outputs}
    kept: dict[str, list[list[NDArray[Any]]]] = {"float": [], "artifact": []}
    first: list[Feed] = []
    samples = 0
    for feed in feeds:
        if len(first) < max(layer_samples, 1):
            first.append(feed)
        coded = interface.encode(feed)
        wanted = reference.run(feed)
        got, modelled = (interface.decode(session.outputs, session.run(coded)) for session in (real, simulated))
        for name, one, two, three in zip(reference.outputs, wanted, got, modelled, strict=True):
            if np.issubdtype(one.dtype, np.number):
                outputs[name].add(one, two, three)
        if metric is not None:
            kept["float"].append(wanted)
            kept["artifact"].append(got)
        samples += 1
        advance()
    if not first:
        from lowbit.exceptions import DataError

        raise DataError("there are no samples to verify on", remedy="give test data, or more calibration data")
    layers: tuple[LayerQuality, ...] = ()
    if cleaned is not None and artifact is not None and plan is not None and layer_samples:
        layers = _layers(
            cleaned, artifact, plan, sites, first[:layer_samples], interface, quality_threads, engine == "onnxruntime"
        )
    kernels = kernels_in(engine, artifact_path, threads=threads)
    timed = latency_feed if latency_feed is not None else first[0]

    def measured(count: int, duration: float) -> Latency:
        return compare_latency(
            open_in(engine, float_path, threads=count),
            open_in(engine, artifact_path, threads=count),
            timed,
            interface.encode(timed),
            threads=count,
            batch=batch if batch is not None and batch > 1 else _batch(timed),
            seconds=duration,
        )

    latency = measured(threads, seconds) if seconds > 0 else None
    everything = available_threads()
    all_cores = measured(everything, seconds / 2) if seconds > 0 and everything != threads else None
    return Verification(
        engine=version_of(engine),
        samples=samples,
        outputs=tuple(
            _output_quality(name, output) for name, output in outputs.items() if output.real.signal or output.real.noise
        ),
        layers=layers,
        float_bytes=model_size(float_path),
        artifact_bytes=model_size(artifact_path),
        latency=latency,
        latency_all_cores=all_cores,
        float_peak_mb=peak_memory_mb(float_path, first[0], threads=threads, engine=engine) if memory else None,
        artifact_peak_mb=peak_memory_mb(artifact_path, interface.encode(first[0]), threads=threads, engine=engine)
        if memory
        else None,
        kernels=kernels.counts(),
        float_kernels=kernels_in(engine, float_path, threads=threads).counts(),
        integer_kernels=kernels.integer_count(),
        planned_integer=_planned(plan),
        unfused=unfused_sites(kernels, plan, sites) if plan is not None and engine == "onnxruntime" else (),
        metric=_metric(metric, metric_name, kept, labels, samples),
    )


def unfused_sites(kernels: KernelGraph, plan: Plan, sites: Sequence[Site]) -> tuple[str, ...]:
    """Return the paths of the sites that were planned in integers and that the engine computes in float.

    Only operators with weights are held to this: an Add or a Reshape between them costs little either way, and engines
    rename and merge those.
    """
    integer_names = {kernel.name for kernel in kernels.kernels if kernel.integer}
    written = {name for kernel in kernels.kernels if kernel.integer for name in kernel.outputs}
    missing = []
    planned = {site.node: site for site in plan.sites}
    for site in sites:
        entry = planned.get(site.path)
        if entry is None or entry.execution != "static" or site.weight_index is None:
            continue
        output = site.output.name or ""
        names = {site.node.name, site.bias_node.name if site.bias_node else None}
        tensors = {output, abbreviated(f"{output}_codes"), abbreviated(f"{output}_dequantized")}
        if not (integer_names & names or written & tensors or _prefixed(integer_names, site.node.name or "")):
            missing.append(site.path)
    return tuple(missing)


def _prefixed(names: set[str], name: str) -> bool:
    """Whether the engine derived one of `names` from `name`."""
    return bool(name) and any(other.startswith((name + "_", name + "/")) for other in names)


def _planned(plan: Plan | None) -> int:
    if plan is None:
        return 0
    return sum(site.execution in {"static", "dynamic"} and site.weights is not None for site in plan.sites)


def _metric(
    metric: Metric | None,
    name: str,
    kept: Mapping[str, list[list[NDArray[Any]]]],
    labels: NDArray[Any] | None,
    samples: int,
) -> MetricResult | None:
    if metric is None:
        return None
    return MetricResult(
        name=name,
        float_value=float(metric(kept["float"], labels)),
        artifact_value=float(metric(kept["artifact"], labels)),
        samples=samples,
    )


def _output_quality(name: str, output: _Output) -> OutputQuality:
    return OutputQuality(
        name=name,
        sqnr_real_db=output.real.decibel(),
        sqnr_simulated_db=output.simulated.decibel(),
        max_error=output.real.largest,
        top1_agreement=output.agreeing / output.decisions if output.classes and output.decisions else None,
    )


def _looks_like_classes(array: NDArray[Any]) -> bool:
    """Whether an output is `[batch, classes]` or `[batch, positions, classes]` of scores."""
    if array.ndim not in (2, 3) or not np.issubdtype(array.dtype, np.floating):
        return False
    classes: int = array.shape[-1]
    return _CLASSES[0] <= classes <= _CLASSES[1]


def _batch(feed: Feed) -> int:
    for array in feed.values():
        if array.ndim:
            return int(array.shape[0])
    return 1


def _layers(
    cleaned: ir.Model,
    artifact: ir.Model,
    plan: Plan,
    sites: Sequence[Site],
    feeds: Sequence[Feed],
    interface: Interface,
    threads: int,
    real_kernels: bool,
) -> tuple[LayerQuality, ...]:
    """Compare every tensor that a site writes and that both graphs still have."""
    coded = {tensor.tensor: tensor for tensor in plan.activations}
    quantizers = {node.outputs[0].name: node for node in artifact.graph if node.op_type == "QuantizeLinear"}
    present = {value.name for node in artifact.graph for value in node.outputs if value.name}
    planned = {site.node: site.execution for site in plan.sites}
    rows: list[tuple[Site, str, str, str | None]] = []  # site, tensor, simulated name, codes
    for site in sites:
        name = site.output.name or ""
        if site.subgraph or site.output.dtype not in (ir.DataType.FLOAT, None) or planned.get(site.path) == "float":
            continue
        quantizer = quantizers.get(abbreviated(f"{name}_codes")) if name in coded else None
        if quantizer is not None:
            codes = quantizer.outputs[0]
            clip = next((use.node for use in codes.uses() if use.node.op_type == "Clip"), None)
            codes = codes if clip is None else clip.outputs[0]
            decoder = next((use.node for use in codes.uses() if use.node.op_type == "DequantizeLinear"), None)
            if decoder is not None and decoder.outputs[0].name and codes.name:
                rows.append((site, name, decoder.outputs[0].name, codes.name))
        elif name in present and name not in interface.outputs:
            rows.append((site, name, name, None))
    if not rows:
        return ()
    names = tuple(dict.fromkeys(row[1] for row in rows))
    decoded = tuple(dict.fromkeys(row[2] for row in rows))
    # Codes may leave the graph without disturbing the engine's fusions; a decoded tensor would.
    codes_names = tuple(dict.fromkeys(row[3] for row in rows if row[3]))
    with staged(with_outputs(cleaned, names)) as source:
        reference = open_session(source, threads=threads)
    with staged(with_outputs(artifact, decoded)) as source:
        simulated = open_session(source, threads=threads, optimized=False)
    codes_names = codes_names if real_kernels else ()
    real = simulated
    if codes_names:
        with staged(with_outputs(artifact, codes_names)) as source:
            real = open_session(source, threads=threads)
    noise = {row[1]: (_Noise(), _Noise()) for row in rows}
    for feed in feeds:
        exact = dict(zip(names, reference.run(feed, list(names)), strict=True))
        taken = interface.encode(feed)
        modelled = dict(zip(decoded, simulated.run(taken, list(decoded)), strict=True))
        emitted = dict(zip(codes_names, real.run(taken, list(codes_names)), strict=True)) if codes_names else {}
        for _, name, decoded_name, codes_name in rows:
            noise[name][1].add(exact[name], modelled[decoded_name])
            if codes_name in emitted:
                tensor = coded[name]
                values = (emitted[codes_name].astype(np.float64) - tensor.zero_point) * tensor.scale
                noise[name][0].add(exact[name], values)
    return tuple(
        LayerQuality(
            node=site.path,
            op_type=site.op_type,
            tensor=name,
            sqnr_real_db=noise[name][0].decibel() if codes_name is not None and real_kernels else None,
            sqnr_simulated_db=noise[name][1].decibel(),
        )
        for site, name, _, codes_name in rows
    )
