"""The verb that sets weights to zero, and changes the others to make up for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from lowbit.data import input_specs, open_data
from lowbit.exceptions import DataError, ModelError, RecipeError
from lowbit.graph import clean, load_model, save_model
from lowbit.graph.clean.values import set_constant
from lowbit.methods.rerounding import in_parts, tells
from lowbit.methods.second_moments import Moments, moments_in_two
from lowbit.methods.stages import Stages, silent
from lowbit.methods.training_plan import with_plain_weights
from lowbit.methods.weights import from_kernel_matrix, kernel_matrix
from lowbit.plan.recipe import matches
from lowbit.plan.sites import Site, find_sites
from lowbit.pruning import Pattern, lamp, magnitude, mask_of, parse_pattern, prune_and_reconstruct, refit, wanda
from lowbit.report.plain import plain_text
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx
    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.data import Dataset, Preprocessing

__all__ = ["Criterion", "PrunedLayer", "Pruning", "prune"]

Criterion = Literal["magnitude", "wanda", "sparsegpt"]
Scope = Literal["layer", "global"]

_PRUNED = frozenset({"Conv", "MatMul", "Gemm"})
_SAMPLES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedLayer:
    """What pruning did to one weight.

    Attributes:
        node: Name of the operator.
        weight: Name of its weight.
        weights: How many numbers that is.
        zeros: Fraction of them that is 0 now.
        error_before: Squared error of the output by leaving weights out, as a fraction of the output's power, on
            samples that were held out; `None` without data.
        error: The same after the others made up for it.
        reason: Why the layer was left alone; empty if it was not.
    """

    node: str
    weight: str
    weights: int
    zeros: float
    error_before: float | None = None
    error: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pruning:
    """A pruned model, in float.

    Attributes:
        model: The model; zeros in its weights are the mask that later steps keep.
        layers: What became of every weight.
        source: What was pruned, as the user named it.
    """

    model: ir.Model
    layers: tuple[PrunedLayer, ...]
    source: str

    @property
    def sparsity(self) -> float:
        """Fraction of the weights of all pruned operators that is 0."""
        total = sum(layer.weights for layer in self.layers)
        return sum(layer.zeros * layer.weights for layer in self.layers) / max(total, 1)

    def save(self, path: str | Path) -> list[Path]:
        """Write the model as ONNX, atomically.

        Raises:
            OutputError: The file cannot be written; whatever stood there is untouched.
        """
        return save_model(self.model, path)

    def __str__(self) -> str:
        """Return a table of the layers as plain text, as wide as the terminal."""
        return plain_text([self.table()])

    def table(self) -> Any:
        """Return a `rich` table of the layers."""
        from rich.table import Table

        table = Table(title=f"{self.source}: {self.sparsity:.1%} of the weights are 0")
        for heading in ("layer", "weights", "zeros", "error, left out", "made up for"):
            table.add_column(heading, justify="left" if heading == "layer" else "right")
        for layer in self.layers:
            errors = [layer.reason, ""] if layer.reason else [_percent(layer.error_before), _percent(layer.error)]
            table.add_row(layer.node, f"{layer.weights:,}", f"{layer.zeros:.1%}", *errors)
        return table


def prune(
    model: str | Path | onnx.ModelProto | ir.Model,
    amount: float = 0.5,
    data: Any = None,
    *,
    criterion: Criterion | None = None,
    pattern: str = "any",
    scope: Scope = "global",
    exclude: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
    seed: int = 0,
    stages: Stages = silent,
) -> Pruning:
    """Set the weights of Conv, MatMul and Gemm that matter least to zero.

    The file does not become smaller by that alone, and no slower engine faster: zeros pay in `lowbit pack`, and after
    `lowbit.qat(..., keep_zeros=True)` at a higher amount than without training.

    Args:
        model: Path of an ONNX file, a `ModelProto` or an `onnx_ir.Model`; never changed.
        amount: Fraction of the weights to prune, from 0 to below 1; `2:4` and the like have their own.
        data: Calibration data, in any form that `lowbit.quantize` takes; 64 samples are looked at.
        criterion: `magnitude`: |w|. `wanda`: |w|·‖x‖ (Sun et al., 2023), needs data. `sparsegpt`: by what the loss of a
            weight costs when the others make up for it (Frantar and Alistarh, 2023), which they then do (Boža, 2024),
            needs data. By default `sparsegpt` with data and `magnitude` without.
        pattern: `any`; `2:4`, two of every four inputs of an output are kept; `4x1`, blocks of 4 inputs by 1 output.
        scope: `layer`: every weight loses the same fraction. `global`: weights compete, by what they add to the
            relative error of their layer's output where there are data, by LAMP scores (Lee et al., 2021) otherwise.
        exclude: Operators that are left alone, as in recipes: a name with * and ?, `re:EXPRESSION` or `op:TYPE`.
        preprocessing: What to do to images.
        seed: Of which rows of the inputs are looked at.
        stages: Shows progress.

    Returns:
        The pruned float model and a table of its layers.

    Raises:
        ModelError: The model cannot be read, or there is nothing to prune.
        DataError: Data are needed and missing, or do not fit.
        RecipeError: An option is impossible.
    """
    chosen, shape = _checked(amount, data, criterion, pattern, scope)
    with stages("Load and clean the model", None):
        target = find_target("host")
        result = with_plain_weights(clean(load_model(model)).model, target)
    sites = [site for site in find_sites(result, target) if _candidate(site)]
    layers: dict[str, PrunedLayer] = {}
    groups: dict[str, list[Site]] = {}
    for site in sites:
        assert site.weight is not None
        name = site.weight.name or ""
        if any(matches(text, site.path, site.op_type, name) for text in exclude):
            layers[name] = _left(site, "excluded")
        else:
            groups.setdefault(name, []).append(site)
    groups = {name: group for name, group in groups.items() if name not in layers}
    for name in [name for name, group in groups.items() if _unfit(group[0], shape)]:
        layers[name] = _left(groups.pop(name)[0], f"its inputs or outputs cannot be cut into {shape}")
    if not groups:
        raise ModelError("there is nothing to prune", cause="no Conv, MatMul or Gemm has a constant weight that fits")
    moments: dict[str, Moments] = {}
    if data is not None:
        dataset = open_data(data, input_specs(result), preprocessing=preprocessing, limit=_SAMPLES, seed=seed)
        if not tells(dataset):
            raise DataError("random numbers do not say which weights matter", remedy="give samples, or no data")
        with stages("Look at what layers read", dataset.count()) as advance:
            moments = _moments(result, list(groups.values()), dataset, seed, advance)
    with stages("Prune", len(groups)) as advance:
        masks = _masks(groups, moments, amount, shape, chosen, scope)
        for name, group in groups.items():
            layers[name] = _pruned(group, masks.get(name), moments.get(name), amount, shape, chosen)
            advance()
    order = {site.weight.name: index for index, site in reversed(list(enumerate(sites))) if site.weight is not None}
    ranked = sorted(layers.values(), key=lambda layer: order[layer.weight])
    return Pruning(
        model=result, layers=tuple(ranked), source=Path(model).name if isinstance(model, (str, Path)) else "model"
    )


def _checked(
    amount: float, data: Any, criterion: Criterion | None, pattern: str, scope: Scope
) -> tuple[Criterion, Pattern]:
    if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not 0.0 <= amount < 1.0:
        raise RecipeError(
            f"the amount is {amount!r}",
            cause="a layer without weights computes nothing",
            remedy="give the fraction to prune, from 0 to below 1",
        )
    if criterion is not None and criterion not in get_args(Criterion):
        raise RecipeError(f"the criterion is {criterion!r}", remedy=f"use one of {', '.join(get_args(Criterion))}")
    if scope not in get_args(Scope):
        raise RecipeError(f"the scope is {scope!r}", remedy=f"use one of {', '.join(get_args(Scope))}")
    if criterion in {"wanda", "sparsegpt"} and data is None:
        raise DataError(
            f"the criterion {criterion} needs data",
            cause="it weighs by what layers read",
            remedy="give 64 samples or more, or use magnitude",
        )
    return criterion or ("magnitude" if data is None else "sparsegpt"), parse_pattern(pattern)


def _candidate(site: Site) -> bool:
    weight = site.weight
    return (
        site.op_type in _PRUNED
        and weight is not None
        and weight.is_initializer()
        and not site.subgraph
        and (site.op_type == "Conv" or len(site.weight_array().shape) == 2)
    )


def _unfit(site: Site, pattern: Pattern) -> bool:
    depth, outputs = kernel_matrix(site, site.weight_array()).shape
    rows, columns = pattern.block
    return bool(depth % (pattern.of or rows) or outputs % columns)


def _left(site: Site, reason: str) -> PrunedLayer:
    array = site.weight_array()
    name = "" if site.weight is None else site.weight.name or ""
    zeros = float(np.mean(array == 0)) if array.size else 0.0
    return PrunedLayer(node=site.path, weight=name, weights=array.size, zeros=zeros, reason=reason)


def _moments(model: ir.Model, groups: list[list[Site]], data: Dataset, seed: int, advance: Any) -> dict[str, Moments]:
    """Return by weight what the first operator that reads it reads."""
    found: dict[str, Moments] = {}
    for part in in_parts([[group[0]] for group in groups]):
        flat = [site for group in part for site in group]
        seen = moments_in_two(model, flat, data, samples=_SAMPLES, seed=seed, advance=advance)
        for site in flat:
            if site.path in seen and site.weight is not None:
                found[site.weight.name or ""] = seen[site.path]
    return found


def _masks(
    groups: dict[str, list[Site]],
    moments: dict[str, Moments],
    amount: float,
    pattern: Pattern,
    criterion: Criterion,
    scope: Scope,
) -> dict[str, NDArray[np.bool_]]:
    """Return masks of kept weights, `[K, N]`; a layer that chooses its own while it is reconstructed has none."""
    matrices = {name: kernel_matrix(group[0], group[0].weight_array()) for name, group in groups.items()}
    if pattern.kept or scope == "layer":
        return {
            name: mask_of(
                wanda(matrix, _energy(moments[name])) if _weighs(criterion, moments, name) else magnitude(matrix),
                amount,
                pattern,
                per_output=_weighs(criterion, moments, name),
            )
            for name, matrix in matrices.items()
            if criterion != "sparsegpt" or name not in moments
        }
    scores = {}
    for name, matrix in matrices.items():
        if moments and name in moments and criterion != "magnitude":
            # What leaving a weight out adds to the relative error of the output.
            share = wanda(matrix, _energy(moments[name])) ** 2
            scores[name] = share / max(_power(matrix, moments[name].both), 1e-30)
        else:
            scores[name] = lamp(matrix)
    return _across(scores, amount, pattern)


def _across(scores: dict[str, NDArray[np.float64]], amount: float, pattern: Pattern) -> dict[str, NDArray[np.bool_]]:
    """Prune the lowest scores of all layers together; of every layer at least one block is kept."""
    rows, columns = pattern.block
    blocks = {
        name: score.reshape(score.shape[0] // rows, rows, -1, columns).sum(axis=(1, 3))
        for name, score in scores.items()
    }
    for block in blocks.values():
        block.ravel()[int(np.argmax(block))] = np.inf
    flat = np.concatenate([block.ravel() for block in blocks.values()])
    kept = np.ones(len(flat), dtype=bool)
    count = min(round(amount * len(flat)), len(flat) - len(blocks))
    kept[np.argsort(flat, kind="stable")[:count]] = False
    masks, start = {}, 0
    for name, block in blocks.items():
        mask = kept[start : start + block.size].reshape(block.shape)
        masks[name] = np.repeat(np.repeat(mask, rows, axis=0), columns, axis=1)
        start += block.size
    return masks


def _weighs(criterion: Criterion, moments: dict[str, Moments], name: str) -> bool:
    return criterion == "wanda" and name in moments


def _energy(moments: Moments) -> NDArray[np.float64]:
    """Return `E[x²]` of every input, `[G, K]`."""
    energy: NDArray[np.float64] = np.diagonal(moments.both, axis1=1, axis2=2).astype(np.float64)
    return energy


def _pruned(
    group: list[Site],
    mask: NDArray[np.bool_] | None,
    moments: Moments | None,
    amount: float,
    pattern: Pattern,
    criterion: Criterion,
) -> PrunedLayer:
    site = group[0]
    matrix = kernel_matrix(site, site.weight_array()).astype(np.float32)
    best = None if mask is None else np.where(mask, matrix, np.float32(0))
    before = after = None
    if moments is not None:
        if criterion == "sparsegpt":
            kept = mask if mask is not None else prune_and_reconstruct(matrix, moments.fit, amount, pattern) != 0
            plain = np.where(kept, matrix, np.float32(0))
            fitted = refit(matrix, moments.fit, kept)
            before, after = (_error(matrix, found, moments.held) for found in (plain, fitted))
            if after < before:
                best = refit(matrix, moments.both, kept)
            else:  # chance correlations of few samples: leaving out is better
                best, after = plain, before
        else:
            assert best is not None
            before = after = _error(matrix, best, moments.held)
    assert best is not None
    array = from_kernel_matrix(site, best).astype(np.float32)
    assert site.weight is not None
    set_constant(site.weight, array)
    return PrunedLayer(
        node=site.path,
        weight=site.weight.name or "",
        weights=array.size,
        zeros=float(np.mean(array == 0)),
        error_before=before,
        error=after,
    )


def _error(matrix: NDArray[np.float32], found: NDArray[np.float32], moments: NDArray[np.float32]) -> float:
    """Return the squared error of the output, as a fraction of its power."""
    return _power(matrix - found, moments) / max(_power(matrix, moments), 1e-30)


def _power(matrix: NDArray[np.float32], moments: NDArray[np.float32]) -> float:
    """Return the mean squared output of a weight, summed over its outputs."""
    groups = len(moments)
    parts = matrix.reshape(len(matrix), groups, -1).transpose(1, 0, 2).astype(np.float64)
    return float(np.einsum("gkn,gkl,gln->", parts, moments.astype(np.float64), parts, optimize=True))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
