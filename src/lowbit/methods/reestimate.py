"""Re-estimation of what BatchNorms were folded into: coded layers get back the mean and spread that float ones have.

Measured layer by layer behind the coded layers before, so that what those changed on the way is made up for too. The
factor of a channel goes into its weight scale, codes stay as they are; the shift goes into its bias. A layer whose
outputs are not nearer to the float ones on held-out samples keeps what it had, or gets its means back alone.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from lowbit.formats import PerBlock, PerChannel
from lowbit.methods.weights import EncodedWeight, channel_axis, plain_codes
from lowbit.plan.packed import pack_floats, pack_steps
from lowbit.rounding.reestimation import restoring_affine
from lowbit.statistics.paired_moments import PairedMoments, affine_error, paired_init, paired_merge, paired_update

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.methods.coded_walk import Layer
    from lowbit.plan.plan import Plan, SitePlan
    from lowbit.runtime.session import Feed
    from lowbit.targets import Target

__all__ = ["reestimated", "reestimated_plan"]

_EVERY = 4
_FARTHEST = 127
_RESTORED = frozenset({"Conv", "MatMul", "Gemm"})


def reestimated_plan(
    model: ir.Model,
    plan: Plan,
    target: Target,
    feeds: Iterable[Feed],
    *,
    advance: Callable[[], None] = lambda: None,
) -> Plan:
    """Return a plan in which every layer with a bias has its means and spreads back, where that helps.

    Args:
        model: The cleaned float model.
        plan: What was decided, roundings included.
        target: Where the model will run.
        feeds: Calibration samples.
        advance: Called after every layer.

    Raises:
        ModelError: The graph has element types that PyTorch does not have.
    """
    # PyTorch takes a second to load, and nothing else here needs it.
    from lowbit.methods.coded_walk import walked

    return walked(model, plan, target, feeds, reestimated, advance=advance)


def reestimated(layer: Layer) -> SitePlan:
    """Return the entry of one layer with its means and spreads restored, if it is nearer to float with them."""
    site, entry = layer.site, layer.entry
    if site.op_type not in _RESTORED or site.bias is None or layer.bias is None:
        return entry
    axis = 1 if site.op_type == "Conv" else -1
    halves = [paired_init(channel_axis=axis), paired_init(channel_axis=axis)]
    for index, (exact, coded) in enumerate(layer.outputs()):
        held = int(index % _EVERY == _EVERY - 1)
        halves[held] = paired_update(halves[held], exact, coded)
    fit, held_out = halves[0], halves[1] if halves[1].count else halves[0]
    if not fit.count or not fit.squares.any():
        return entry
    before = affine_error(held_out).sum()
    tried = {restoring: affine_error(held_out, *_affine(fit, layer, restoring)[1:]).sum() for restoring in _KINDS}
    best = min(tried, key=lambda kind: float(tried[kind]))
    power = float(held_out.squares.sum()) / max(held_out.count, 1)
    texts = [f"{100 * np.sqrt(float(error) / max(power, 1e-300)):.2g} %" for error in (before, tried[best])]
    if tried[best] >= before:
        note = f"output error {texts[0]}, {best} not restored, where it is {texts[1]}"
        return dataclasses.replace(entry, notes=(*entry.notes, note))
    # It generalizes: what was held out may now take part.
    both = paired_merge(fit, held_out) if halves[1].count else fit
    changed, factor, shift = _affine(both, layer, best)
    bias = factor * layer.bias.astype(np.float64).reshape(-1) + shift
    note = f"output error {texts[0]} -> {texts[1]} by restoring {best}"
    return dataclasses.replace(
        changed, bias=pack_floats(bias.astype(np.float32)), input_mean=None, notes=(*entry.notes, note)
    )


_MEANS, _BOTH = "means", "means and spreads"
_KINDS = (_BOTH, _MEANS)


def _affine(seen: PairedMoments, layer: Layer, kind: str) -> tuple[SitePlan, NDArray[np.float64], NDArray[np.float64]]:
    """Return an entry with the factors in its scales, the factors that it really has, and the shifts that fit them."""
    factor = np.ones(seen.mean.shape)
    entry = layer.entry
    if kind == _BOTH:
        wanted, _ = restoring_affine(seen.mean, seen.deviation, seen.other_mean, seen.other_deviation)
        entry, factor = _scaled(layer, wanted.astype(np.float64))
    return entry, factor, seen.mean - factor * seen.other_mean


def _scaled(layer: Layer, factor: NDArray[np.float64]) -> tuple[SitePlan, NDArray[np.float64]]:
    """Return an entry whose scales have factors in them and whose codes are the same, and the factors that it took.

    What no scale of its own has, or a zero point, or codes that the kernel does not take at another scale, keeps 1.
    """
    site, entry, encoded = layer.site, layer.entry, layer.encoded
    ones = np.ones_like(factor)
    codes = plain_codes(site, encoded)
    movable = (
        codes is not None
        and site.weight is not None
        # What several layers share would be stored several times.
        and len(tuple(site.weight.uses())) == 1
        and encoded.beside is None
        and encoded.fmt.element.kind == "integer"
        and not encoded.parameters.zero_point.astype(np.float32).any()
        and encoded.fmt.symmetric
    )
    if not movable or codes is None:
        return entry, ones
    axis = channel_axis(site)
    for _ in range(_ROUNDS):
        scales = _times(axis, encoded, factor)
        if scales is None:
            return entry, ones
        nearest = layer.nearest(entry, scales)
        kept = np.isclose(nearest.parameters.scale, scales, rtol=1e-6, atol=0.0)
        base = plain_codes(site, nearest)
        assert base is not None
        far = np.abs(codes.astype(np.int16) - base) > _FARTHEST
        wrong = far.any(axis=0) | ~_by_channel(kept, encoded, axis)
        if not wrong.any():
            steps = (codes.astype(np.int16) - base).astype(np.int8)
            packed = pack_steps(steps, base)
            stored = pack_floats(nearest.parameters.scale.reshape(-1).astype(np.float32))
            return dataclasses.replace(entry, rounding=packed, scale=stored), factor
        factor = np.where(wrong, 1.0, factor)
    return entry, ones


_ROUNDS = 3


def _times(axis: int, encoded: EncodedWeight, factor: NDArray[np.float64]) -> NDArray[np.float32] | None:
    """Return the scales with a factor for every output channel; `None` if channels share one scale."""
    scale = encoded.parameters.scale
    match encoded.fmt.granularity:
        case PerChannel():
            return (scale.reshape(-1) * factor).astype(np.float32)
        case PerBlock():
            return (scale * (factor[:, None] if axis == 0 else factor)).astype(np.float32)
    return None


def _by_channel(kept: NDArray[np.bool_], encoded: EncodedWeight, axis: int) -> NDArray[np.bool_]:
    """Return of every channel whether all of its scales are as wanted."""
    if isinstance(encoded.fmt.granularity, PerBlock):
        return np.asarray(kept.all(axis=1 if axis == 0 else 0))
    return kept.reshape(-1)
