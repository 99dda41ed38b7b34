"""Which scales to move from activations to weights: found on calibration samples, kept where held-out ones agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.formats import (
    Format,
    PerBlock,
    PerChannel,
    PerTensor,
    choose_parameters,
    dequantize,
    parse_format,
    quantize,
)
from lowbit.methods.decide import with_granularity
from lowbit.methods.migrate import absorber, readings
from lowbit.methods.rerounding import better_codes
from lowbit.methods.second_moments import moments_in_two
from lowbit.plan.packed import pack_floats
from lowbit.plan.plan import MigrationPlan
from lowbit.plan.sites import find_sites
from lowbit.rounding import CodeLimits, fitted_parameters, on_grid, output_errors, weight_range
from lowbit.rounding.migration import search_scales, smoothing_scales

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.methods.linear_layers import LinearLayer
    from lowbit.methods.migrate import Reading
    from lowbit.methods.rerounding import Kind
    from lowbit.methods.second_moments import Moments
    from lowbit.plan.recipe import Recipe, Rounding
    from lowbit.plan.sites import Site
    from lowbit.runtime.session import Feed
    from lowbit.targets import Target

__all__ = ["find_migrations", "layer_error"]

_SAMPLES = 64
_DEEPEST = 4096
_ALPHA = 0.5
# A Mul that is added has to be worth its time.
_WORTH = 0.98


def find_migrations(
    model: ir.Model,
    recipe: Recipe,
    target: Target,
    feeds: Iterable[Feed],
    *,
    advance: Callable[[], None] = lambda: None,
) -> tuple[tuple[MigrationPlan, ...], tuple[str, ...]]:
    """Find the scales that make the outputs of linear layers more exact in the recipe's formats.

    Args:
        model: The float model.
        recipe: Its `smooth` says how; its formats and `rounding` are what errors are measured with.
        target: Where the model will run.
        feeds: Calibration samples.
        advance: Called after every sample.

    Returns:
        What to move where, and what was left alone, with reasons in words.
    """
    found, refusals = readings(model)
    sites = {site.path: site for site in find_sites(model, target)}
    chosen: list[tuple[Reading, Site]] = []
    for reading in found:
        reason = _refusal(reading, recipe, sites)
        if reason:
            refusals.update({layer.name: reason for layer in reading.layers})
        else:
            chosen.append((reading, sites[reading.layers[0].name]))
    biased = {
        site.path
        for reading, site in chosen
        if recipe.bias_correction and all(_corrected(sites[layer.name]) for layer in reading.layers)
    }
    moments = moments_in_two(
        model,
        [site for _, site in chosen],
        feeds,
        samples=_SAMPLES,
        seed=recipe.seed,
        centred=frozenset(biased),
        advance=advance,
    )
    migrations = []
    for reading, site in chosen:
        seen = moments.pop(site.path, None)
        result = _migration(reading, recipe, target, seen) if seen is not None else "its inputs are always zero"
        if isinstance(result, str):
            refusals.update({layer.name: result for layer in reading.layers})
        else:
            migrations.append(result)
    done = tuple(
        f"scales moved from {each.tensor} into {', '.join(each.readers)}: {each.reason}" for each in migrations
    )
    return tuple(migrations), done + tuple(f"no scales moved into {name}: {why}" for name, why in refusals.items())


def _refusal(reading: Reading, recipe: Recipe, sites: dict[str, Site]) -> str:
    for layer in reading.layers:
        site = sites.get(layer.name)
        if site is None or site.subgraph:
            return "it is no operator of the main graph"
        rule = recipe.rule_for(site.path, site.op_type, site.weight.name if site.weight is not None else None)
        if rule.method == "float":
            return f"excluded by {rule.pattern!r}"
    if reading.layers[0].inputs > _DEEPEST:
        return f"sums of more than {_DEEPEST} products need more samples than a calibration has"
    return ""


def _corrected(site: Site) -> bool:
    return site.op_type == "Gemm" or site.bias is not None


def _migration(reading: Reading, recipe: Recipe, target: Target, seen: Moments) -> MigrationPlan | str:
    fmt = _weight_format(recipe, target)
    if fmt.element.kind != "integer":
        return f"weights of {fmt.element.name} keep their digits whatever their scale is"
    weights = [np.ascontiguousarray(_kn(layer), dtype=np.float32) for layer in reading.layers]
    coded = recipe.method != "weight-only" and recipe.activations != "none"

    def error(scales: NDArray[np.float32], moments: NDArray[np.float32], rounding: Rounding) -> float:
        # The moments of x / s: with them, errors of s W are errors of the outputs.
        inverse = (1 / scales).astype(np.float32)
        scaled = moments * inverse[:, None] * inverse
        total = 0.0
        for weight in weights:
            total += _weight_error(weight * scales[:, None], fmt, recipe, scaled, rounding)
            if coded:
                step = 2 * float((seen.largest[0] * inverse).max()) / 255
                total += step**2 / 12 * float(np.square(weight * scales[:, None]).sum())
        return total

    if recipe.smooth == "smoothquant":
        reach = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
        scales, alpha = smoothing_scales(seen.largest[0], reach, _ALPHA), _ALPHA
    else:
        scales, alpha = search_scales(seen.magnitude[0], lambda each: error(each, seen.fit, "nearest"))
    before, after = (error(each, seen.held, recipe.rounding) for each in (np.ones_like(scales), scales))
    power = sum(float(output_errors(w, np.zeros(w.shape, np.int8), 1.0, seen.held).sum()) for w in weights)
    shares = [100 * np.sqrt(max(each, 0.0) / power) if power > 0 else 0.0 for each in (before, after)]
    absorbed = absorber(reading)
    if after >= before * (1 if absorbed else _WORTH):
        return f"{recipe.smooth} does not help: output error {shares[0]:.2g} % -> {shares[1]:.2g} %"
    how = f"absorbed by {absorbed}" if absorbed else "by a Mul in front of them"
    return MigrationPlan(
        tensor=reading.value.name or "",
        readers=tuple(layer.name for layer in reading.layers),
        scales=pack_floats(scales),
        reason=f"output error {shares[0]:.2g} % -> {shares[1]:.2g} % by {recipe.smooth} at {alpha:g}, {how}",
    )


def layer_error(layer: LinearLayer, seen: Moments, recipe: Recipe, target: Target) -> tuple[float, float]:
    """Return the squared error of a MatMul's or Gemm's outputs in a recipe's formats, and their power.

    Args:
        layer: The layer, of one group.
        seen: Moments of what it reads.
        recipe: Its formats and `rounding`.
        target: Where the model will run.
    """
    weight = np.ascontiguousarray(_kn(layer), dtype=np.float32)
    fmt = _weight_format(recipe, target)
    if fmt.element.kind == "integer":
        error = _weight_error(weight, fmt, recipe, seen.held, recipe.rounding)
    else:
        decoded = _decoded(weight, fmt, recipe)
        error = float(output_errors(weight - decoded, np.zeros(weight.shape, np.int8), 1.0, seen.held).sum())
    if recipe.method != "weight-only" and recipe.activations != "none":
        step = 2 * float(seen.largest[0].max()) / 255
        error += step**2 / 12 * float(np.square(weight).sum())
    return error, float(output_errors(weight, np.zeros(weight.shape, np.int8), 1.0, seen.held).sum())


def _weight_format(recipe: Recipe, target: Target) -> Format:
    text = with_granularity(recipe.weights or target.weights, weight_only=recipe.method == "weight-only")
    return parse_format(text)


def _kn(layer: LinearLayer) -> NDArray[np.float64]:
    return layer.weight.T if layer.transposed else layer.weight


def _weight_error(
    weight: NDArray[np.float32], fmt: Format, recipe: Recipe, moments: NDArray[np.float32], rounding: Rounding
) -> float:
    """Return the squared error of the outputs, if a weight `[K, N]` is rounded in this format."""
    placed = _placed(weight, fmt)
    parameters = choose_parameters(*weight_range(weight, placed, recipe.weight_range), placed)
    codes = quantize(weight, parameters, placed).astype(np.int16)
    scale = on_grid(parameters.scale, weight.shape)
    zero_point = on_grid(parameters.zero_point.astype(np.float32), weight.shape)
    if rounding != "nearest":
        low, high = placed.code_range()
        limits = CodeLimits(low=int(low), high=int(high))
        # What is learned afterwards starts from GPTQ; AdaRound from codes that others judge.
        kind: Kind = "gptq" if rounding in {"gptq", "learned"} else "compensated"
        codes = better_codes(weight, codes, scale, zero_point, moments, limits, kind)
    return float(output_errors(weight, codes, scale, moments, zero_point).sum())


def _decoded(weight: NDArray[np.float32], fmt: Format, recipe: Recipe) -> NDArray[np.float32]:
    """Return a weight `[K, N]` rounded to nearest in any format."""
    placed = _placed(weight, fmt)
    parameters = fitted_parameters(weight, placed, recipe.weight_range)
    return dequantize(quantize(weight, parameters, placed), parameters, placed)


def _placed(weight: NDArray[np.float32], fmt: Format) -> Format:
    """Return the format with its granularity on the axes of `[K, N]`."""
    match fmt.granularity:
        case PerBlock(size=size) if len(weight) % size == 0:
            return Format(fmt.element, PerBlock(0, size), fmt.symmetric, fmt.narrow)
        case PerTensor():
            return fmt
    return Format(fmt.element, PerChannel(1), fmt.symmetric, fmt.narrow)
