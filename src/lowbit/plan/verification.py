"""What was measured of an artifact beside its float model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lowbit.runtime.timing import Latency

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Hazards",
    "Latency",
    "LayerQuality",
    "MetricResult",
    "OutputQuality",
    "Prediction",
    "SiteKernel",
    "SiteTime",
    "TensorHistogram",
    "Verification",
    "worst_db",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputQuality:
    """One graph output against the float model's, over all verification samples.

    Attributes:
        name: Name of the output.
        sqnr_real_db: Signal to quantization noise ratio with the engine's real kernels, in decibel.
        sqnr_simulated_db: The same with all graph optimizations off, that is, Q/DQ computed in float.
        max_error: Largest absolute difference from float, in units of the output.
        top1_agreement: Fraction of samples with the same arg max over the last axis; `None` if the output does not look
            like classes.
    """

    name: str
    sqnr_real_db: float
    sqnr_simulated_db: float
    max_error: float
    top1_agreement: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerQuality:
    """One inner tensor against float: accumulated error of everything up to and including the layer.

    Attributes:
        node: Name of the producing node in the cleaned model.
        op_type: Its operator.
        tensor: Name of the tensor in the cleaned model.
        sqnr_real_db: SQNR with the engine's real kernels, in decibel; `None` where a fusion hides the tensor.
        sqnr_simulated_db: SQNR with optimizations off.
    """

    node: str
    op_type: str
    tensor: str
    sqnr_real_db: float | None
    sqnr_simulated_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricResult:
    """The user's own metric on the same samples; higher is better."""

    name: str
    float_value: float
    artifact_value: float
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteTime:
    """Where the time of one operator goes, float beside artifact, in one inference of each.

    Attributes:
        node: Name of the operator in the cleaned model, or of the tensor that is converted.
        op_type: ONNX operator, or `conversion` for the QuantizeLinear, DequantizeLinear and layout changes of a tensor.
        execution: How it runs in the artifact: `static`, `dynamic`, `weight-only`, `half` or `float`.
        float_us: Measured time in the float model, in microseconds; 0 if another operator's kernel does its work.
        artifact_us: Measured time in the artifact, in microseconds; 0 likewise.
        predicted_us: What the planner expected of `artifact_us`; `None` if it did not know.
    """

    node: str
    op_type: str
    execution: str
    float_us: float
    artifact_us: float
    predicted_us: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteKernel:
    """What the engine runs for one operator that was planned in integers.

    Attributes:
        node: Name of the operator in the cleaned model.
        op_type: ONNX operator.
        execution: How it was planned: `static` or `dynamic`.
        kernel: The engine's operator that runs it, e.g. `QLinearConv`; empty if none was found.
        integer: Whether that computes in integers, or moves codes.
        cause: Why it does not, in words.
    """

    node: str
    op_type: str
    execution: str
    kernel: str
    integer: bool
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Predicted latency beside measured, in milliseconds, at the threads of `Verification.latency`.

    Attributes:
        source: Where the costs came from: `measured here`, `measured here, cached`, a file's name or `formulas`.
        float_ms: Predicted latency of the float model.
        artifact_ms: Predicted latency of the artifact, before it was built.
        corrected_ms: The same after the costs were corrected by what the built artifact took; `None` if they were not.
        machine_spread: Distance between the quartiles of repeated measurements over their median.
    """

    source: str
    float_ms: float
    artifact_ms: float
    corrected_ms: float | None = None
    machine_spread: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hazards:
    """What 8-bit products could have saturated in one layer, and what was done about it.

    Attributes:
        node: Name of the operator in the cleaned model.
        pairs: Pairs of products in the layer.
        hazards: How many of them could overflow the engine's 16-bit lane at the full weight range.
        channels: Output channels in the layer.
        rescaled: Channels made safe by a larger scale.
        recoded: Channels made safe by moving codes.
    """

    node: str
    pairs: int
    hazards: int
    channels: int
    rescaled: int
    recoded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHistogram:
    """A histogram of one weight or activation tensor with its quantization grid.

    Attributes:
        tensor: Name of the tensor.
        kind: `weight` or `activation`.
        edges: `[bins + 1] float64` bin edges, in units of the tensor.
        counts: `[bins] int64`.
        low: Lowest representable value of the grid; what lies below is clipped.
        high: Highest representable value of the grid.
        step: Distance between neighbouring grid values, in units of the tensor (the largest, where per channel).
        format: Format as text.
    """

    tensor: str
    kind: str
    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    low: float
    high: float
    step: float
    format: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The measured account of one artifact.

    Attributes:
        engine: Engine and version, e.g. `onnxruntime 1.32.0`.
        samples: Number of held-out samples used for quality.
        outputs: Quality per graph output.
        layers: Quality per inner tensor, in topological order.
        float_bytes: Size of the float model on disk in bytes, external data included.
        artifact_bytes: Size of the artifact on disk in bytes, external data included.
        latency: `None` if it was not measured on request.
        float_peak_mb: Peak resident memory of a process that loads and runs the float model, in MB (10^6 bytes), beyond
            that of the empty process; `None` if not measured.
        artifact_peak_mb: The same for the artifact.
        kernels: Operator counts of the artifact after the engine's own optimization, e.g. `{"QLinearConv": 52}`.
        float_kernels: The same for the float model.
        integer_kernels: How many of `kernels` compute in integers.
        planned_integer: How many sites the plan wanted in integers.
        unfused: Names of planned integer sites that the engine runs in float.
        unasked: Names of operators with weights that the plan leaves in float and that the engine has quantized.
        metric: The user's metric, if any.
        latency_all_cores: The same as `latency` with every processor; `None` if that is the same or was not measured.
        timeline: Where the time goes, operator by operator in execution order; empty if it was not measured.
        contract: What the engine runs for every operator that was planned in integers.
        prediction: Predicted latency beside measured; `None` if nothing was predicted.
        hazards: Layers in which 8-bit products could have saturated, and what was done; empty where nothing saturates.
        warnings: What the user should know, one sentence each.
    """

    engine: str
    samples: int
    outputs: tuple[OutputQuality, ...]
    layers: tuple[LayerQuality, ...]
    float_bytes: int
    artifact_bytes: int
    latency: Latency | None
    float_peak_mb: float | None
    artifact_peak_mb: float | None
    kernels: dict[str, int] = field(default_factory=dict)
    float_kernels: dict[str, int] = field(default_factory=dict)
    integer_kernels: int = 0
    planned_integer: int = 0
    unfused: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()
    metric: MetricResult | None = None
    latency_all_cores: Latency | None = None
    timeline: tuple[SiteTime, ...] = ()
    contract: tuple[SiteKernel, ...] = ()
    prediction: Prediction | None = None
    hazards: tuple[Hazards, ...] = ()
    warnings: tuple[str, ...] = ()


def worst_db(verification: Verification) -> float:
    """Return the SQNR of the output that loses most; without an output of numbers there is nothing to lose."""
    return min((output.sqnr_real_db for output in verification.outputs), default=math.inf)
