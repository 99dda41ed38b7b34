"""Scale and zero point of every statically quantized tensor, from what calibration saw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.formats import choose_parameters
from lowbit.graph.constants import constant_array
from lowbit.methods.apply import clip_bounds
from lowbit.plan.plan import ActivationPlan
from lowbit.plan.ranges import CodedTensor, coded_tensors, share_scales
from lowbit.statistics import Range, histogram_range

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowbit.formats import Format
    from lowbit.methods.calibrate import Calibration
    from lowbit.methods.decide import Decision
    from lowbit.plan.recipe import Recipe
    from lowbit.plan.sites import Site

__all__ = ["activation_plans"]

_STEP_MARGIN = 2.0


def activation_plans(
    sites: Sequence[Site], recipe: Recipe, decision: Decision, calibration: Calibration
) -> tuple[ActivationPlan, ...]:
    """Choose scale and zero point of every coded tensor."""
    tensors = [tensor for tensor in coded_tensors(sites, decision.executions) if constant_array(tensor.value) is None]
    ranges: dict[str, tuple[float, float]] = {}
    reasons: dict[str, str] = {}
    formats: dict[str, Format] = {}
    for tensor in tensors:
        producer, default = tensor.producer, decision.activations
        formats[tensor.name] = producer.written(default) if producer is not None else default
        ranges[tensor.name], reasons[tensor.name] = _range(tensor, recipe, formats[tensor.name], calibration)
    groups = share_scales(tensors, ranges)
    joined: dict[str, tuple[float, float]] = {}
    for tensor in tensors:
        root = groups[tensor.name]
        passive = (
            tensor.producer is not None
            and tensor.producer.support is not None
            and tensor.producer.support.role == "passive"
        )
        if passive and root != tensor.name:
            continue
        low, high = ranges[tensor.name]
        before = joined.get(root, (low, high))
        joined[root] = (min(low, before[0]), max(high, before[1]))
    entries = []
    for tensor in tensors:
        root = groups[tensor.name]
        fmt = formats[root]
        low, high = joined.get(root, ranges[root])
        parameters = choose_parameters(np.float32(low), np.float32(high), fmt)
        reason = reasons[tensor.name] if root == tensor.name else f"shares the scale of {root}"
        entries.append(
            ActivationPlan(
                tensor=tensor.name,
                format=str(fmt),
                scale=float(parameters.scale),
                zero_point=int(parameters.zero_point),
                low=low,
                high=high,
                reason=reason,
            )
        )
    return tuple(entries)


def _range(
    tensor: CodedTensor, recipe: Recipe, fmt: Format, calibration: Calibration
) -> tuple[tuple[float, float], str]:
    """Choose the range of one tensor: the method's, cut to what the operator can produce at all."""
    producer = tensor.producer
    if producer is not None and producer.support is not None and producer.support.output_range is not None:
        low, high = producer.support.output_range
        return (low, high), f"range of {producer.op_type}"
    method = "mse" if recipe.calibration == "auto" else recipe.calibration
    histogram = calibration.histograms[tensor.name]
    if producer is not None and producer.is_step:
        # Finer codes have room for rows that calibration has not seen, at half of their precision.
        reach = _STEP_MARGIN * max(abs(histogram.low), abs(histogram.high))
        return (-reach, reach), f"{_STEP_MARGIN:g} times the extremes of {calibration.samples} samples"
    codes = fmt.element.code_count if fmt.element.kind == "integer" else 2**fmt.element.bits
    note = ""
    chosen = calibration.ranges.get(tensor.name) if method == "output-mse" else None
    if method == "moving-average":
        found = calibration.averages[tensor.name]
    elif chosen is not None:
        found, note = Range.covering(chosen.low, chosen.high), f": {chosen.note}"
    else:
        # What no layer with a weight reads has no outputs to be judged by but itself.
        method = "mse" if method == "output-mse" else method
        found = histogram_range(
            histogram, method, codes=codes, symmetric=fmt.symmetric and fmt.element.signed, percentile=recipe.percentile
        )
    low, high = min(found.low, 0.0), max(found.high, 0.0)
    if producer is not None:
        for node in producer.fused:
            bottom, top = clip_bounds(node)
            low, high = max(low, min(bottom, 0.0)), min(high, max(top, 0.0))
    if low == high == 0.0:
        high = 1.0
    return (low, high), f"{method} over {calibration.samples} samples{note}"
