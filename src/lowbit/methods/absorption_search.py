"""Which high biases to move behind activation functions: tried on calibration samples, kept where held-out ones agree.

How much each channel can spare follows from the BatchNormalization that was folded into the layer, as in the paper of
Nagel et al. (2019), or, where there was none, from the smallest value that calibration saw. Without data, what folded
BatchNormalizations say has to do for judging too.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lowbit.graph.clean.normalized import normalized_of
from lowbit.graph.editor import Editor
from lowbit.methods.absorb import Absorbing, absorbing_pairs
from lowbit.methods.absorption_trial import WORTH, AbsorptionTrial, planned_absorption
from lowbit.methods.decide import activation_format
from lowbit.plan.plan import AbsorptionPlan
from lowbit.plan.sites import find_sites
from lowbit.rounding.absorption import expected_absorption
from lowbit.rounding.equalization import absorbable_bias
from lowbit.runtime.session import open_session
from lowbit.runtime.staging import staged, with_outputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from lowbit.formats import Format
    from lowbit.plan.recipe import Recipe
    from lowbit.plan.sites import Site
    from lowbit.runtime.session import Feed
    from lowbit.targets import Target

__all__ = ["find_absorptions"]

_SAMPLES = 64
_SIGMAS = 3.0
# One sample in so many judges.
_EVERY = 4


def find_absorptions(
    model: ir.Model, recipe: Recipe, target: Target, feeds: Iterable[Feed] | None
) -> tuple[tuple[AbsorptionPlan, ...], tuple[str, ...]]:
    """Find the biases whose absorption makes the outputs of the layers behind more exact in the recipe's formats.

    Args:
        model: The float model.
        recipe: Its formats and ranges are what errors are measured with.
        target: Where the model will run.
        feeds: Calibration samples, passed over three times; `None` if there are none that tell anything.

    Returns:
        What to move where, and what was left alone, with reasons in words.
    """
    fmt = _activations(recipe, target)
    if fmt is None:
        return (), ("no bias absorbed: only activations in codes gain from it",)
    pairs, refusals = absorbing_pairs(model)
    sites = {site.path: site for site in find_sites(model, target)}
    candidates = []
    for pair in pairs:
        site = sites.get(pair.second.name)
        reason = "it is no operator of the main graph" if site is None or site.subgraph else _excluded(recipe, site)
        if site is None or reason:
            refusals[pair.first.name] = reason
        else:
            candidates.append(_Candidate(pair=pair, site=site))
    if feeds is None:
        results = {each.pair.first.name: _expected(each, fmt) for each in candidates}
    else:
        results = _measured(model, candidates, recipe, target, fmt, feeds)
    found = [result for result in results.values() if isinstance(result, AbsorptionPlan)]
    refusals.update({name: result for name, result in results.items() if isinstance(result, str)})
    done = tuple(f"bias of {each.layer} absorbed by {each.reader}: {each.reason}" for each in found)
    return tuple(found), done + tuple(f"bias of {name} not absorbed: {why}" for name, why in refusals.items())


@dataclass(slots=True, kw_only=True, eq=False)
class _Candidate:
    """A pair with what was seen of it so far.

    Attributes:
        pair: The pair.
        site: The layer that reads.
        low: `[C]`, smallest value of every channel before the activation function.
        high: `[C]`, largest.
    """

    pair: Absorbing
    site: Site
    low: NDArray[np.float32] | None = None
    high: NDArray[np.float32] | None = None

    def bound(self, outputs: NDArray[Any]) -> None:
        """See outputs of the first layer."""
        axis = 1 if self.pair.first.node.op_type == "Conv" else -1
        channels = np.moveaxis(outputs, axis, 0).reshape(self.pair.first.channels, -1)
        low, high = channels.min(axis=1), channels.max(axis=1)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)

    def amounts(self) -> NDArray[np.float64]:
        """Return what every channel can spare; nothing, if the upper bound would then clip elsewhere."""
        known = normalized_of(self.pair.first.node)
        if known is not None:
            spare = absorbable_bias(known.mean - self.pair.low, known.deviation, sigmas=_SIGMAS)
            highest = known.mean + _SIGMAS * known.deviation
        elif self.low is not None and self.high is not None:
            spare = np.maximum(self.low.astype(np.float64) - self.pair.low, 0.0)
            highest = self.high.astype(np.float64)
        else:
            return np.zeros(self.pair.first.channels)
        return np.where(highest <= self.pair.high, spare, 0.0)


def _activations(recipe: Recipe, target: Target) -> Format | None:
    text = recipe.activations or target.activations
    if recipe.method in {"weight-only", "dynamic"} or text in {"none", "dynamic"}:
        return None
    fmt = activation_format(text)
    return None if fmt.element.kind == "float" and fmt.element.bits == _HALF else fmt


_HALF = 16


def _excluded(recipe: Recipe, site: Site) -> str:
    rule = recipe.rule_for(site.path, site.op_type, site.weight.name if site.weight is not None else None)
    return f"{site.path}, which reads it, is excluded by {rule.pattern!r}" if rule.method == "float" else ""


def _expected(candidate: _Candidate, fmt: Format) -> AbsorptionPlan | str:
    """Judge by folded BatchNormalizations alone."""
    pair = candidate.pair
    known = normalized_of(pair.first.node)
    if known is None or not np.isfinite(known.deviation).all():
        return "without data and BatchNormalization, nothing is known of its outputs"
    if pair.padded:
        return f"{pair.second.name} pads with zeros, which would have to be what is absorbed; only data tell if it pays"
    amounts = candidate.amounts()
    if not amounts.any():
        return "no channel is above zero by three standard deviations"
    energy = np.square(pair.second.input_norms())
    steps = fmt.element.code_count - 1
    before, after = expected_absorption(
        known.mean, known.deviation, amounts, energy, high=pair.high, sigmas=_SIGMAS, steps=steps
    )
    gain = f"{10 * np.log10(max(after, 1e-300) / max(before, 1e-300)):+.1f} dB of rounding noise expected behind it"
    if after >= WORTH**2 * before:
        return f"it does not help: {gain}"
    return planned_absorption(pair, amounts, gain)


def _measured(
    model: ir.Model,
    candidates: Sequence[_Candidate],
    recipe: Recipe,
    target: Target,
    fmt: Format,
    feeds: Iterable[Feed],
) -> dict[str, AbsorptionPlan | str]:
    """Judge on samples: bounds first, then the ranges with and without, then the errors at the outputs."""
    results: dict[str, AbsorptionPlan | str] = {}
    outputs = [each.pair.first.output.name or "" for each in candidates]
    for arrays in _runs(model, outputs, feeds, judging=False):
        for candidate, array in zip(candidates, arrays, strict=True):
            candidate.bound(array)
    chosen: list[AbsorptionTrial] = []
    for candidate in candidates:
        amounts = candidate.amounts()
        if amounts.any():
            chosen.append(AbsorptionTrial(candidate.pair, candidate.site, amounts, recipe, target, fmt))
        else:
            results[candidate.pair.first.name] = "no channel stays above the lower bound for nearly all inputs"
    branched, names = _with_branches(model, chosen)
    for arrays in _runs(branched, names, feeds, judging=False):
        for index, trial in enumerate(chosen):
            trial.watch(arrays[2 * index], arrays[2 * index + 1])
    generator = np.random.default_rng(recipe.seed)
    for arrays in _runs(branched, names, feeds, judging=True):
        for index, trial in enumerate(chosen):
            trial.judge(arrays[2 * index], arrays[2 * index + 1], generator)
    results.update({trial.pair.first.name: trial.verdict() for trial in chosen})
    return {each.pair.first.name: results[each.pair.first.name] for each in candidates}


def _runs(
    model: ir.Model, names: Sequence[str], feeds: Iterable[Feed], *, judging: bool
) -> Iterator[list[NDArray[Any]]]:
    """Yield tensors of the samples that judge, or of all others; of every one, if they are too few to part."""
    if not names:
        return
    samples = list(islice(feeds, _SAMPLES))
    parted = len(samples) >= _EVERY
    distinct = tuple(dict.fromkeys(names))
    with staged(with_outputs(model, distinct)) as source:
        session = open_session(source)
    for index, feed in enumerate(samples):
        if not parted or (index % _EVERY == _EVERY - 1) == judging:
            arrays = dict(zip(distinct, session.run(feed, list(distinct)), strict=True))
            yield [arrays[name] for name in names]


def _with_branches(model: ir.Model, trials: Sequence[AbsorptionTrial]) -> tuple[ir.Model, list[str]]:
    """Return a model that also computes what each layer would read with its bias absorbed, and both tensors' names."""
    result = model.clone()
    editor = Editor(result)
    nodes = {node.name: node for node in result.graph}
    names: list[str] = []
    for trial in trials:
        pair = trial.pair
        between = [nodes[node.name] for node in pair.between]
        value = between[0].inputs[0]
        assert value is not None
        rank = pair.first.weight.ndim if pair.first.node.op_type == "Conv" else 1
        shape = (-1, *(1 for _ in range(rank - 2))) if rank > 1 else (-1,)
        shift = editor.constant(
            result.graph, f"{pair.first.name}/absorbed", trial.amounts.astype(np.float32).reshape(shape)
        )
        place = between[-1]
        for node in (None, *between):
            copied = ir.node(
                "Sub" if node is None else node.op_type,
                [value, *([shift] if node is None else node.inputs[1:])],
                attributes=None if node is None else dict(node.attributes),
                outputs=[
                    ir.Value(
                        name=editor.name(f"{pair.first.name}/absorbed/{place.op_type}"),
                        type=ir.TensorType(ir.DataType.FLOAT),
                    )
                ],
            )
            result.graph.insert_after(place, copied)
            place, value = copied, copied.outputs[0]
        names += [str(pair.read.name), str(value.name)]
    return result, names
