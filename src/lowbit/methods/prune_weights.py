"""Pruning single weights: zeros in the initializers, which later steps keep as the mask."""

from __future__ import annotations

import fnmatch
import re
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lowbit.exceptions import ModelError, RecipeError
from lowbit.graph.channels.costs import ChannelCosts
from lowbit.graph.constants import constant_array
from lowbit.methods.channel_refit import _as_matrix, _from_matrix, _reading_axis, _site
from lowbit.methods.pruned import PrunedGroup, PruneResult
from lowbit.methods.second_moments import input_rows
from lowbit.pruning import block_mask, largest_mask, magnitude_scores, n_of_m_mask, sparse_gpt, wanda_scores
from lowbit.runtime.session import open_session
from lowbit.runtime.staging import staged, with_outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lowbit.data import Dataset
    from lowbit.graph.channels import Trace

__all__ = ["WEIGHT_CRITERIA", "prune_weights"]

WEIGHT_CRITERIA = ("magnitude", "wanda", "sparse-gpt")

_ROWS = 256


def prune_weights(
    trace: Trace,
    data: Dataset | None,
    *,
    amount: float,
    criterion: str,
    pattern: str | None,
    exclude: Sequence[str],
    seed: int,
    everywhere: bool,
    source: str,
) -> PruneResult:
    """Set weights of Conv, Gemm and MatMul to zero.

    Args:
        trace: The cleaned model.
        data: Calibration samples, for `wanda` and `sparse-gpt`.
        amount: Share of weights that go.
        criterion: One of `WEIGHT_CRITERIA`.
        pattern: `n:m`, `RxC`, or `None`.
        exclude: Names of operators whose weights stay.
        seed: Picks rows of the samples.
        everywhere: Compare the magnitudes of all layers, each by its mean, instead of every layer by itself.
        source: What the user calls the model.

    Raises:
        RecipeError: The pattern is malformed or does not go with the criterion.
        ModelError: There is no weight to prune.
    """
    n_of_m, block = _parsed(pattern)
    if (block is not None and criterion == "sparse-gpt") or (everywhere and (criterion != "magnitude" or pattern)):
        raise RecipeError(
            f"{criterion} does not go with the pattern {pattern} and this allocation",
            remedy="blocks go with magnitude and wanda, the global allocation with magnitude alone",
        )
    model = trace.model.clone()
    nodes: dict[str, ir.Node] = {}
    rows: list[PrunedGroup] = []
    for node in model.graph:
        weight = constant_array(node.inputs[1]) if node.op_type in {"Conv", "Gemm", "MatMul"} else None
        if weight is None or weight.ndim < 2 or weight.dtype.kind != "f":
            continue
        if any(fnmatch.fnmatchcase(str(node.name), text) for text in exclude):
            rows.append(_row(node, weight, weight, "excluded"))
        elif node.op_type == "MatMul" and weight.ndim != 2:
            rows.append(_row(node, weight, weight, "a stack of matrices"))
        else:
            nodes.setdefault(str(node.inputs[1].name), node)  # type: ignore[union-attr]
    if not nodes:
        raise ModelError("the model has no weight of a Conv, Gemm or MatMul to prune")
    moments = {} if criterion == "magnitude" or data is None else _moments(trace.model, nodes, data, seed)
    scaled = {}
    if everywhere:
        arrays = {name: np.abs(_array(model, name)) for name in nodes}
        flat = np.concatenate([(a / max(float(a.mean()), 1e-30)).ravel() for a in arrays.values()])
        masks = np.split(largest_mask(flat, amount), np.cumsum([a.size for a in arrays.values()])[:-1])
        scaled = {name: mask.reshape(arrays[name].shape) for name, mask in zip(arrays, masks, strict=True)}
    for name, node in nodes.items():
        weight = _array(model, name)
        pruned = weight * scaled[name] if everywhere else None
        if pruned is None:
            groups = _groups(node)
            axis = _reading_axis(node)
            matrix = _as_matrix(weight, axis, groups)
            new = [
                _one(part, moments[name][g] if moments else None, amount, criterion, n_of_m, block)
                for g, part in enumerate(matrix)
            ]
            pruned = _from_matrix(np.stack(new), weight.shape, axis, groups)
        if not pruned.any():
            raise RecipeError(
                f"an amount of {amount} would leave nothing of the weight of {node.name}",
                remedy="ask for less, or exclude that operator",
            )
        model.graph.initializers[name].const_value = ir.tensor(
            np.ascontiguousarray(pruned.astype(weight.dtype)), name=name
        )
        rows.append(_row(node, weight, pruned, ""))
    order = {str(node.name): number for number, node in enumerate(model.graph)}
    macs = ChannelCosts(trace, []).macs(np.zeros(0, np.int64))
    return PruneResult(
        model=model,
        groups=tuple(sorted(rows, key=lambda row: order[row.name])),
        macs=(macs, macs),
        weights=(float(_nonzero(trace.model)), float(_nonzero(model))),
        source=source,
    )


def _one(
    matrix: NDArray[np.float64],
    moments: NDArray[np.float64] | None,
    amount: float,
    criterion: str,
    n_of_m: tuple[int, int] | None,
    block: tuple[int, int] | None,
) -> NDArray[np.float64]:
    """Prune a matrix, `[K, N]`."""
    if criterion == "sparse-gpt":
        assert moments is not None
        return sparse_gpt(matrix, moments, amount, pattern=n_of_m)[0].astype(np.float64)
    scores = magnitude_scores(matrix)
    if criterion == "wanda":
        assert moments is not None
        scores = wanda_scores(matrix, np.diagonal(moments))
    if n_of_m is not None:
        return matrix * n_of_m_mask(scores, *n_of_m)
    if block is not None:
        return matrix * block_mask(scores, amount, block)
    return matrix * largest_mask(scores, amount, axis=0 if criterion == "wanda" else None)


def _moments(model: ir.Model, nodes: dict[str, ir.Node], data: Dataset, seed: int) -> dict[str, NDArray[np.float64]]:
    inputs = {str(value.name) for value in model.graph.inputs}
    reads = {name: str(node.inputs[0].name) for name, node in nodes.items() if node.inputs[0] is not None}
    wanted = tuple(dict.fromkeys(read for read in reads.values() if read not in inputs))
    with staged(with_outputs(model, wanted)) as source:
        session = open_session(source)
    generator = np.random.default_rng(seed)
    sums: dict[str, NDArray[np.float64]] = {}
    count = 0
    for feed in data:
        arrays = {**feed, **dict(zip(wanted, session.run(feed, list(wanted)) if wanted else [], strict=True))}
        for name, node in nodes.items():
            rows = input_rows(_site(node), arrays[reads[name]], _ROWS, generator).astype(np.float64).transpose(1, 0, 2)
            square = rows.transpose(0, 2, 1) @ rows / rows.shape[1]
            sums[name] = sums[name] + square if name in sums else square
        count += 1
    return {name: total / count for name, total in sums.items()}


def _parsed(pattern: str | None) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    if pattern is None:
        return None, None
    found = re.fullmatch(r"(\d+)([:x])(\d+)", pattern)
    if found is None:
        raise RecipeError(f"the pattern {pattern!r} is malformed", remedy="give n:m, e.g. 2:4, or RxC, e.g. 8x1")
    pair = int(found[1]), int(found[3])
    if found[2] == ":" and not 0 < pair[0] < pair[1]:
        raise RecipeError(f"the pattern {pattern!r} keeps all or nothing", remedy="give n:m with 0 < n < m, e.g. 2:4")
    return (pair, None) if found[2] == ":" else (None, pair)


def _groups(node: ir.Node) -> int:
    found = node.attributes.get("group") if node.op_type == "Conv" else None
    return 1 if found is None else found.as_int()


def _array(model: ir.Model, name: str) -> NDArray[np.floating]:
    array = constant_array(model.graph.initializers[name])
    assert array is not None
    return array


def _nonzero(model: ir.Model) -> int:
    arrays = [constant_array(value) for value in model.graph.initializers.values()]
    return sum(int(np.count_nonzero(array)) for array in arrays if array is not None and array.dtype.kind == "f")


def _row(node: ir.Node, before: NDArray[np.floating], after: NDArray[np.floating], reason: str) -> PrunedGroup:
    return PrunedGroup(name=str(node.name), units=before.size, kept=int(np.count_nonzero(after)), reason=reason)
