"""What the inputs of weighted operators look like together: their second moments, in the order that kernels sum."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from lowbit.runtime.session import open_session
from lowbit.runtime.staging import staged, with_outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.plan.sites import Site
    from lowbit.runtime.session import Feed

__all__ = ["Moments", "input_rows", "moments_in_two", "second_moments"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """What a site's inputs look like together, in samples to round by and in others to check the result.

    Attributes:
        fit: `[G, K, K]` float32, shrunk towards the diagonal as far as the rows are few.
        held: `[G, K, K]` float32 of the samples that were held out; `fit` where there are too few samples to part.
        both: `[G, K, K]` float32 of all samples, shrunk likewise: to round by in the end.
        magnitude: `[G, K]` float64, mean magnitude of every input.
        largest: `[G, K]` float32, its largest magnitude.
    """

    fit: NDArray[np.float32]
    held: NDArray[np.float32]
    both: NDArray[np.float32]
    magnitude: NDArray[np.float64]
    largest: NDArray[np.float32]


def second_moments(
    model: ir.Model,
    sites: Sequence[Site],
    feeds: Iterable[Feed],
    *,
    samples: int = 32,
    rows: int = 128,
    seed: int = 0,
    centred: bool = True,
    threads: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, NDArray[np.float32]]:
    """Measure `E[x x]` of what every site sums over, in the float model.

    Args:
        model: The cleaned float model.
        sites: Sites of Conv, MatMul or Gemm in the main graph.
        feeds: Samples; the first `samples` of them are used.
        samples: How many samples at most.
        rows: How many sums of a sample at most, picked at random.
        seed: Seed of the choice.
        centred: Whether the mean is taken away, so that the result is the covariance.
        threads: Threads of the engine; 0 takes all.
        advance: Called after every sample.

    Returns:
        By path, `[G, K, K]` float32 for the G groups of a convolution (1 for all others), shrunk towards the diagonal
        as far as the rows are few. Sites whose inputs are all zero, or so large that their squares overflow, are left
        out.

    Raises:
        EngineError: The engine cannot run the model.
    """
    names = frozenset(site.path for site in sites) if centred else frozenset()
    found = moments_in_two(
        model,
        sites,
        feeds,
        samples=samples,
        rows=rows,
        seed=seed,
        centred=names,
        hold_out=False,
        threads=threads,
        advance=advance,
    )
    return {path: moments.fit for path, moments in found.items()}


def moments_in_two(
    model: ir.Model,
    sites: Sequence[Site],
    feeds: Iterable[Feed],
    *,
    samples: int = 32,
    rows: int = 128,
    seed: int = 0,
    centred: frozenset[str] = frozenset(),
    hold_out: bool = True,
    threads: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Moments]:
    """Measure `E[x x]` as `second_moments`, with every fourth sample held out.

    Args:
        model: The cleaned float model.
        sites: Sites of Conv, MatMul or Gemm in the main graph.
        feeds: Samples; the first `samples` of them are used.
        samples: How many samples at most.
        rows: How many sums of a sample at most, picked at random.
        seed: Seed of the choice.
        centred: Paths of the sites whose mean is taken away.
        hold_out: Whether samples are held out at all.
        threads: Threads of the engine; 0 takes all.
        advance: Called after every sample.

    Returns:
        By path; sites are left out as `second_moments` does.

    Raises:
        EngineError: The engine cannot run the model.
    """
    inputs = {value.name for value in model.graph.inputs}
    names = dict.fromkeys(_read(site) for site in sites)
    wanted = tuple(name for name in names if name not in inputs)
    with staged(with_outputs(model, wanted)) as source:
        session = open_session(source, threads=threads)
    generator = np.random.default_rng(seed)
    fit: dict[str, _Sum] = {site.path: _Sum() for site in sites}
    held: dict[str, _Sum] = {site.path: _Sum() for site in sites}
    for index, feed in enumerate(islice(feeds, samples)):
        arrays = dict(zip(wanted, session.run(feed, list(wanted)) if wanted else [], strict=True))
        arrays.update({name: array for name, array in feed.items() if name in names})
        sums = held if hold_out and index % _EVERY == _EVERY - 1 else fit
        for site in sites:
            sums[site.path].add(input_rows(site, arrays[_read(site)], rows, generator))
        advance()
    result = {}
    for path, total in fit.items():
        moment = total.moment(centred=path in centred)
        if moment is None:
            continue
        other = held[path].moment(centred=path in centred)
        shrunk = _shrunk(moment, total.count)
        together = shrunk
        if other is not None:
            count = total.count + held[path].count
            pooled = (moment * total.count + other * held[path].count) / np.float32(count)
            together = _shrunk(pooled.astype(np.float32), count)
        assert total.magnitude is not None
        assert total.largest is not None
        result[path] = Moments(
            fit=shrunk,
            held=shrunk if other is None else other,
            both=together,
            magnitude=total.magnitude / total.count,
            largest=total.largest,
        )
    return result


# One sample in so many is held out.
_EVERY = 4


class _Sum:
    """The sums of rows and of their products, of one site."""

    def __init__(self) -> None:
        self.count = 0
        self.square: NDArray[np.float32] | None = None
        self.total: NDArray[np.float64] | None = None
        self.magnitude: NDArray[np.float64] | None = None
        self.largest: NDArray[np.float32] | None = None

    def add(self, rows: NDArray[np.float32]) -> None:
        """Add rows, `[R, G, K]`."""
        grouped = np.ascontiguousarray(rows.transpose(1, 0, 2), dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # inputs near the end of float32: left out in the end
            square = grouped.transpose(0, 2, 1) @ grouped
        total = grouped.sum(axis=1, dtype=np.float64)
        self.square = square if self.square is None else np.add(self.square, square, out=self.square)
        self.total = total if self.total is None else self.total + total
        absolute = np.abs(grouped)
        magnitude, largest = absolute.sum(axis=1, dtype=np.float64), absolute.max(axis=1, initial=0.0)
        self.magnitude = magnitude if self.magnitude is None else self.magnitude + magnitude
        self.largest = largest if self.largest is None else np.maximum(self.largest, largest)
        self.count += len(rows)

    def moment(self, *, centred: bool) -> NDArray[np.float32] | None:
        """Return `[G, K, K]`; `None` if there is nothing, or nothing finite."""
        if self.square is None or self.total is None or not np.isfinite(self.square).all() or not self.square.any():
            return None
        moment: NDArray[np.float32] = self.square / np.float32(self.count)
        if centred:
            mean = self.total / self.count
            moment = moment - (mean[:, :, None] * mean[:, None, :]).astype(np.float32)
        return moment.astype(np.float32)


def _shrunk(moment: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    """Move a moment towards its diagonal, the more the fewer rows it was estimated from.

    With fewer rows than weights, most of what lies beside the diagonal is chance (Ledoit and Wolf, A well-conditioned
    estimator for large-dimensional covariance matrices, 2004); the share of depth / (depth + rows) is a rule of thumb.
    """
    depth = moment.shape[1]
    share = np.float32(depth / (depth + rows))
    shrunk: NDArray[np.float32] = moment * (1 - share)
    np.einsum("gkk->gk", shrunk)[:] = np.einsum("gkk->gk", moment)
    return shrunk


def input_rows(site: Site, array: NDArray[Any], rows: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Return some of what a site's outputs are sums over, in the order that the kernel sums.

    Args:
        site: A Conv, MatMul or Gemm.
        array: Its first input.
        rows: How many at most.
        generator: Picks them.

    Returns:
        `[R, G, K]`: R positions, the G groups of a convolution, and K weights of one output.
    """
    if site.op_type != "Conv":
        if site.op_type == "Gemm" and site.attribute("transA", 0):
            array = array.T
        flat = array.reshape(-1, array.shape[-1])
        return flat[_picked(len(flat), rows, generator), None, :].astype(np.float32)
    return _patches(site, array, rows, generator)


def output_rows(site: Site, array: NDArray[Any], rows: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Return the outputs of a site at the positions that `input_rows` picks with the same generator, `[R, N]`."""
    flat = np.moveaxis(array, 1, -1) if site.op_type == "Conv" else array
    flat = flat.reshape(-1, flat.shape[-1])
    return flat[_picked(len(flat), rows, generator)].astype(np.float32)


def _patches(site: Site, array: NDArray[Any], rows: int, generator: np.random.Generator) -> NDArray[np.float32]:
    kernel = site.weight_array().shape[2:]
    spatial = len(kernel)
    strides = list(site.attribute("strides", [1] * spatial))
    dilations = list(site.attribute("dilations", [1] * spatial))
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    pads = _pads(site, array.shape[2:], reach, strides)
    padded = np.pad(array, [(0, 0), (0, 0), *zip(pads[:spatial], pads[spatial:], strict=True)])
    windows = sliding_window_view(padded, reach, axis=tuple(range(2, 2 + spatial)))
    every = tuple(slice(None, None, step) for step in strides)
    within = tuple(slice(None, None, step) for step in dilations)
    windows = windows[(slice(None), slice(None), *every, *within)]
    places = (len(windows), *windows.shape[2 : 2 + spatial])
    picked = np.unravel_index(_picked(int(np.prod(places)), rows, generator), places)
    channels_last = np.moveaxis(windows, 1, 1 + spatial)  # [N, o1, …, C, k1, …]
    patches = channels_last[picked]  # [R, C, k1, …]
    group = site.attribute("group", 1)
    split = patches.reshape(len(patches), group, -1, *kernel)
    return np.moveaxis(split, 2, -1).reshape(len(patches), group, -1).astype(np.float32)


def _pads(site: Site, sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int]) -> list[int]:
    auto = site.attribute("auto_pad", "NOTSET")
    if auto in {"SAME_UPPER", "SAME_LOWER"}:
        total = [
            max((-(-size // stride) - 1) * stride + window - size, 0)
            for size, stride, window in zip(sizes, strides, reach, strict=True)
        ]
        smaller = [missing // 2 for missing in total]
        larger = [missing - half for missing, half in zip(total, smaller, strict=True)]
        return [*smaller, *larger] if auto == "SAME_UPPER" else [*larger, *smaller]
    if auto == "VALID":
        return [0] * (2 * len(sizes))
    return list(site.attribute("pads", [0] * (2 * len(sizes))))


def _picked(count: int, rows: int, generator: np.random.Generator) -> NDArray[np.intp]:
    if count <= rows:
        return np.arange(count)
    return np.sort(generator.choice(count, rows, replace=False))


def _read(site: Site) -> str:
    value = site.node.inputs[0]
    assert value is not None
    return value.name or ""
