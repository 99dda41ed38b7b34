"""The verb `prune`: channels removed for real, or single weights set to zero."""

from __future__ import annotations

import fnmatch
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from lowbit.data import Dataset, Preprocessing, input_specs, open_data
from lowbit.exceptions import DataError, ModelError, RecipeError
from lowbit.graph import clean, load_model
from lowbit.graph.channels import ChannelGroup, Trace, find_groups, remove_channels, trace_channels
from lowbit.graph.channels.costs import ChannelCosts
from lowbit.methods.calibrate import observed_shapes
from lowbit.methods.channel_allocation import cheapest, step_of, uniform
from lowbit.methods.channel_refit import refit_readers
from lowbit.methods.channel_scores import GRADIENT_CRITERIA, ChannelCriterion, channel_scores, gradient_scores
from lowbit.methods.prune_weights import WEIGHT_CRITERIA, prune_weights
from lowbit.methods.pruned import PrunedGroup, PruneResult
from lowbit.methods.stages import Stages, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import onnx
    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.data import Feed

__all__ = ["Allocation", "prune"]

Allocation = Literal["uniform", "global"]


def prune(
    model: str | Path | onnx.ModelProto | ir.Model,
    *,
    structured: bool = True,
    amount: float = 0.5,
    criterion: str | None = None,
    allocation: Allocation = "uniform",
    round_to: int = 8,
    target_macs: float | None = None,
    target_weights: float | None = None,
    pattern: str | None = None,
    data: object = None,
    preprocessing: Preprocessing | None = None,
    samples: int = 64,
    loss: Callable[..., Any] | None = None,
    compensate: bool = True,
    exclude: Sequence[str] = (),
    seed: int = 0,
    stages: Stages = silent,
) -> PruneResult:
    """Prune a float model; fine-tune or quantize the result afterwards.

    Args:
        model: Path of an ONNX file, a protobuf or a graph; never changed.
        structured: Remove whole channels and attention heads, so that every engine is faster; else set single weights
            to zero, which only kernels for sparse weights turn into speed.
        amount: Share that goes, in [0, 1): of the units of every group, or of all multiplications with
            `allocation="global"`, or of weights.
        criterion: What matters: for channels `l1`, `l2`, `batch-norm`, `taylor`, `fisher`; for weights `magnitude`,
            `wanda`, `sparse-gpt`. By default `l2` and `magnitude`.
        allocation: `uniform` takes the same share everywhere, `global` what matters least for its cost.
        round_to: Channels left in a group are a multiple of this.
        target_macs: Remove channels until so large a share of the multiplications is left, in (0, 1].
        target_weights: The same for weights. Either makes the allocation global.
        pattern: For weights: `n:m` keeps n of every m inputs, `RxC` removes blocks of rows and columns.
        data: Calibration samples; see `lowbit.quantize`. Needed by gradients, Wanda, SparseGPT and compensation.
        preprocessing: How a picture becomes an input.
        samples: How many samples are used at most.
        loss: For gradients: takes the tuple of outputs and the labels, returns a scalar tensor.
        compensate: Refit the weights that read removed channels on the data, where there are any; undone where it
            does not help on held-out samples.
        exclude: Operators whose channels or weights stay: names with * and ?.
        seed: Of everything random.
        stages: Opens stages of progress.

    Returns:
        The pruned model and what became of every group.

    Raises:
        RecipeError: An option is out of range, unknown, or contradicts another.
        DataError: Data are missing for what needs them, or do not fit the model.
        ModelError: The model cannot be read, or nothing in it can be pruned.
    """
    chosen = criterion or ("l2" if structured else "magnitude")
    _check(structured, amount, chosen, allocation, round_to, target_macs, target_weights, pattern, samples)
    needs_data = chosen in GRADIENT_CRITERIA or chosen in {"wanda", "sparse-gpt"}
    if needs_data and data is None:
        raise DataError(f"the criterion {chosen} was asked for without data", remedy="give calibration samples")
    source = str(model) if isinstance(model, str | Path) else "model"
    cleaned = clean(load_model(model), fold_batch_norms=chosen != "batch-norm").model
    specs = input_specs(cleaned)
    opened = None if data is None else _opened(data, specs, preprocessing, samples, seed)
    example = next(iter(opened if opened is not None else open_data("random", specs, limit=1, seed=seed)))
    trace = trace_channels(cleaned, observed_shapes(cleaned, example))
    if not structured:
        with stages("pruning weights", None):
            return prune_weights(
                trace, opened, amount=amount, criterion=chosen, pattern=pattern, exclude=exclude, seed=seed,
                everywhere=allocation == "global", source=source,
            )  # fmt: skip
    groups = find_groups(trace)
    reasons = [_reason(group, exclude, round_to) for group in groups]
    free = [group for group, reason in zip(groups, reasons, strict=True) if not reason]
    if not free:
        told = "; ".join(f"{g.name}: {r}" for g, r in list(zip(groups, reasons, strict=True))[:3])
        raise ModelError("no channel of the model can be removed", cause=told, remedy="prune single weights instead")
    with stages("scoring channels", None if opened is None else opened.count()) as advance:
        if chosen in GRADIENT_CRITERIA:
            assert opened is not None
            scores = gradient_scores(
                cleaned, free, _labelled(opened), chosen, loss=loss, seed=seed, advance=advance  # type: ignore[arg-type]
            )  # fmt: skip
        else:
            scores = channel_scores(cleaned, free, chosen)  # type: ignore[arg-type]
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
        with stages("refitting what reads removed channels", None):
            refitted, notes = refit_readers(trace, removed, opened, seed=seed)
            # Layers that err less can still add up to more at the outputs.
            errors = [_error(trace, found, removed, opened) for found in (trace, refitted)]
            if errors[1] < errors[0]:
                trace = refitted
            else:
                notes = dict.fromkeys(notes, f"not refitted: error at the outputs {errors[0]:.1%} -> {errors[1]:.1%}")
    number = {id(group): int(count) for group, count in zip(free, kept, strict=True)}
    return PruneResult(
        model=_finished(remove_channels(trace, removed)),
        groups=tuple(
            _row(group, number.get(id(group), len(group.units)), reason, notes, trace)
            for group, reason in zip(groups, reasons, strict=True)
        ),
        macs=(costs.macs(full), costs.macs(kept)),
        weights=(costs.weights(full), costs.weights(kept)),
        source=source,
    )


def _check(
    structured: bool, amount: float, criterion: str, allocation: str, round_to: int,
    target_macs: float | None, target_weights: float | None, pattern: str | None, samples: int,
) -> None:  # fmt: skip
    from lowbit.pruning.masks import check_amount

    check_amount(amount)
    known = get_args(ChannelCriterion) if structured else WEIGHT_CRITERIA
    if criterion not in known:
        kind = "channels" if structured else "weights"
        raise RecipeError(f"{criterion!r} is no criterion for {kind}", remedy=f"use one of {', '.join(known)}")
    if allocation not in get_args(Allocation):
        raise RecipeError(f"{allocation!r} is no allocation", remedy="use uniform or global")
    if round_to < 1 or samples < 1:
        raise RecipeError(f"round_to is {round_to}, samples {samples}", remedy="give whole numbers from 1 on")
    targets = [target for target in (target_macs, target_weights) if target is not None]
    if len(targets) > 1 or (targets and not structured):
        raise RecipeError("more than one target was given, or one for single weights", remedy="give one, for channels")
    if targets and not 0.0 < targets[0] <= 1.0:
        raise RecipeError(f"a target of {targets[0]} was given", remedy="give the share that is left, in (0, 1]")
    if structured and pattern is not None:
        raise RecipeError(f"the pattern {pattern!r} is for single weights", remedy="add structured=False")


def _check_reached(target: float | None, share: float, what: str) -> None:
    if target is not None and share > target:
        raise RecipeError(
            f"a target of {target:.1%} of the {what} cannot be reached",
            cause=f"with every group cut as far as it may be, {share:.1%} are left",
            remedy="ask for more, use a smaller round_to, or exclude less",
        )


def _error(whole: Trace, found: Trace, removed: NDArray[np.int64], data: Dataset) -> float:
    """Return the error of all float outputs without the removed channels, relative to their size."""
    from lowbit.runtime.session import open_session
    from lowbit.runtime.staging import staged

    with staged(whole.model) as before, staged(remove_channels(found, removed)) as after:
        sessions = [open_session(before), open_session(after)]
    lost = power = 0.0
    for feed in islice(data, 64):
        for reference, got in zip(*(session.run(feed) for session in sessions), strict=True):
            if reference.dtype.kind == "f":
                lost += float(np.square(got.astype(np.float64) - reference).sum())
                power += float(np.square(reference.astype(np.float64)).sum())
    return float(np.sqrt(lost / max(power, 1e-30)))


def _opened(data: object, specs: Any, preprocessing: Preprocessing | None, samples: int, seed: int) -> Dataset:
    if isinstance(data, Dataset):
        return data
    return open_data(data, specs, preprocessing=preprocessing, limit=samples, seed=seed)


def _labelled(data: Dataset) -> Iterator[tuple[Feed, Any]]:
    labels = data.labels
    size = data.batch_size
    for number, feed in enumerate(data):
        yield feed, None if labels is None else labels[number * size : (number + 1) * size]


def _reason(group: ChannelGroup, exclude: Sequence[str], round_to: int) -> str:
    if group.reason:
        return group.reason
    if any(fnmatch.fnmatchcase(maker, text) for maker in group.makers for text in exclude):
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


def _row(group: ChannelGroup, kept: int, reason: str, notes: dict[str, str], trace: Trace) -> PrunedGroup:
    readers = {name for (name, _), role in group.roles.items() if role == "reads"}
    said = [
        f"{node.name}: {notes[str(value.name)]}"
        for node in trace.model.graph
        for value in node.inputs
        if value is not None and value.name in readers and str(value.name) in notes
    ]
    unchanged = kept == len(group.units) and not reason
    return PrunedGroup(
        name=group.name,
        units=len(group.units),
        kept=kept,
        width=group.width,
        reason="the allocation keeps all of it" if unchanged else reason,
        notes=tuple(said),
    )


def _finished(model: ir.Model) -> ir.Model:
    from lowbit.graph import infer_shapes

    return infer_shapes(model)
