"""What the inputs of weighted operators look like together: their second moments, in the order that kernels sum."""

from __future__ import annotations

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

__all__ = ["input_rows", "second_moments"]


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
    inputs = {value.name for value in model.graph.inputs}
    names = dict.fromkeys(_read(site) for site in sites)
    wanted = tuple(name for name in names if name not in inputs)
    with staged(with_outputs(model, wanted)) as source:
        session = open_session(source, threads=threads)
    generator = np.random.default_rng(seed)
    sums: dict[str, NDArray[np.float32]] = {}
    means: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    for feed in islice(feeds, samples):
        arrays = dict(zip(wanted, session.run(feed, list(wanted)) if wanted else [], strict=True))
        arrays.update({name: array for name, array in feed.items() if name in names})
        for site in sites:
            found = input_rows(site, arrays[_read(site)], rows, generator)
            grouped = np.ascontiguousarray(found.transpose(1, 0, 2), dtype=np.float32)
            with np.errstate(over="ignore", invalid="ignore"):  # inputs near the end of float32: left out below
                square = grouped.transpose(0, 2, 1) @ grouped
            total = grouped.sum(axis=1, dtype=np.float64)
            if site.path in sums:
                sums[site.path] += square
                means[site.path] += total
            else:
                sums[site.path], means[site.path] = square, total
            counts[site.path] = counts.get(site.path, 0) + len(found)
        advance()
    result = {}
    for path, square in sums.items():
        if not np.isfinite(square).all() or not square.any():
            continue
        moment = square / counts[path]
        if centred:
            mean = means[path] / counts[path]
            moment = moment - (mean[:, :, None] * mean[:, None, :]).astype(np.float32)
        result[path] = _shrunk(moment.astype(np.float32), counts[path])
    return result


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
