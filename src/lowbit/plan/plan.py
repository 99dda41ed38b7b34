"""The plan: what was decided for every site of a model, and why."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from lowbit.exceptions import RecipeError

__all__ = [
    "EXECUTIONS",
    "PLAN_VERSION",
    "AbsorptionPlan",
    "ActivationPlan",
    "Execution",
    "MigrationPlan",
    "Plan",
    "RotationPlan",
    "SitePlan",
]

PLAN_VERSION = 1

Execution = Literal["static", "dynamic", "weight-only", "half", "float"]
EXECUTIONS: tuple[Execution, ...] = ("static", "dynamic", "weight-only", "half", "float")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationPlan:
    """The quantization of one activation tensor: `real = (code - zero_point) * scale`.

    Attributes:
        tensor: Name of the tensor in the cleaned model.
        format: Format as text, e.g. `uint8` or `int8:symmetric`.
        scale: Scale, in units of the tensor.
        zero_point: Zero point, a code.
        low: Lowest value that the calibration kept, in units of the tensor.
        high: Highest value that the calibration kept.
        reason: How the range was chosen, e.g. `mse over 100 samples` or `range of Sigmoid`.
    """

    tensor: str
    format: str
    scale: float
    zero_point: int
    low: float
    high: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePlan:
    """What happens at one site, that is, at one operator of the cleaned model.

    Attributes:
        node: Name of the node in the cleaned model; nodes of subgraphs are written `outer/branch/inner`.
        op_type: ONNX operator, e.g. `Conv`.
        execution: How it runs: `static` (integer, ranges from calibration), `dynamic` (integer, ranges at run time),
            `weight-only` (weights decoded on the fly), `half` (float16 or bfloat16) or `float`.
        weights: Weight format as text, e.g. `int8:per-channel`; `None` if there is no compressed weight.
        activations: Activation format as text, e.g. `uint8`; `None` if activations stay in float.
        reason: Why, in words for the user.
        predicted_float_us: Predicted time of the float operator in microseconds, `None` if unknown.
        predicted_us: Predicted time as planned, without conversions at its edges, in microseconds.
        decode: Where a `weight-only` weight is decoded: `load` (once, at float speed) or `kernel` (block by block).
        input_mean: Mean of each input channel in calibration, packed by `lowbit.plan.packed`, if the bias is corrected.
        rounding: By how many steps codes differ from rounding each to nearest, packed likewise, if errors compensate.
        scale: Weight scales that were learned, packed float32 in the granularity of `weights`; by default they follow
            from the weights' range.
        bias: Bias that was learned, packed likewise.
        codebook: Levels and scales that a learned codebook has from data, packed likewise; without, it learns from the
            weight alone.
        outliers: Positions and values of the weights that are kept apart at 16 bits, packed likewise.
        low_rank: Two thin factors, at 16 bits, of what the codes lack, packed likewise.
        notes: What else happened here, e.g. `12 of 96 channels changed so that no pair of products saturates`.
    """

    node: str
    op_type: str
    execution: Execution
    reason: str
    weights: str | None = None
    activations: str | None = None
    predicted_float_us: float | None = None
    predicted_us: float | None = None
    decode: str | None = None
    input_mean: str | None = None
    rounding: str | None = None
    scale: str | None = None
    bias: str | None = None
    codebook: str | None = None
    outliers: str | None = None
    low_rank: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationPlan:
    """Scales that are moved from one tensor to the weights that read it: `x W = (x / s) (s W)`.

    Attributes:
        tensor: Name of the tensor in the cleaned model.
        readers: Names of the operators whose weights are multiplied.
        scales: Scale of every channel, positive, packed by `lowbit.plan.packed`.
        reason: What it gains, e.g. `output error 9 % -> 7 % by awq at 0.25, absorbed by LayerNormalization`.
    """

    tensor: str
    readers: tuple[str, ...]
    scales: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsorptionPlan:
    """A part of a layer's bias that is moved behind an activation function, into the layer that reads it.

    Attributes:
        layer: Name of the operator whose bias becomes smaller.
        reader: Name of the operator whose bias makes up for it.
        amounts: What each channel of the first loses, not negative, packed by `lowbit.plan.packed`.
        reason: What it gains, e.g. `bias of 3 of 64 channels, largest activation 9.1 -> 6.2, output error 2 % -> 1 %`.
    """

    layer: str
    reader: str
    amounts: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationPlan:
    """A rotation of the channels of one tensor: `x W = (x R) (Rᵀ W)`.

    Attributes:
        tensor: Name of the tensor in the cleaned model; of a residual stream, its first one that is normalized.
        kind: `stream` (a residual stream with all its writers and readers), `layers` (from one linear layer to the
            next, head by head) or `matmul` (a MatMul is added in front of the readers).
        seed: Seed of the rotation's signs.
        reason: What it gains, in words.
    """

    tensor: str
    kind: Literal["stream", "layers", "matmul"]
    seed: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Every decision about one model for one target; applying it again gives the same bytes.

    Attributes:
        target: Name of the target, e.g. `onnxruntime-x86-avx2`.
        method: `static`, `dynamic`, `weight-only`, `float16`, `bfloat16`, `float` or `mixed`.
        model_sha256: Digest of the cleaned float model, to refuse a plan made for another one.
        sites: One entry for every operator, in topological order.
        activations: One entry for every statically quantized tensor.
        options: The recipe's options that shaped the artifact (calibration, seed …), plain values.
        warnings: What the user should know before trusting the artifact.
        migrations: Scales that are moved before anything is rounded.
        rotations: Channels that are rotated before that.
        absorptions: Biases that are moved before that.
    """

    target: str
    method: str
    model_sha256: str
    sites: tuple[SitePlan, ...]
    activations: tuple[ActivationPlan, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    migrations: tuple[MigrationPlan, ...] = ()
    rotations: tuple[RotationPlan, ...] = ()
    absorptions: tuple[AbsorptionPlan, ...] = ()
    version: int = PLAN_VERSION

    def site(self, node: str) -> SitePlan:
        """Return the entry of the node named `node`.

        Raises:
            KeyError: There is no such node in the plan.
        """
        for site in self.sites:
            if site.node == node:
                return site
        raise KeyError(node)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as nested plain values, ready for YAML or JSON."""
        data = dataclasses.asdict(self)
        data["sites"] = [_without_defaults(site, SitePlan) for site in self.sites]
        data["activations"] = [dataclasses.asdict(tensor) for tensor in self.activations]
        data["warnings"] = list(self.warnings)
        moved = [{**dataclasses.asdict(each), "readers": list(each.readers)} for each in self.migrations]
        del data["migrations"]
        if moved:
            data["migrations"] = moved
        for key in ("rotations", "absorptions"):
            entries = [dataclasses.asdict(each) for each in getattr(self, key)]
            del data[key]
            if entries:
                data[key] = entries
        return {"version": data.pop("version"), **data}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        """Build a plan from what `to_dict` returned.

        Raises:
            RecipeError: The version is unknown, or a key is missing, unknown or of the wrong kind.
        """
        version = data.get("version") if isinstance(data, dict) else None
        if version != PLAN_VERSION:
            raise RecipeError(
                f"the plan has version {version!r}",
                cause=f"this lowbit reads version {PLAN_VERSION}",
                remedy="make the plan again with --save-plan",
            )
        try:
            sites = tuple(SitePlan(**{**site, "notes": tuple(site.get("notes", ()))}) for site in data["sites"])
            activations = tuple(ActivationPlan(**tensor) for tensor in data.get("activations", ()))
            migrations = tuple(
                MigrationPlan(**{**each, "readers": tuple(each["readers"])}) for each in data.get("migrations", ())
            )
            plan = cls(
                target=data["target"],
                method=data["method"],
                model_sha256=data["model_sha256"],
                sites=sites,
                activations=activations,
                options=dict(data.get("options", {})),
                warnings=tuple(data.get("warnings", ())),
                migrations=migrations,
                rotations=tuple(RotationPlan(**each) for each in data.get("rotations", ())),
                absorptions=tuple(AbsorptionPlan(**each) for each in data.get("absorptions", ())),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise RecipeError(
                "the plan is malformed", cause=str(error), remedy="make the plan again with --save-plan"
            ) from error
        for site in plan.sites:
            if site.execution not in EXECUTIONS:
                raise RecipeError(
                    f"site {site.node!r} of the plan has the execution {site.execution!r}",
                    remedy=f"use one of {', '.join(EXECUTIONS)}",
                )
        return plan


def _without_defaults(site: SitePlan, cls: type[SitePlan]) -> dict[str, Any]:
    """Return the fields of `site` that differ from their defaults, so that the YAML stays readable."""
    result: dict[str, Any] = {}
    for item in dataclasses.fields(cls):
        value = getattr(site, item.name)
        if item.default is dataclasses.MISSING or value != item.default:
            result[item.name] = list(value) if isinstance(value, tuple) else value
    return result
