"""Which rotations of a model pay: each is tried on calibration samples, and undone where errors do not become less."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from lowbit.methods.linear_layers import LinearLayer, linear_layer
from lowbit.methods.migrate import readings
from lowbit.methods.migration_search import layer_error
from lowbit.methods.residual_stream import streams
from lowbit.methods.rotate import apply_rotations, between_layers
from lowbit.methods.second_moments import moments_in_two
from lowbit.plan.plan import RotationPlan
from lowbit.plan.sites import find_sites

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx_ir as ir

    from lowbit.plan.recipe import Recipe
    from lowbit.runtime.session import Feed
    from lowbit.targets import Target

__all__ = ["find_rotations"]

Kind = Literal["stream", "layers", "matmul"]
_SAMPLES = 32
_DEEPEST = 4096
# What is added to the graph has to be worth its time.
_WORTH = {"stream": 0.99, "layers": 0.99, "matmul": 0.9}


def find_rotations(
    model: ir.Model, recipe: Recipe, target: Target, feeds: Iterable[Feed]
) -> tuple[tuple[RotationPlan, ...], tuple[str, ...]]:
    """Find the rotations that make the outputs of the layers they touch more exact in the recipe's formats.

    Args:
        model: The float model.
        recipe: Its `rotate` says whether MatMuls may be added; its formats and `rounding` are what errors are measured
            with, roundings that are learned by those of GPTQ.
        target: Where the model will run.
        feeds: Calibration samples, passed over twice for the residual stream, between layers and for MatMuls each.

    Returns:
        What to rotate, and what was left alone, with reasons in words.
    """
    found: list[RotationPlan] = []
    notes: list[str] = []
    current = model
    samples = [feed for _, feed in zip(range(_SAMPLES), feeds, strict=False)]
    kinds: tuple[Kind, ...] = ("stream", "layers", "matmul") if recipe.rotate == "online" else ("stream", "layers")
    for kind in kinds:
        candidates, refusals = _candidates(current, kind)
        notes += [f"residual stream {name} not rotated: {why}" for name, why in refusals.items()]
        if not candidates:
            continue
        plans = {tensor: RotationPlan(tensor=tensor, kind=kind, seed=recipe.seed, reason="") for tensor in candidates}
        rotated = apply_rotations(current, list(plans.values()))
        names = sorted({name for layers in candidates.values() for name in layers})
        before = _errors(current, names, recipe, target, samples)
        after = _errors(rotated, names, recipe, target, samples)
        kept = []
        for tensor, layers in candidates.items():
            measured = [name for name in layers if name in before and name in after]
            if not measured:
                notes.append(f"{tensor} not rotated: what its layers read is always zero, or too deep to measure")
                continue
            # As shares of the float output as it was: shifts that move into biases change the power.
            shares = [
                float(np.mean([table[name][0] / before[name][1] for name in measured])) for table in (before, after)
            ]
            text = f"output error {100 * np.sqrt(shares[0]):.2g} % -> {100 * np.sqrt(shares[1]):.2g} %"
            if shares[1] >= shares[0] * _WORTH[kind] ** 2:
                notes.append(f"{tensor} not rotated ({kind}): it does not help: {text}")
                continue
            how = "by a MatMul in front of them" if kind == "matmul" else "nothing added to the graph"
            reason = f"{text} over {len(measured)} layers, {how}"
            kept.append(RotationPlan(tensor=tensor, kind=kind, seed=recipe.seed, reason=reason))
            notes.append(f"rotated {tensor} ({kind}): {reason}")
        if kept:
            current = apply_rotations(current, kept)
            found += kept
    return tuple(found), tuple(notes)


def _candidates(model: ir.Model, kind: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the tensors that could be rotated with the names of the layers touched, and why streams could not."""
    if kind == "stream":
        found, refusals = streams(model)
        return {each.tensor: [layer.name for layer in each.layers] for each in found}, refusals
    if kind == "layers":
        pairs = between_layers(model)
        return {pair.first.output.name or "": [pair.first.name, pair.second.name] for pair in pairs}, {}
    return {
        each.value.name or "": [layer.name for layer in each.layers]
        for each in readings(model)[0]
        if not _rotated_already(each.value)
    }, {}


def _rotated_already(value: ir.Value) -> bool:
    """Whether a rotation's own MatMul reads or writes a tensor."""
    nodes = [value.producer(), *(use.node for use in value.uses())]
    return any(node is not None and (node.name or "").endswith("_rotated") for node in nodes)


def _errors(
    model: ir.Model, names: Sequence[str], recipe: Recipe, target: Target, samples: Sequence[Feed]
) -> dict[str, tuple[float, float]]:
    """Return the expected squared error of each layer's outputs, and their power."""
    sites = {site.path: site for site in find_sites(model, target)}
    chosen = []
    for name in names:
        layer = linear_layer(sites[name].node) if name in sites else ""
        if isinstance(layer, LinearLayer) and layer.inputs <= _DEEPEST and sites[name].op_type in {"MatMul", "Gemm"}:
            chosen.append((layer, sites[name]))
    moments = moments_in_two(model, [site for _, site in chosen], samples, samples=_SAMPLES, seed=recipe.seed)
    result: dict[str, tuple[float, float]] = {}
    for layer, site in chosen:
        seen = moments.pop(site.path, None)
        if seen is not None:
            error, power = layer_error(layer, seen, recipe, target)
            if power > 0:
                result[layer.name] = error, power
    return result
