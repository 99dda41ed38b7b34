"""The verb that leaves out whole residual branches: those that the outputs miss least for what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.data import Preprocessing, input_specs, open_data
from lowbit.exceptions import DataError, ModelError, RecipeError
from lowbit.graph import clean, infer_shapes, load_model, save_model
from lowbit.graph.channels import trace_channels
from lowbit.graph.channels.costs import ChannelCosts
from lowbit.graph.residual_branches import residual_branches, without_branches
from lowbit.methods.calibrate import observed_shapes
from lowbit.methods.output_error import OutputError
from lowbit.methods.rerounding import tells
from lowbit.methods.stages import Stages, silent
from lowbit.plan.recipe import matches
from lowbit.report.plain import plain_text
from lowbit.runtime.session import open_session
from lowbit.runtime.staging import staged, with_outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx
    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.data import Feed
    from lowbit.graph.residual_branches import ResidualBranch

__all__ = ["BranchPruning", "PrunedBranch", "prune_branches"]

_IMAGE_RANK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedBranch:
    """One residual branch.

    Attributes:
        add: The Add that ends it.
        operators: How many operators it has.
        macs: Its multiplications for one sample.
        error: Error of the outputs when it was left out, along with those before it, relative to their size; `None`
            where it was never tried.
        place: 1 for the first that was left out; 0 if it stays.
    """

    add: str
    operators: int
    macs: float
    error: float | None
    place: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BranchPruning:
    """A model with fewer branches and its account.

    Attributes:
        model: The artifact; leave it unchanged.
        branches: All residual branches, in the graph's order.
        macs: Multiplications of one sample before and after.
        source: What was pruned, as the user named it.
    """

    model: ir.Model
    branches: tuple[PrunedBranch, ...]
    macs: tuple[float, float]
    source: str = "model"

    def save(self, path: str | Path) -> list[Path]:
        """Write the artifact as ONNX, atomically.

        Raises:
            OutputError: The file cannot be written; whatever stood there is untouched.
        """
        return save_model(self.model, path)

    def __str__(self) -> str:
        """Return the account as plain text, as wide as the terminal."""
        return plain_text(self.renderables())

    def renderables(self) -> Sequence[object]:
        """Return the account for a `rich` console."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, title=f"{self.source}: residual branches", title_justify="left")
        for heading in ("added by", "operators", "multiplications", "left out", "error then"):
            table.add_column(heading, justify="left" if heading == "added by" else "right")
        for branch in self.branches:
            table.add_row(
                Text(branch.add),
                str(branch.operators),
                f"{branch.macs / 1e6:.2f} M",
                f"{branch.place}." if branch.place else "",
                "" if branch.error is None else f"{branch.error:.1%}",
            )
        return [table, Text(f" multiplications {self.macs[0] / 1e6:.2f} M -> {self.macs[1] / 1e6:.2f} M")]


def prune_branches(
    model: str | Path | onnx.ModelProto | ir.Model,
    data: Any,
    *,
    count: int | None = None,
    target_macs: float | None = None,
    exclude: Sequence[str] = (),
    compensate: bool = True,
    preprocessing: Preprocessing | None = None,
    samples: int = 64,
    seed: int = 0,
    stages: Stages = silent,
) -> BranchPruning:
    """Leave out residual branches of a float model, one after the other; fine-tune or quantize the result afterwards.

    A network with residual connections is an ensemble of shorter ones (Veit et al., 2016), and loses little with a
    branch less; every engine becomes faster by all of the branch's time. Each time the branch goes whose absence costs
    the outputs the least squared error for every multiplication saved, measured without those that went before.

    Args:
        model: Path of an ONNX file, a `ModelProto` or an `onnx_ir.Model`; never changed.
        data: Calibration data, in any form that `lowbit.quantize` takes.
        count: How many branches go.
        target_macs: Branches go until so large a fraction of the multiplications is left, in (0, 1].
        exclude: Adds whose branches stay, as in recipes: a name with * and ?, or `re:EXPRESSION`.
        compensate: The mean of what a branch adds, per channel, is added in its place, where that makes the error less.
        preprocessing: What to do to images.
        samples: How many samples are looked at.
        seed: Of the choice of samples.
        stages: Shows progress.

    Raises:
        RecipeError: Not one of `count` and `target_macs` was given, or it cannot be reached.
        DataError: The data do not fit.
        ModelError: The model cannot be read, or has no residual branches.
    """
    _check(count, target_macs, samples)
    if data is None:
        raise DataError("no data were given", cause="branches are tried on them", remedy="give samples (--data)")
    with stages("Load and clean the model", None):
        cleaned = clean(load_model(model)).model
    opened = open_data(data, input_specs(cleaned), preprocessing=preprocessing, limit=samples, seed=seed)
    if not tells(opened):
        raise DataError("random numbers do not say which branches matter", remedy="give samples")
    feeds = list(opened)
    shapes = observed_shapes(cleaned, feeds[0])
    branches = residual_branches(cleaned, shapes)
    free = [one for one in branches if not any(matches(text, one.add, "Add", None) for text in exclude)]
    if not free:
        raise ModelError(
            "no branch of the model can be left out",
            cause=f"it has {len(branches)} residual branches, all of them excluded"
            if branches
            else "no tensor is added to something that is computed from it alone and has its shape",
            remedy="remove channels instead: lowbit.prune_channels",
        )
    whole = _macs(cleaned, shapes)
    costs = {one: whole - _macs(without_branches(cleaned, {one: None}), shapes) for one in branches}
    wanted = len(free) if count is None else count
    goal = 0.0 if target_macs is None else target_macs * whole
    if wanted > len(free) or (target_macs is not None and whole - sum(costs[one] for one in free) > goal):
        raise RecipeError(
            f"{count} branches cannot go" if count is not None else f"a target of {target_macs:.1%} cannot be reached",
            cause=f"{len(free)} of {len(branches)} residual branches may go, with "
            f"{sum(costs[one] for one in free) / max(whole, 1.0):.1%} of the multiplications",
            remedy="ask for less, or remove channels too",
        )
    judge = OutputError(cleaned, feeds)
    means = _means(cleaned, free, feeds) if compensate else dict.fromkeys(free)
    gone: dict[ResidualBranch, NDArray[np.float32] | None] = {}
    errors: dict[ResidualBranch, float] = {}
    with stages("Leave branches out", None):
        while len(gone) < wanted and (target_macs is None or whole - sum(costs[one] for one in gone) > goal):
            tried = {
                one: min(
                    (
                        (judge.of(without_branches(cleaned, {**gone, one: filling})), filling)
                        for filling in _fillings(means[one])
                    ),
                    key=lambda pair: pair[0],
                )
                for one in free
                if one not in gone
            }
            best = min(tried, key=lambda one: tried[one][0] ** 2 / max(costs[one], 1.0))
            errors.update({one: found for one, (found, _) in tried.items()})
            gone[best] = tried[best][1]
    result = infer_shapes(without_branches(cleaned, gone))
    order = {one: number for number, one in enumerate(gone, 1)}
    return BranchPruning(
        model=result,
        branches=tuple(
            PrunedBranch(
                add=one.add,
                operators=len(one.operators),
                macs=costs[one],
                error=errors.get(one),
                place=order.get(one, 0),
            )
            for one in branches
        ),
        macs=(whole, whole - sum(costs[one] for one in gone)),
        source=Path(model).name if isinstance(model, (str, Path)) else "model",
    )


def _check(count: int | None, target_macs: float | None, samples: int) -> None:
    if (count is None) == (target_macs is None):
        raise RecipeError(
            "count and target_macs are both given" if count is not None else "neither count nor target_macs is given",
            remedy="give one: how many branches go, or the fraction of the multiplications that is left",
        )
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise RecipeError(f"count is {count!r}", remedy="give a whole number from 1 on")
    if target_macs is not None and not 0.0 < target_macs <= 1.0:
        raise RecipeError(f"a target of {target_macs} was given", remedy="give the fraction that is left, in (0, 1]")
    if samples < 1:
        raise RecipeError(f"samples is {samples}", remedy="give a whole number from 1 on")


def _fillings(mean: NDArray[np.float32] | None) -> tuple[NDArray[np.float32] | None, ...]:
    return (None,) if mean is None else (None, mean)


def _macs(model: ir.Model, shapes: dict[str, tuple[int, ...]]) -> float:
    return ChannelCosts(trace_channels(model, shapes), []).macs(np.zeros(0, np.int64))


def _means(
    model: ir.Model, branches: Sequence[ResidualBranch], feeds: Sequence[Feed]
) -> dict[ResidualBranch, NDArray[np.float32] | None]:
    """Return what every branch adds on average: per channel of pictures `[1, C, 1, 1]`, else of the last axis."""
    names = [one.output for one in branches]
    with staged(with_outputs(model, tuple(names))) as source:
        session = open_session(source, optimized=False)
    sums: list[NDArray[np.float64] | None] = [None] * len(names)
    counts = [0] * len(names)
    for feed in feeds:
        for number, array in enumerate(session.run(feed, names)):
            axes = (0, *range(2, array.ndim)) if array.ndim >= _IMAGE_RANK else tuple(range(array.ndim - 1))
            part = array.astype(np.float64).sum(axis=axes, keepdims=True)
            before = sums[number]
            sums[number] = part if before is None else before + part
            counts[number] += int(np.prod([array.shape[axis] for axis in axes]))
    return {
        one: None if total is None else (total / max(number, 1)).astype(np.float32)
        for one, total, number in zip(branches, sums, counts, strict=True)
    }
