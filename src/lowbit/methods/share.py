"""Weight sharing: every weight becomes one of a few values, found by k-means and refined by gradients.

Han et al., Deep Compression, 2016, section 3. The result is still a float model, whose weights have few distinct
values: `lowbit.trainable(..., keep_clusters=True)` fine-tunes the values without parting what shares one,
`weights="codebook16"` stores indices and codebooks, and `grid="int8"` puts the values where int8 kernels have codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lowbit.data import input_specs, open_data
from lowbit.exceptions import RecipeError
from lowbit.graph import clean, load_model, save_model
from lowbit.methods.second_moments import second_moments
from lowbit.methods.training_plan import with_plain_weights
from lowbit.methods.weights import channel_axis, from_kernel_matrix
from lowbit.plan.recipe import matches
from lowbit.plan.sites import find_sites
from lowbit.rounding.codebook import STARTS, Start, learn_codebook
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

    from lowbit.data import Preprocessing
    from lowbit.plan.sites import Site

__all__ = ["Shared", "SharedWeight", "share"]

_ENTRIES = (2, 256)
_INT8 = 127
# What can be multiplied by the second moments of its inputs.
_WEIGHED = frozenset({"Conv", "MatMul", "Gemm"})
_SHARED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Gather"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedWeight:
    """What sharing did to one weight.

    Attributes:
        site: Path of the operator.
        groups: Number of codebooks.
        entries: Values of each, at most.
        error: Squared error over the weight's square.
        reason: Why it was left as it is; empty if it was not.
    """

    site: str
    groups: int
    entries: int
    error: float
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shared:
    """A float model whose weights share their values.

    Attributes:
        model: The model; give it to `lowbit.trainable`, `lowbit.qat` or `lowbit.quantize`.
        weights: What was done to every weight.
    """

    model: ir.Model
    weights: tuple[SharedWeight, ...]

    def save(self, path: str | Path) -> list[Path]:
        """Write the model as ONNX, atomically.

        Raises:
            OutputError: The file cannot be written; whatever stood there is untouched.
        """
        return save_model(self.model, path)


def share(
    model: str | Path | onnx.ModelProto | ir.Model,
    entries: int = 16,
    *,
    granularity: str | int = "tensor",
    start: Start = "best",
    data: Any = None,
    preprocessing: Preprocessing | None = None,
    keep_zeros: bool = True,
    grid: str = "float",
    exclude: Sequence[str] = (),
    target: str = "host",
    seed: int = 0,
) -> Shared:
    """Let the weights of a model share a few values each.

    Args:
        model: An ONNX model; never changed.
        entries: Values of a codebook, 2 to 256.
        granularity: What shares a codebook: a `tensor`, an output `channel`, or so many output channels.
        start: Where k-means starts: `linear`, `density`, `k-means++`, `exact`, or the `best` of them.
        data: Samples; weights then count by how much they matter at the output of their operator (the diagonal of its
            Hessian), and every weight the same without.
        preprocessing: What to do to images.
        keep_zeros: Whether weights that are exactly 0 stay so, with an entry of their own.
        grid: `int8` puts values on a grid of 255 steps for the whole weight, so that `weights="int8:per-tensor"` codes
            them without another error.
        exclude: Patterns of operators that are left alone; see `Rule.pattern`.
        target: A target, which says what belongs to an operator.
        seed: Of `k-means++`, and of the samples.

    Raises:
        RecipeError: An argument is out of its range, or a pattern matches nothing.
        ModelError: The model cannot be read.
        DataError: The data do not fit.
    """
    _check(entries, granularity, start, grid)
    found = find_target(target)
    result = with_plain_weights(clean(load_model(model)).model, found)
    sites = [site for site in find_sites(result, found) if site.op_type in _SHARED and site.weight_index is not None]
    for pattern in exclude:
        if not any(matches(pattern, site.path, site.op_type, _name(site)) for site in sites):
            raise RecipeError(f"the pattern {pattern!r} matches no operator with a weight")
    importance: dict[str, NDArray[np.float32]] = {}
    if data is not None:
        feeds = open_data(data, input_specs(result), preprocessing=preprocessing, limit=64, seed=seed)
        weighed = [site for site in sites if site.op_type in _WEIGHED and not site.subgraph]
        importance = {
            path: np.diagonal(moment, axis1=1, axis2=2)
            for path, moment in second_moments(result, weighed, feeds, seed=seed, centred=False).items()
        }
    rows: list[SharedWeight] = []
    done: set[str] = set()
    for site in sites:
        if _name(site) in done:
            continue
        done.add(_name(site))
        if any(matches(pattern, site.path, site.op_type, _name(site)) for pattern in exclude):
            rows.append(SharedWeight(site=site.path, groups=0, entries=0, error=0.0, reason="excluded"))
            continue
        rows.append(_shared(site, entries, granularity, start, importance.get(site.path), keep_zeros, grid, seed))
    return Shared(model=result, weights=tuple(rows))


def _check(entries: int, granularity: str | int, start: str, grid: str) -> None:
    if isinstance(entries, bool) or not _ENTRIES[0] <= entries <= _ENTRIES[1]:
        raise RecipeError(f"entries is {entries!r}", remedy=f"give a number from {_ENTRIES[0]} to {_ENTRIES[1]}")
    whole = isinstance(granularity, int) and not isinstance(granularity, bool) and granularity > 0
    if not whole and granularity not in {"tensor", "channel"}:
        raise RecipeError(f"granularity is {granularity!r}", remedy="give 'tensor', 'channel' or a number of channels")
    if start not in STARTS:
        raise RecipeError(f"start is {start!r}", remedy=f"use one of {', '.join(STARTS)}")
    if grid not in {"float", "int8"}:
        raise RecipeError(f"grid is {grid!r}", remedy="use float or int8")


def _name(site: Site) -> str:
    assert site.weight is not None
    return str(site.weight.name)


def _shared(
    site: Site,
    entries: int,
    granularity: str | int,
    start: Start,
    diagonal: NDArray[np.float32] | None,
    keep_zeros: bool,
    grid: str,
    seed: int,
) -> SharedWeight:
    weight = np.array(site.weight_array(), dtype=np.float32)
    axis = channel_axis(site)
    moved = np.moveaxis(weight, axis, 0)
    h = None if diagonal is None else np.moveaxis(_importance(site, diagonal), axis, 0)
    size = len(moved) if granularity == "tensor" else 1 if granularity == "channel" else int(granularity)
    out = np.empty(moved.shape, dtype=np.float32)
    count = 0
    for begin in range(0, len(moved), size):
        part = slice(begin, begin + size)
        out[part] = _nearest(moved[part], entries, start, None if h is None else h[part], keep_zeros, seed)
        count += 1
    if grid == "int8":
        step = np.float32(max(float(np.abs(out).max(initial=0.0)), 1e-30) / _INT8)
        out = np.rint(out / step).astype(np.float32) * step
    shared = np.ascontiguousarray(np.moveaxis(out, 0, axis))
    value = site.weight
    assert value is not None
    value.const_value = ir.tensor(shared, name=value.name)
    power = float(np.square(weight, dtype=np.float64).sum())
    error = float(np.square(shared.astype(np.float64) - weight).sum()) / max(power, 1e-30)
    return SharedWeight(site=site.path, groups=count, entries=min(entries, weight.size), error=error)


def _nearest(
    weight: NDArray[np.float32],
    entries: int,
    start: Start,
    importance: NDArray[np.float32] | None,
    keep_zeros: bool,
    seed: int,
) -> NDArray[np.float32]:
    flat = weight.reshape(-1)
    free = flat != 0 if keep_zeros else np.ones(flat.shape, dtype=bool)
    own = entries - (1 if not free.all() else 0)
    out = np.zeros_like(flat)
    values = flat[free]
    if values.size:
        h = None if importance is None else np.ascontiguousarray(importance).reshape(-1)[free][None]
        levels = learn_codebook(values[None], max(own, 1), h, start=start, seed=seed)[0]
        middles = levels[:-1] * np.float32(0.5) + levels[1:] * np.float32(0.5)
        out[free] = levels[np.searchsorted(middles, values)]
    return out.reshape(weight.shape)


def _importance(site: Site, diagonal: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `E[x²]` of what every weight is multiplied with, like the weight."""
    shape = site.weight_array().shape
    channels = shape[channel_axis(site)]
    matrix = np.repeat(diagonal, channels // len(diagonal), axis=0).T  # [K, N]
    return from_kernel_matrix(site, np.ascontiguousarray(matrix, dtype=np.float32))
