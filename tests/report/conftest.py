"""A plan and its measurements as a real EfficientNet-like run would give them, at any size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lowbit.plan.plan import ActivationPlan, Plan, SitePlan
from lowbit.plan.verification import (
    Latency,
    LayerQuality,
    MetricResult,
    OutputQuality,
    TensorHistogram,
    Verification,
)

if TYPE_CHECKING:
    from collections.abc import Callable

OPERATORS = ("Conv", "Conv", "Conv", "Add", "Conv", "MatMul", "Sigmoid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    plan: Plan
    verification: Verification
    histograms: tuple[TensorHistogram, ...]
    provenance: dict[str, str]


def make_site(index: int, rng: np.random.Generator) -> SitePlan:
    op_type = OPERATORS[index % len(OPERATORS)]
    node = f"/backbone/features.{index // 7}/block/{op_type.lower()}_{index}/{op_type}"
    float_us = float(rng.uniform(40, 400))
    if index == 0:
        return SitePlan(
            node=node,
            op_type="Conv",
            execution="float",
            reason="first layer loses in integers: 0.71× as fast as float here",
            predicted_float_us=412.0,
            predicted_us=412.0,
        )
    if op_type == "Sigmoid":
        return SitePlan(node=node, op_type=op_type, execution="float", reason="no integer kernel in this engine")
    if op_type == "Conv" and index % 14 == 4:
        ratio = rng.uniform(0.62, 0.79)
        return SitePlan(
            node=node,
            op_type=op_type,
            execution="float",
            reason=f"depthwise loses in integers: {ratio:.2f}× as fast as float here",
            predicted_float_us=float_us,
            predicted_us=float_us,
        )
    if op_type == "MatMul":
        return SitePlan(
            node=node,
            op_type=op_type,
            execution="dynamic",
            reason="range differs by more than 30× between samples",
            weights="int8:per-channel",
            activations="uint8",
            predicted_float_us=float_us,
            predicted_us=float_us / 1.9,
        )
    if op_type == "Add":
        return SitePlan(
            node=node,
            op_type=op_type,
            execution="static",
            reason="keeps its neighbours in integers",
            activations="uint8",
            predicted_float_us=float_us / 4,
            predicted_us=float_us / 6,
        )
    return SitePlan(
        node=node,
        op_type=op_type,
        execution="static",
        reason="integer kernel is predicted 1.94× as fast",
        weights="int8:per-channel",
        activations="uint8",
        predicted_float_us=float_us,
        predicted_us=float_us / 1.94,
        notes=(f"{index % 13} of 96 channels narrowed against saturation",) if index % 13 else (),
    )


def make_histogram(index: int, rng: np.random.Generator, bins: int) -> TensorHistogram:
    if index % 2:
        values = np.maximum(rng.normal(0.4, 1.4, 30_000), 0)
        high = float(np.quantile(values, 0.998))
        low, step = 0.0, high / 255
        tensor, kind, form = f"/backbone/features.{index}/relu_output", "activation", "uint8"
    else:
        values = rng.standard_t(5, 30_000) * 0.06
        high = float(np.abs(values).max())
        low, step = -high, high / (7 if index % 4 else 127)
        tensor, kind, form = f"backbone.features.{index}.weight", "weight", "int4:per-channel" if index % 4 else "int8"
    counts, edges = np.histogram(values, bins)
    return TensorHistogram(
        tensor=tensor,
        kind=kind,
        edges=edges,
        counts=counts.astype(np.int64),
        low=low,
        high=high,
        step=step,
        format=form,
    )


def make_account(*, sites: int = 60, histograms: int = 12, bins: int = 2048) -> Account:
    rng = np.random.default_rng(3)
    plans = tuple(make_site(index, rng) for index in range(sites))
    integer = [site for site in plans if site.execution in ("static", "dynamic")]
    layers = []
    level = 46.0
    for index, site in enumerate(plans):
        level = max(level - float(rng.uniform(0, 48 / sites)) + (90 / sites if site.op_type == "Add" else 0), 14.0)
        gap = 0.1 if index < sites // 2 else 2.9 + float(rng.uniform(-0.5, 0.5))
        layers.append(
            LayerQuality(
                node=site.node,
                op_type=site.op_type,
                tensor=f"{site.node}_output_0",
                sqnr_real_db=None if index % 9 == 5 else level - gap,
                sqnr_simulated_db=level,
            )
        )
    plan = Plan(
        target="onnxruntime-x86-avx2",
        method="static",
        model_sha256="9f2c" * 16,
        sites=plans,
        activations=(
            ActivationPlan(
                tensor="relu_output",
                format="uint8",
                scale=0.0235,
                zero_point=0,
                low=0.0,
                high=6.0,
                reason="mse over 100 samples",
            ),
        ),
        options={"calibration": "mse", "seed": 0},
        warnings=("Only 100 calibration samples: the ranges of 3 activations moved by more than 10 % between halves.",),
    )
    verification = Verification(
        engine="onnxruntime 1.32.0",
        samples=500,
        outputs=(
            OutputQuality(
                name="logits", sqnr_real_db=14.4, sqnr_simulated_db=17.1, max_error=1.83, top1_agreement=0.962
            ),
        ),
        layers=tuple(layers),
        float_bytes=18_600_000,
        artifact_bytes=4_930_000,
        latency=Latency(
            float_ms=9.204,
            artifact_ms=6.052,
            speedup=1.521,
            speedup_low=1.488,
            speedup_high=1.553,
            pairs=200,
            threads=1,
        ),
        float_peak_mb=61.3,
        artifact_peak_mb=38.9,
        kernels={"QLinearConv": 31, "QLinearAdd": 8, "Conv": 5, "Sigmoid": 8, "QuantizeLinear": 3, "MatMulInteger": 9},
        float_kernels={"Conv": 28, "FusedConv": 8, "Add": 8, "Sigmoid": 8, "MatMul": 9},
        integer_kernels=48,
        planned_integer=len(integer),
        unfused=(integer[-1].node, integer[-2].node) if len(integer) > 1 else (),
        metric=MetricResult(name="top-1 accuracy", float_value=0.884, artifact_value=0.868, samples=500),
        warnings=("The engine's kernels lose 2.7 dB against the simulation: saturation of u8×s8 products.",),
    )
    return Account(
        plan=plan,
        verification=verification,
        histograms=tuple(make_histogram(index, rng, bins) for index in range(histograms)),
        provenance={
            "lowbit": "0.1.0",
            "command": "lowbit quantize efficientnet-lite0.onnx --data calib/ --target host -o out.onnx",
            "seed": "0",
            "artifact sha256": "41d0" * 16,
            "date": "2026-11-22 21:47 UTC",
        },
    )


@pytest.fixture
def account() -> Account:
    return make_account()


@pytest.fixture(scope="session")
def build_account() -> Callable[..., Account]:
    return make_account
