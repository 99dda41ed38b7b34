"""Codes that were rounded so that their errors cancel at the output, as differences from rounding each to nearest.

The differences are part of the plan, so that applying it needs no data and gives the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.formats import parse_format
from lowbit.graph.entry_channels import padded_channels
from lowbit.methods.second_moments import second_moments
from lowbit.methods.weights import channel_axis, encode_weight, kernel_matrix, rerounded
from lowbit.plan.packed import pack_steps
from lowbit.rounding import CodeLimits, compensated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.methods.weights import EncodedWeight
    from lowbit.plan.plan import Plan
    from lowbit.plan.sites import Site
    from lowbit.rounding import RangeMethod
    from lowbit.runtime.session import Feed
    from lowbit.targets import Target

__all__ = ["roundings"]

# Deeper sums need more samples than a calibration has, and square tables of this many rows.
_DEEPEST = 2304
# What the second moments of all groups of a convolution may take, in numbers.
_MOST = 1 << 25


def roundings(
    model: ir.Model,
    sites: Sequence[Site],
    plan: Plan,
    target: Target,
    feeds: Iterable[Feed],
    *,
    seed: int = 0,
    centred: bool = True,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Round the weights of all static sites of a plan so that their errors cancel; see `lowbit.rounding.compensated`.

    Args:
        model: The cleaned float model.
        sites: Its sites.
        plan: Says which are static, in which formats and with which scales.
        target: Where the model will run; its kernels set the limits of pairs.
        feeds: Calibration samples.
        centred: Whether biases make up for the mean of the errors.
        seed: Seed of which rows of the inputs are looked at.
        advance: Called after every sample.

    Returns:
        By path, the differences from rounding to nearest, packed, for `SitePlan.rounding`.
    """
    entries = {entry.node: entry for entry in plan.sites}
    chosen = [site for site in sites if entries[site.path].execution == "static" and _fits(site, target)]
    if not chosen:
        return {}
    moments = second_moments(model, chosen, feeds, seed=seed, centred=centred, advance=advance)
    tensors = {tensor.tensor: tensor for tensor in plan.activations}
    method: RangeMethod = plan.options.get("weight_range", "minmax")
    found: dict[str, str] = {}
    for site in chosen:
        entry = entries[site.path]
        read = site.node.inputs[0]
        tensor = tensors.get((read.name or "") if read is not None else "")
        if entry.weights is None or tensor is None or site.path not in moments:
            continue
        encoded = encode_weight(
            site,
            parse_format(entry.weights),
            saturates=target.saturates and tensor.format.startswith("uint8"),
            input_scale=tensor.scale,
            method=method,
            by_tap=target.pairs == "tap",
        )
        if encoded.fmt.element.maximum > np.iinfo(np.int8).max or encoded.parameters.zero_point.any():
            continue
        steps = _steps(site, encoded, moments[site.path])
        if steps.any():
            found[site.path] = pack_steps(steps, kernel_matrix(site, encoded.codes.astype(np.int8)))
            rerounded(site, encoded, found[site.path])  # what is stored has to be legal
    return found


def _fits(site: Site, target: Target) -> bool:
    if site.op_type not in {"Conv", "MatMul", "Gemm"} or site.weight_index is None or site.subgraph:
        return False
    shape = site.weight_array().shape
    if site.op_type != "Conv":
        return len(shape) == 2 and shape[1 - channel_axis(site)] <= _DEEPEST
    depth = int(np.prod(shape[1:]))
    group = site.attribute("group", 1)
    padded = group == 1 and padded_channels(shape, target.depth_multiple) != shape[1]
    by_tap = target.saturates and target.pairs == "tap" and shape[1] % 2 == 1
    return not padded and not by_tap and depth <= _DEEPEST and group * depth * depth <= _MOST


def _steps(site: Site, encoded: EncodedWeight, moments: NDArray[np.float32]) -> NDArray[np.int8]:
    """Return by how many steps each code moves, `[K, N]` in the kernel's order."""
    weight = kernel_matrix(site, site.weight_array())
    codes = kernel_matrix(site, encoded.codes.astype(np.int8))
    scale = np.broadcast_to(np.asarray(encoded.parameters.scale, dtype=np.float32).reshape(-1), (weight.shape[1],))
    element = encoded.fmt.element
    paired = encoded.saturation is not None
    limits = CodeLimits(
        low=int(element.minimum) + encoded.fmt.narrow,
        high=int(element.maximum),
        # The largest sums of two codes of one sign that 255 times them keep within 16 bits.
        pair_low=-128 if paired else None,
        pair_high=128 if paired else None,
    )
    better = compensated(weight, codes, np.ascontiguousarray(scale), moments, limits)
    steps: NDArray[np.int8] = (better.astype(np.int16) - codes).astype(np.int8)
    return steps
