"""Changes of a recipe that answer the causes of bad layers, the most promising first."""

from __future__ import annotations

import dataclasses
import glob
from typing import TYPE_CHECKING, Any

from lowbit.formats import PerTensor, parse_format
from lowbit.methods.decide import with_granularity
from lowbit.plan.diagnosis import Remedy
from lowbit.plan.recipe import Recipe, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from lowbit.plan.diagnosis import CauseKind, DiagnosedLayer
    from lowbit.plan.sites import Site
    from lowbit.targets import Target

__all__ = ["amended", "remedies"]

_MATRICES = frozenset({"MatMul", "Gemm"})
_LEARNABLE = frozenset({"Conv", "MatMul", "Gemm"})
_OUTLIERS: frozenset[CauseKind] = frozenset({"outlier channel", "LayerNorm outliers"})
_RANGES: frozenset[CauseKind] = frozenset({*_OUTLIERS, "long tail"})
# What remains of everything after learning, and what is left in float costs time: both come after what is free.
_LEARNED, _EXCLUDED = 0.3, 0.25
_GUESSED = 0.4
# What outputs say of a range matters where codes are few; of 256 most ranges leave enough.
_BY_OUTPUTS, _BY_OUTPUTS_OF_FEW_BITS = 0.35, 0.9
_BYTE = 8
# Few outlier channels are outliers by their bias alone.
_ABSORBED = 0.2
_FEW_BITS = 4
# A layer that makes less of the noise is not worth its time in float.
_LOUD = 0.15
_MOST_EXCLUDED = 3
_PERCENTILE = 99.99
_LEAST_PROMISE = 0.02


def remedies(
    recipe: Recipe, target: Target, layers: Sequence[DiagnosedLayer], sites: Mapping[str, Site]
) -> tuple[Remedy, ...]:
    """Return what to try for the layers of a diagnosis, by what each is expected to take away.

    Args:
        recipe: The recipe that the layers come from.
        target: Where the model will run.
        layers: The quantized layers with their causes.
        sites: The sites of the model, by path.
    """
    candidates = [
        *_ranges(recipe, layers),
        *_weights(recipe, target, layers),
        *_scales(recipe, layers),
        *_at_run_time(layers, sites),
        *_learned(recipe, layers),
        *_excluded(layers),
    ]
    worth = [remedy for remedy in candidates if remedy.promise >= _LEAST_PROMISE]
    return tuple(sorted(worth, key=lambda remedy: -remedy.promise))


def amended(recipe: Recipe, remedy: Remedy) -> Recipe:
    """Return a recipe with a remedy in it."""
    changes: dict[str, Any] = dict(remedy.changes)
    for name in ("exclude", "rules"):
        if name in changes:
            present = getattr(recipe, name)
            changes[name] = (*present, *(item for item in changes[name] if item not in present))
    return dataclasses.replace(recipe, **changes)


def _ranges(recipe: Recipe, layers: Sequence[DiagnosedLayer]) -> Iterable[Remedy]:
    tail = _activation_noise(layers, lambda layer: _has(layer, frozenset({"long tail"})))
    static = _activation_noise(layers, lambda layer: layer.execution == "static")
    # Without a tail to be seen, another way to choose ranges is a guess.
    promise = max(tail, _GUESSED * static)
    clipped = _activation_noise(layers, lambda layer: _has(layer, frozenset({"clipped range"})))
    if recipe.calibration != "minmax":
        yield Remedy(name="calibration minmax", changes={"calibration": "minmax"}, promise=0.9 * clipped)
    if recipe.calibration != "output-mse":
        share = _BY_OUTPUTS_OF_FEW_BITS if _few_activation_bits(recipe) else _BY_OUTPUTS
        changes = {"calibration": "output-mse"}
        yield Remedy(name="calibration output-mse", changes=changes, promise=share * max(tail, static))
    if recipe.calibration not in {"auto", "mse", "output-mse"}:
        yield Remedy(name="calibration mse", changes={"calibration": "mse"}, promise=promise)
    else:
        percentile = {"calibration": "percentile", "percentile": _PERCENTILE}
        yield Remedy(name=f"calibration percentile {_PERCENTILE}", changes=percentile, promise=promise)


def _few_activation_bits(recipe: Recipe) -> bool:
    text = recipe.activations
    return text not in {None, "none", "dynamic"} and parse_format(str(text)).element.bits < _BYTE


def _weights(recipe: Recipe, target: Target, layers: Sequence[DiagnosedLayer]) -> Iterable[Remedy]:
    text = with_granularity(recipe.weights or target.weights, weight_only=recipe.method == "weight-only")
    fmt = parse_format(text)
    if fmt.element.kind != "integer":
        return
    noise = _weight_noise(layers, lambda _: True)
    coarse = _weight_noise(layers, lambda layer: _has(layer, frozenset({"coarse weights"})))
    if isinstance(fmt.granularity, PerTensor):
        channels = ":".join("per-channel" if word == "per-tensor" else word for word in text.split(":"))
        yield Remedy(name=f"weights {channels}", changes={"weights": channels}, promise=noise)
    if recipe.weight_range == "minmax":
        yield Remedy(name="weight_range mse", changes={"weight_range": "mse"}, promise=max(0.8 * coarse, 0.2 * noise))
    if not recipe.reestimate and not recipe.learns:
        promise = max(0.6 * coarse, 0.2 * noise)
        yield Remedy(name="reestimate", changes={"reestimate": True}, promise=promise)
    if recipe.rounding_inputs == "float" and recipe.rounding != "nearest" and not recipe.learns:
        promise = max(0.65 * coarse, 0.25 * noise)
        yield Remedy(name="rounding_inputs quantized", changes={"rounding_inputs": "quantized"}, promise=promise)
    if recipe.rounding in {"nearest", "compensated"}:
        few = fmt.element.bits <= _FEW_BITS
        yield Remedy(
            name="rounding gptq", changes={"rounding": "gptq"}, promise=max((0.7 if few else 0.3) * coarse, 0.2 * noise)
        )


def _scales(recipe: Recipe, layers: Sequence[DiagnosedLayer]) -> Iterable[Remedy]:
    if not recipe.equalize:
        spread = frozenset({*_OUTLIERS, "outlier weights"})
        promise = sum(layer.share for layer in layers if _has(layer, spread))
        yield Remedy(name="equalize", changes={"equalize": True}, promise=0.7 * promise)
    if not recipe.absorb_bias:
        promise = _activation_noise(layers, lambda layer: _has(layer, _OUTLIERS))
        yield Remedy(name="absorb_bias", changes={"absorb_bias": True}, promise=_ABSORBED * promise)
    if recipe.smooth == "none":
        promise = _activation_noise(layers, lambda layer: layer.op_type in _MATRICES and _has(layer, _OUTLIERS))
        yield Remedy(name="smooth smoothquant", changes={"smooth": "smoothquant"}, promise=0.9 * promise)
        stored = _weight_noise(layers, lambda layer: layer.op_type in _MATRICES and layer.execution == "weight-only")
        yield Remedy(name="smooth awq", changes={"smooth": "awq"}, promise=0.6 * stored)


def _at_run_time(layers: Sequence[DiagnosedLayer], sites: Mapping[str, Site]) -> Iterable[Remedy]:
    chosen = [
        layer
        for layer in layers
        if layer.execution == "static"
        and layer.share >= _LEAST_PROMISE
        and _has(layer, _RANGES)
        and layer.node in sites
        and sites[layer.node].weight_index is not None
        and sites[layer.node].allows("dynamic")
    ]
    if chosen:
        rules = tuple(Rule(pattern=glob.escape(layer.node), method="dynamic") for layer in chosen)
        promise = 0.6 * _activation_noise(chosen, lambda _: True)
        yield Remedy(name=f"dynamic ranges for {_named(chosen)}", changes={"rules": rules}, promise=promise)


def _learned(recipe: Recipe, layers: Sequence[DiagnosedLayer]) -> Iterable[Remedy]:
    if recipe.learns:
        return
    noise = sum(
        layer.share for layer in layers if layer.op_type in _LEARNABLE and layer.execution in {"static", "weight-only"}
    )
    yield Remedy(name="rounding learned", changes={"rounding": "learned"}, promise=_LEARNED * noise)


def _excluded(layers: Sequence[DiagnosedLayer]) -> Iterable[Remedy]:
    loud = [layer for layer in layers if layer.share >= _LOUD][:_MOST_EXCLUDED]
    for layer in loud:
        # A mask cannot be scaled, clipped or learned away.
        certain = _has(layer, frozenset({"Softmax mask"}))
        yield Remedy(
            name=f"exclude {layer.node}",
            changes={"exclude": (glob.escape(layer.node),)},
            promise=layer.share * (0.9 if certain else _EXCLUDED),
        )


def _has(layer: DiagnosedLayer, kinds: frozenset[CauseKind]) -> bool:
    return any(cause.kind in kinds for cause in layer.causes)


def _of_weights(layer: DiagnosedLayer) -> float:
    """Return the share of a layer's noise that its weights make; half where that is unknown."""
    if layer.execution == "weight-only":
        return 1.0
    return 0.5 if layer.weights_share is None else layer.weights_share


def _weight_noise(layers: Sequence[DiagnosedLayer], wanted: Callable[[DiagnosedLayer], bool]) -> float:
    return sum(layer.share * _of_weights(layer) for layer in layers if wanted(layer))


def _activation_noise(layers: Sequence[DiagnosedLayer], wanted: Callable[[DiagnosedLayer], bool]) -> float:
    return sum(layer.share * (1.0 - _of_weights(layer)) for layer in layers if wanted(layer))


def _named(layers: Sequence[DiagnosedLayer]) -> str:
    more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
    return f"{layers[0].node}{more}"
