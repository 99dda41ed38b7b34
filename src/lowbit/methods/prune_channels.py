"""The verb that removes whole channels and attention heads, so that every engine becomes faster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from lowbit.data import Preprocessing, input_specs, open_data
from lowbit.exceptions import DataError, ModelError, RecipeError
from lowbit.graph import clean, infer_shapes, load_model
from lowbit.graph.channels import ChannelGroup, Trace, find_groups, remove_channels, trace_channels
from lowbit.graph.channels.costs import ChannelCosts
from lowbit.methods.calibrate import observed_shapes
from lowbit.methods.channel_allocation import cheapest, step_of, uniform
from lowbit.methods.channel_compensation import compensated
from lowbit.methods.channel_pruning import ChannelPruning, PrunedChannels
from lowbit.methods.channel_scores import GRADIENT_CRITERIA, ChannelCriterion, channel_scores, gradient_scores
from lowbit.methods.rerounding import tells
from lowbit.methods.stages import Stages, silent
from lowbit.plan.recipe import matches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import onnx
    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.data import Dataset, Feed

__all__ = ["Allocation", "prune_channels"]

Allocation = Literal["uniform", "global"]


def prune_channels(
    model: str | Path | onnx.ModelProto | ir.Model,
    amount: float = 0.5,
    data: Any = None,
    *,
    criterion: ChannelCriterion = "l2",
    allocation: Allocation = "uniform",
    round_to: int = 8,
    target_macs: float | None = None,
    target_weights: float | None = None,
    exclude: Sequence[str] = (),
    loss: Callable[..., Any] | None = None,
    compensate: bool = True,
    preprocessing: Preprocessing | None = None,
    samples: int = 64,
    seed: int = 0,
    stages: Stages = silent,
) -> ChannelPruning:
    """Remove whole channels and attention heads of a float model; fine-tune or quantize the result afterwards.

    Args:
        model: Path of an ONNX file, a `ModelProto` or an `onnx_ir.Model`; never changed.
        amount: Fraction that goes, from 0 to below 1: of the units of every group, or with `allocation="global"` of
            all multiplications.
        data: Calibration data, in any form that `lowbit.quantize` takes. Gradients and compensation need them.
        criterion: `l1`, `l2`: norms of the weights that make a channel (Li et al., 2017). `batch-norm`: its scale (Liu
            et al., 2017). `taylor` (Molchanov et al., 2017), `fisher` (Theis et al., 2018): what the loss changes when
            it goes, needs data.
        allocation: `uniform` takes the same fraction everywhere, `global` what matters least for its cost.
        round_to: Channels left in a group are a multiple of this.
        target_macs: Remove channels until so large a fraction of the multiplications is left, in (0, 1].
        target_weights: The same for weights. Either makes the allocation global.
        exclude: Operators whose channels stay, as in recipes: a name with * and ?, `re:EXPRESSION` or `op:TYPE`.
        loss: For gradients: takes the tuple of outputs and the labels, returns a scalar tensor. Without it, what
            counts is how much the outputs change.
        compensate: Refit the weights that read removed channels on the data, where there are any, then every layer
            behind them in sequence; undone where it does not help on samples that were held out.
        preprocessing: What to do to images.
        samples: How many samples are looked at.
        seed: Of everything random.
        stages: Shows progress.

    Returns:
        The pruned float model and what became of every group of channels.

    Raises:
        RecipeError: An option is impossible, or contradicts another.
        DataError: Data are needed and missing, or do not fit.
        ModelError: The model cannot be read, or nothing in it can be pruned.
    """
    _check(amount, criterion, allocation, round_to, target_macs, target_weights, samples)
    if criterion in GRADIENT_CRITERIA and data is None:
        raise DataError(f"the criterion {criterion} was asked for without data", remedy="give calibration samples")
    with stages("Load and clean the model", None):
        cleaned = clean(load_model(model), fold_batch_norms=criterion != "batch-norm").model
    specs = input_specs(cleaned)
    opened = None
    if data is not None:
        opened = open_data(data, specs, preprocessing=preprocessing, limit=samples, seed=seed)
        if not tells(opened):
            raise DataError("random numbers do not say which channels matter", remedy="give samples, or no data")
    example = next(iter(opened if opened is not None else open_data("random", specs, limit=1, seed=seed)))
    trace = trace_channels(cleaned, observed_shapes(cleaned, example))
    groups = find_groups(trace)
    types = {str(node.name): node.op_type for node in cleaned.graph}
    reasons = [_reason(group, types, exclude, round_to) for group in groups]
    free = [group for group, reason in zip(groups, reasons, strict=True) if not reason]
    if not free:
        told = "; ".join(f"{g.name}: {r}" for g, r in list(zip(groups, reasons, strict=True))[:3])
        raise ModelError("no channel of the model can be removed", cause=told, remedy="prune single weights instead")
    with stages("Score channels", None if opened is None else opened.count()) as advance:
        if criterion in GRADIENT_CRITERIA:
            assert opened is not None
            scores = gradient_scores(cleaned, free, _labelled(opened), criterion, loss=loss, seed=seed, advance=advance)
        else:
            scores = channel_scores(cleaned, free, criterion)
    costs = ChannelCosts(trace, free)
    full = np.array([len(group.units) for group in free], np.int64)
    if target_weights is not None:
        kept = cheapest(free, scores, costs.weights, target_weights * costs.weights(full), round_to)
    elif target_macs is not None or allocation == "global":
        share = 1.0 - amount if target_macs is None else target_macs
        kept = cheapest(free, scores, costs.macs, share * costs.macs(full), round_to)
    else:
        kept = uniform(free, amount, round_to)
    _check_reached(target_macs, costs.macs(kept) / max(costs.macs(full), 1.0), "multiplications")
    _check_reached(target_weights, costs.weights(kept) / max(costs.weights(full), 1.0), "weights")
    removed = _removed(free, scores, kept)
    notes: dict[str, str] = {}
    if compensate and opened is not None and len(removed):
        pruned, notes = compensated(trace, removed, opened, samples=samples, seed=seed, stages=stages)
    else:
        pruned = remove_channels(trace, removed)
    number = {id(group): int(count) for group, count in zip(free, kept, strict=True)}
    return ChannelPruning(
        model=infer_shapes(pruned),
        groups=tuple(
            _row(group, number.get(id(group), len(group.units)), reason, notes, trace)
            for group, reason in zip(groups, reasons, strict=True)
        ),
        macs=(costs.macs(full), costs.macs(kept)),
        weights=(costs.weights(full), costs.weights(kept)),
        source=Path(model).name if isinstance(model, (str, Path)) else "model",
    )


def _check(
    amount: float,
    criterion: str,
    allocation: str,
    round_to: int,
    target_macs: float | None,
    target_weights: float | None,
    samples: int,
) -> None:
    if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not 0.0 <= amount < 1.0:
        raise RecipeError(
            f"the amount is {amount!r}",
            cause="a layer without channels computes nothing",
            remedy="give the fraction to prune, from 0 to below 1",
        )
    if criterion not in get_args(ChannelCriterion):
        known = ", ".join(get_args(ChannelCriterion))
        raise RecipeError(f"the criterion is {criterion!r}", remedy=f"for channels, use one of {known}")
    if allocation not in get_args(Allocation):
        raise RecipeError(f"the allocation is {allocation!r}", remedy="use uniform or global")
    if round_to < 1 or samples < 1:
        raise RecipeError(f"round_to is {round_to}, samples {samples}", remedy="give whole numbers from 1 on")
    targets = [target for target in (target_macs, target_weights) if target is not None]
    if len(targets) > 1:
        raise RecipeError("more than one target was given", remedy="give one, of multiplications or of weights")
    if targets and not 0.0 < targets[0] <= 1.0:
        raise RecipeError(f"a target of {targets[0]} was given", remedy="give the fraction that is left, in (0, 1]")


def _check_reached(target: float | None, share: float, what: str) -> None:
    if target is not None and share > target:
        raise RecipeError(
            f"a target of {target:.1%} of the {what} cannot be reached",
            cause=f"with every group cut as far as it may be, {share:.1%} are left",
            remedy="ask for more, use a smaller round_to, or exclude less",
        )


def _labelled(data: Dataset) -> Iterator[tuple[Feed, Any]]:
    labels = data.labels
    size = data.batch_size
    for number, feed in enumerate(data):
        yield feed, None if labels is None else labels[number * size : (number + 1) * size]


def _reason(group: ChannelGroup, types: dict[str, str], exclude: Sequence[str], round_to: int) -> str:
    if group.reason:
        return group.reason
    weights = [name for name, _ in group.members]
    if any(matches(text, maker, types[maker], None) for maker in group.makers for text in exclude) or any(
        matches(text, name, "", None) for name in weights for text in exclude
    ):
        return "excluded"
    step = step_of(group, round_to)
    if len(group.units) <= step:
        channels = len(group.units) * group.width
        return f"{channels} channels are no more than one multiple of {round_to}"
    return ""


def _removed(
    groups: Sequence[ChannelGroup], scores: Sequence[NDArray[np.float64]], kept: NDArray[np.int64]
) -> NDArray[np.int64]:
    lost = [
        group.units[np.argsort(score, kind="stable")[: len(score) - count]]
        for group, score, count in zip(groups, scores, kept.tolist(), strict=True)
    ]
    return np.concatenate(lost)


def _row(group: ChannelGroup, kept: int, reason: str, notes: dict[str, str], trace: Trace) -> PrunedChannels:
    readers = {name for (name, _), role in group.roles.items() if role == "reads"}
    said = [
        f"{node.name}: {notes[str(value.name)]}"
        for node in trace.model.graph
        for value in node.inputs
        if value is not None and value.name in readers and str(value.name) in notes
    ]
    unchanged = kept == len(group.units) and not reason
    return PrunedChannels(
        name=group.name,
        units=len(group.units),
        kept=kept,
        width=group.width,
        reason="the allocation keeps all of it" if unchanged else reason,
        notes=tuple(said),
    )
