"""The weights of a plan as modules: with their mask, their codebook and the grid that they are rounded to."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch

from lowbit.exceptions import RecipeError
from lowbit.formats import Format, PerBlock, PerChannel, levels_of, parse_format
from lowbit.methods.training_sites import from_outside, has_trained_weight
from lowbit.methods.weights import EncodedWeight, channel_axis, encode_weight
from lowbit.training.clusters import Clusters
from lowbit.training.weight import Grid, TrainableWeight, WeightQuantizer

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.graph.editor import Editor
    from lowbit.methods.trainable import Origin
    from lowbit.plan.plan import SitePlan
    from lowbit.plan.sites import Site
    from lowbit.rounding import RangeMethod

__all__ = ["encoded_weight", "trainable_weights"]

# Codes that no pair of products saturates with: 255 · (64 + 64) < 2^15.
_SAFE = 64
# From so few bits on the least squared error chooses where a weight's range ends.
_FEW_BITS = 4
# Tensors with more distinct values than this are not clustered.
_MOST_ENTRIES = 256


def trainable_weights(
    origin: Origin,
    editor: Editor,
    sites: dict[str, Site],
    added: list[ir.Value],
    *,
    keep_zeros: bool,
    keep_clusters: bool,
) -> dict[str, TrainableWeight]:
    """Let the weights of a graph come in from outside, and return their modules by the graph's new inputs.

    Args:
        origin: What is trained.
        editor: Edits the graph.
        sites: The graph's sites, by path.
        added: Gets the new inputs.
        keep_zeros: Whether weights that are exactly 0 stay 0.
        keep_clusters: Whether weights that have the same value keep having the same.
    """
    entries = {entry.node: entry for entry in origin.plan.sites}
    made: dict[str, TrainableWeight] = {}
    weights: dict[str, TrainableWeight] = {}
    for path, site in sites.items():
        if not has_trained_weight(site):
            continue
        assert site.weight is not None
        assert site.weight_index is not None
        initializer = str(site.weight.name)
        if initializer not in made:
            entry = entries.get(path)
            array = np.array(site.weight_array(), dtype=np.float32)
            made[initializer] = _weight(origin, site, entry, array, keep_zeros=keep_zeros, keep_clusters=keep_clusters)
        value = from_outside(editor, f"{path}/weight", added)
        weights[str(value.name)] = made[initializer]
        site.node.replace_input_with(site.weight_index, value)
    return weights


def _weight(
    origin: Origin,
    site: Site,
    entry: SitePlan | None,
    array: NDArray[np.float32],
    *,
    keep_zeros: bool,
    keep_clusters: bool,
) -> TrainableWeight:
    weight = torch.from_numpy(array)
    zeros = keep_zeros and bool((array == 0).any())
    mask = torch.from_numpy((array != 0).astype(np.float32)) if zeros else None
    fmt = parse_format(entry.weights) if entry is not None and entry.weights is not None else None
    if fmt is not None and fmt.element.learned:
        assert entry is not None
        learned = _codebook(encoded_weight(site, entry), weight, zeros=zeros, soft=origin.soft)
        return TrainableWeight(weight, clusters=learned, mask=mask)
    quantizer = None
    if fmt is not None and entry is not None and entry.execution in {"static", "weight-only"} and _rounds(fmt):
        quantizer = WeightQuantizer(_grid(origin, site, entry))
    clusters = _found_clusters(weight, channel_axis(site), origin.soft) if keep_clusters else None
    return TrainableWeight(weight, quantizer=quantizer, clusters=clusters, mask=mask)


def _rounds(fmt: Format) -> bool:
    return not (fmt.element.kind == "float" and fmt.element.bits >= 16)


def encoded_weight(site: Site, entry: SitePlan) -> EncodedWeight:
    """Return the weight of a site as the codes that training starts from."""
    assert entry.weights is not None
    fmt = parse_format(entry.weights)
    method: RangeMethod = "mse" if fmt.element.bits <= _FEW_BITS and fmt.element.kind == "integer" else "minmax"
    return encode_weight(site, fmt, saturates=False, method=method)


def _grid(origin: Origin, site: Site, entry: SitePlan) -> Grid:
    """Return the grid that a weight starts with."""
    encoded = encoded_weight(site, entry)
    fmt, scale = encoded.fmt, np.array(encoded.parameters.scale, dtype=np.float32)
    shape = site.weight_array().shape
    if not fmt.symmetric or np.asarray(encoded.parameters.zero_point).astype(np.float32).any():
        raise RecipeError(
            f"weights of {site.path!r} are {fmt}",
            cause="weights are trained on grids that mirror around 0",
            remedy="use a signed format, e.g. int8 or int4",
        )
    spread = functools.partial(_spread, fmt, tuple(shape))
    if fmt.element.kind == "codebook" or fmt.element.kind == "float":
        levels = torch.from_numpy(_levels(fmt))
        return Grid(scale=torch.from_numpy(scale), kind="levels", low=0, high=0, spread=spread, levels=levels)
    low, high = fmt.code_range()
    if site.path in origin.binary:
        scale = _mean_magnitude(site.weight_array(), fmt, scale.shape)
        return Grid(scale=torch.from_numpy(scale), kind="signs", low=-1, high=1, spread=spread)
    if origin.target.saturates and entry.execution == "static" and high > _SAFE:
        # What is trained has to be what the engine computes, so that nothing may be left to repair afterwards.
        scale = scale * np.float32(high / _SAFE)
        low, high = -_SAFE, _SAFE
    return Grid(scale=torch.from_numpy(scale), kind="integer", low=low, high=high, spread=spread)


def _levels(fmt: Format) -> NDArray[np.float32]:
    if fmt.element.kind == "codebook":
        return levels_of(fmt, None)
    codes = np.arange(2**fmt.element.bits, dtype=np.uint8).view(fmt.element.dtype).astype(np.float32)
    return np.unique(codes[np.isfinite(codes)])


def _mean_magnitude(weight: NDArray[np.float32], fmt: Format, shape: tuple[int, ...]) -> NDArray[np.float32]:
    match fmt.granularity:
        case PerChannel(axis=axis):
            others = tuple(index for index in range(weight.ndim) if index != axis % weight.ndim)
            found = np.abs(weight).mean(axis=others)
        case PerBlock(axis=axis, size=size):
            moved = np.moveaxis(np.abs(weight), axis, -1)
            found = np.moveaxis(moved.reshape(*moved.shape[:-1], -1, size).mean(axis=-1), -1, axis)
        case _:
            found = np.abs(weight).mean()
    return np.maximum(np.asarray(found, dtype=np.float32), np.float32(1e-8)).reshape(shape)


def _spread(fmt: Format, shape: tuple[int, ...], tensor: torch.Tensor) -> torch.Tensor:
    """Broadcast what is shaped like a scale to a weight."""
    match fmt.granularity:
        case PerChannel(axis=axis):
            return tensor.reshape([-1 if index == axis % len(shape) else 1 for index in range(len(shape))])
        case PerBlock(axis=axis, size=size):
            return tensor.repeat_interleave(size, dim=axis)
    return tensor


def _codebook(encoded: EncodedWeight, weight: torch.Tensor, *, zeros: bool, soft: float) -> Clusters:
    """Return the codebook of a format that learns its levels, with an entry at 0 if zeros are to stay."""
    fmt, parameters = encoded.fmt, encoded.parameters
    levels = levels_of(fmt, parameters.levels)
    entries = np.array(np.atleast_2d(levels), dtype=np.float32)
    if zeros:
        entries[np.arange(len(entries)), np.abs(entries).argmin(axis=1)] = 0.0
    scale = np.array(parameters.scale, dtype=np.float32)
    scaled = bool((scale != 1.0).any())
    spread = functools.partial(_spread, fmt, tuple(weight.shape))
    shape = [1] * weight.ndim
    if levels.ndim > 1 and isinstance(fmt.granularity, PerChannel):
        shape[fmt.granularity.axis] = len(entries)
    return Clusters(
        weight / spread(torch.from_numpy(scale)) if scaled else weight,
        torch.from_numpy(entries),
        torch.arange(len(entries)).reshape(shape),
        scale=torch.from_numpy(scale) if scaled else None,
        spread=spread if scaled else None,
        soft=soft,
        zero=zeros,
    )


def _found_clusters(weight: torch.Tensor, axis: int, soft: float) -> Clusters | None:
    """Return the codebooks of a weight that shares its values already; `None` if it has too many of its own.

    They are of the whole weight or, where that has too many values, of every channel.
    """
    values = torch.unique(weight)
    if len(values) <= min(_MOST_ENTRIES, max(weight.numel() // 2, 1)):
        return Clusters(weight, values[None], torch.zeros([1] * weight.ndim, dtype=torch.int64), soft=soft)
    rows = [torch.unique(row) for row in weight.movedim(axis, 0)]
    longest = max(len(row) for row in rows)
    if longest > min(_MOST_ENTRIES, max(weight.numel() // len(rows) // 2, 1)):
        return None
    entries = torch.stack([torch.cat([row, row[-1:].expand(longest - len(row))]) for row in rows])
    shape = [1] * weight.ndim
    shape[axis] = len(rows)
    return Clusters(weight, entries, torch.arange(len(rows)).reshape(shape), soft=soft)
