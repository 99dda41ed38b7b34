"""Codes that were rounded so that their errors cancel at the output, as differences from rounding each to nearest.

The differences are part of the plan, so that applying it needs no data and gives the same bytes. Tables that a Gather
reads are rounded to nearest: their second moments are diagonal, how often each row is looked up, and then nearest is
the optimum already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowbit.formats import parse_format
from lowbit.graph.entry_channels import padded_channels
from lowbit.methods.second_moments import moments_in_two
from lowbit.methods.weights import channel_axis, encode_weight, kernel_matrix, plain_codes, rerounded
from lowbit.plan.packed import pack_steps
from lowbit.rounding import CodeLimits, compensated, gptq, legal_pairs, output_errors
from lowbit.rounding.shared_values import shares_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.data import Dataset
    from lowbit.methods.second_moments import Moments
    from lowbit.methods.weights import EncodedWeight
    from lowbit.plan.plan import Execution, Plan, SitePlan
    from lowbit.plan.recipe import Recipe
    from lowbit.plan.sites import Site
    from lowbit.rounding import RangeMethod
    from lowbit.runtime.session import Feed
    from lowbit.targets import Target

__all__ = [
    "Kind",
    "Rerounding",
    "better_codes",
    "blind",
    "first_rounding",
    "fits",
    "grids_of",
    "in_parts",
    "keeps_values",
    "limits_of",
    "rounding_of",
    "roundings",
    "share_text",
    "tells",
]

Kind = Literal["compensated", "gptq"]

# Square tables of this many rows are what moments take; deeper sums need more samples than a calibration has.
_DEEPEST = {"compensated": 2304, "gptq": 4096}
_SAMPLES = {"compensated": 32, "gptq": 128}
# What the second moments of all groups of a convolution may take, in numbers.
_MOST = 1 << 25
# What the moments of all sites that are measured in one pass may take, in numbers.
_AT_ONCE = 1 << 27
_FARTHEST = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerounding:
    """How the codes of one site are rounded.

    Attributes:
        execution: Execution of the site that they are for.
        weights: Weight format that they are for, as text.
        steps: Differences from rounding to nearest, packed, for `SitePlan.rounding`; `None` if nearest is kept.
        note: Error of the outputs before and after, in words.
    """

    execution: Execution
    weights: str
    steps: str | None
    note: str


def first_rounding(recipe: Recipe, target: Target) -> Kind:
    """Return how weights are rounded before anything is learned: by GPTQ at fewer than 8 bits, but for AdaRound."""
    if recipe.rounding == "adaround":
        return "compensated"
    if recipe.rounding == "compensated" or recipe.rounding == "gptq":
        return recipe.rounding
    few = parse_format(recipe.weights or target.weights).element.maximum < np.iinfo(np.int8).max
    return "gptq" if few else "compensated"


def rounding_of(
    known: Mapping[str, Rerounding], path: str, execution: Execution, weights: str | None
) -> tuple[str | None, tuple[str, ...]]:
    """Return the steps and notes of a site as it is planned: none, if it was rounded for something else."""
    found = known.get(path)
    if found is None or (found.execution, found.weights) != (execution, weights):
        return None, ()
    return found.steps, (found.note,)


def tells(data: Dataset | None) -> bool:
    """Whether data say what a model's tensors look like together: samples do, random numbers do not."""
    from lowbit.data.random_source import RandomSource

    return data is not None and data.name != RandomSource.name


def roundings(
    model: ir.Model,
    sites: Sequence[Site],
    plan: Plan,
    target: Target,
    feeds: Dataset | Iterable[Feed] | None,
    *,
    kind: Kind = "compensated",
    known: Mapping[str, Rerounding] | None = None,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Rerounding]:
    """Round the weights of a plan so that their errors cancel; see `lowbit.rounding.compensated` and `gptq`.

    Rounding to nearest is kept where it is better on samples that were held out; where it is not, all samples are
    rounded by.

    Args:
        model: The cleaned float model.
        sites: Its sites.
        plan: Says which are static or weight-only, in which formats and with which scales.
        target: Where the model will run; its kernels set the limits of pairs.
        feeds: Calibration samples, passed over more than once if the model is large; `None` if there are none.
        kind: How to round.
        known: What is known already.
        seed: Seed of which rows of the inputs are looked at.
        advance: Called after every sample.

    Returns:
        By path, what is known and what was found.
    """
    found = dict(known or {})
    entries = {entry.node: entry for entry in plan.sites}
    groups: dict[tuple[object, ...], list[Site]] = {}
    unseen = blind(feeds)
    for site in sites:
        entry = entries[site.path]
        if entry.weights is None or not fits(site, entry, target, kind):
            continue
        if site.path in found and (found[site.path].execution, found[site.path].weights) == (
            entry.execution,
            entry.weights,
        ):
            continue
        reason = ""
        if keeps_values(site, entry):
            reason = "its weights share values, which stay shared"
        elif feeds is None or (entry.execution == "weight-only" and unseen):
            reason = f"{kind} needs calibration data"
        if reason:
            found[site.path] = Rerounding(
                execution=entry.execution, weights=entry.weights, steps=None, note=f"rounded to nearest: {reason}"
            )
            continue
        # Sites that share a weight share its codes.
        groups.setdefault((site.weight, entry.execution, entry.weights), []).append(site)
    for chosen in in_parts(list(groups.values())):
        assert feeds is not None
        flat = [site for group in chosen for site in group]
        centred = frozenset(site.path for site in flat if entries[site.path].input_mean is not None)
        moments = moments_in_two(
            model, flat, feeds, samples=_SAMPLES[kind], seed=seed, centred=centred, advance=advance
        )
        for group in chosen:
            seen = [moments.pop(site.path) for site in group if site.path in moments]
            rerounding = _rerounding(group[0], entries[group[0].path], plan, target, seen, kind) if seen else None
            found.update({site.path: rerounding for site in group if rerounding is not None})
    return found


def keeps_values(site: Site, entry: SitePlan) -> bool:
    """Whether a weight has no more values than its format has codes, as clustering leaves it: they stay shared."""
    assert entry.weights is not None
    fmt = parse_format(entry.weights)
    if fmt.element.kind != "integer":
        return False
    low, high = fmt.code_range()
    return shares_values(site.weight_array(), channel_axis(site), int(high - low) + 1)


def blind(feeds: Dataset | Iterable[Feed] | None) -> bool:
    """Whether samples are known to say nothing."""
    from lowbit.data import Dataset

    return isinstance(feeds, Dataset) and not tells(feeds)


def in_parts(groups: Sequence[list[Site]]) -> Iterator[list[list[Site]]]:
    """Yield groups of sites whose moments fit into memory together."""
    part: list[list[Site]] = []
    taken = 0
    for group in groups:
        size = sum(_size(site) for site in group)
        if part and taken + size > _AT_ONCE:
            yield part
            part, taken = [], 0
        part.append(group)
        taken += size
    if part:
        yield part


def _size(site: Site) -> int:
    """Return how many numbers a site's moments are, all three."""
    weight = site.weight_array()
    group = site.attribute("group", 1) if site.op_type == "Conv" else 1
    depth = weight.size // weight.shape[channel_axis(site)]
    return 3 * int(group * depth * depth)


def fits(site: Site, entry: SitePlan, target: Target, kind: Kind) -> bool:
    """Whether a site's sums are ones whose moments can be measured and whose codes can be changed."""
    if entry.execution not in {"static", "weight-only"} or site.op_type not in {"Conv", "MatMul", "Gemm"}:
        return False
    if site.weight_index != 1 or site.subgraph or entry.weights is None:
        return False
    shape = site.weight_array().shape
    if site.op_type != "Conv":
        return len(shape) == 2 and shape[1 - channel_axis(site)] <= _DEEPEST[kind]
    depth = int(np.prod(shape[1:]))
    group = site.attribute("group", 1)
    if depth > _DEEPEST[kind] or group * depth * depth > _MOST:
        return False
    if entry.execution == "weight-only":
        return True
    padded = group == 1 and padded_channels(shape, target.depth_multiple) != shape[1]
    return not padded and not (target.saturates and target.pairs == "tap" and shape[1] % 2 == 1)


def _rerounding(
    site: Site, entry: SitePlan, plan: Plan, target: Target, seen: Sequence[Moments], kind: Kind
) -> Rerounding | None:
    """Round the weight of one site, or of all that share it; `None` if it has no integer codes."""
    encoded = _encoded(site, entry, plan, target)
    nearest = plain_codes(site, encoded) if encoded is not None else None
    if encoded is None or nearest is None:
        return None
    assert entry.weights is not None
    weight = kernel_matrix(site, site.weight_array())
    scale, zero_point = grids_of(site, encoded)
    fit = np.mean([moments.fit for moments in seen], axis=0)
    held = np.mean([moments.held for moments in seen], axis=0)
    both = np.mean([moments.both for moments in seen], axis=0)
    better = better_codes(weight, nearest, scale, zero_point, fit, limits_of(site, encoded), kind)
    before, after = (float(output_errors(weight, codes, scale, held, zero_point).sum()) for codes in (nearest, better))
    power = float(output_errors(weight, np.zeros_like(nearest), scale, held).sum())
    if after >= before:
        note = "" if (better == nearest).all() else f", where {kind} has {share_text(after, power)}"
        return Rerounding(
            execution=entry.execution,
            weights=entry.weights,
            steps=None,
            note=f"output error {share_text(before, power)}, rounded to nearest{note}",
        )
    # It generalizes: what was held out for this test may now take part.
    final = better_codes(weight, nearest, scale, zero_point, both, limits_of(site, encoded), kind)
    packed = pack_steps((final.astype(np.int16) - nearest).astype(np.int8), nearest)
    rerounded(site, encoded, packed)  # what is stored has to be legal
    return Rerounding(
        execution=entry.execution,
        weights=entry.weights,
        steps=packed,
        note=f"output error {share_text(before, power)} -> {share_text(after, power)} by {kind} rounding",
    )


def _encoded(site: Site, entry: SitePlan, plan: Plan, target: Target) -> EncodedWeight | None:
    """Return the weight rounded to nearest, exactly as applying the plan does."""
    assert entry.weights is not None
    fmt = parse_format(entry.weights)
    method: RangeMethod = plan.options.get("weight_range", "minmax")
    if fmt.element.kind != "integer":
        return None
    if entry.execution == "weight-only":
        return encode_weight(site, fmt, saturates=False, method=method)
    read = site.node.inputs[0]
    name = (read.name or "") if read is not None else ""
    tensor = next((tensor for tensor in plan.activations if tensor.tensor == name), None)
    if tensor is None:
        return None
    return encode_weight(
        site,
        fmt,
        saturates=target.saturates and tensor.format.startswith("uint8"),
        input_scale=tensor.scale,
        method=method,
        by_tap=target.pairs == "tap",
    )


def grids_of(site: Site, encoded: EncodedWeight) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the scale and the zero point of every weight, `[K, N]` in the kernel's order."""
    shape, granularity = encoded.codes.shape, encoded.fmt.granularity
    parameters = encoded.parameters.scale, encoded.parameters.zero_point.astype(np.float32)
    scale, zero_point = (np.broadcast_to(granularity.broadcast(each, shape), shape) for each in parameters)
    return kernel_matrix(site, scale), kernel_matrix(site, zero_point)


def limits_of(site: Site, encoded: EncodedWeight) -> CodeLimits:
    """Return what the codes of a weight may be: where it is exactly 0, as pruning leaves it, only that."""
    low, high = encoded.fmt.code_range()
    paired = encoded.saturation is not None
    zeros = kernel_matrix(site, site.weight_array() == 0)
    # The largest sums of two codes of one sign that 255 times them keep within 16 bits.
    return CodeLimits(
        low=int(low),
        high=int(high),
        pair_low=-128 if paired else None,
        pair_high=128 if paired else None,
        zeros=zeros if zeros.any() else None,
    )


def better_codes(
    weight: NDArray[np.float32],
    nearest: NDArray[Any],
    scale: NDArray[Any],
    zero_point: NDArray[Any],
    moments: NDArray[np.float32],
    limits: CodeLimits,
    kind: Kind,
) -> NDArray[Any]:
    """Return codes whose errors cancel, within all limits.

    Args:
        weight: `[K, N]` float32, in the kernel's order.
        nearest: `[K, N]` codes, each rounded to nearest.
        scale: `[K, N]`.
        zero_point: `[K, N]`.
        moments: `[G, K, K]`, `E[x x]` of the inputs of each group.
        limits: What codes may be.
        kind: How to round.
    """
    if kind == "compensated":
        return compensated(weight, nearest, scale, moments, limits, zero_point=zero_point)
    free = gptq(weight, scale, moments, limits, zero_point=zero_point)
    # Steps from nearest are stored in a byte.
    free = np.clip(free, nearest.astype(np.int16) - _FARTHEST, nearest.astype(np.int16) + _FARTHEST)
    legal = legal_pairs(free, nearest, limits)
    found = compensated(weight, legal, scale, moments, limits, zero_point=zero_point)
    if (legal == free).all():
        return found
    # Where limits of pairs took much of it back, the descent from nearest may end lower.
    other = compensated(weight, nearest, scale, moments, limits, zero_point=zero_point)
    errors = [output_errors(weight, codes, scale, moments, zero_point) for codes in (found, other)]
    return np.where(errors[0] <= errors[1], found, other)


def share_text(error: float, power: float) -> str:
    """Return an error of outputs as a percentage of their root mean square."""
    return f"{100 * np.sqrt(max(error, 0.0) / power):.2g} %" if power > 0 else "0 %"
