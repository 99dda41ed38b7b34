"""Restoring a quantized model block by block: roundings, weight scales, biases and activation scales are learned.

One block after the other is trained to give the float block's outputs from what the quantized blocks before it give (Li
et al., BRECQ, 2021; Wei et al., QDrop, 2022), then all of them together. What was learned goes into the plan, so that
applying it needs neither data nor PyTorch. A block that is no better on samples it has not learned from keeps what it
had.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbit.methods.block_samples import open_stream
from lowbit.methods.learned_blocks import PlanLearner
from lowbit.methods.learned_graph import for_any_batch, squeezed_outputs
from lowbit.methods.learning_checkpoint import LearningCheckpoint, identity_of
from lowbit.methods.schedules import Schedules, usual_schedules
from lowbit.plan.sites import Site, find_sites
from lowbit.reconstruction.partition import Block, partition
from lowbit.reconstruction.store import TensorStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    import onnx_ir as ir

    from lowbit.methods.schedules import Learning
    from lowbit.plan.plan import Plan
    from lowbit.reconstruction.learning import LearnedBlock
    from lowbit.runtime.session import Feed
    from lowbit.targets import Target

__all__ = ["Reconstruction", "Schedules", "count_blocks", "reconstruct", "usual_schedules"]

# Share of the time that blocks get before all of them learn together.
_BLOCKS_SHARE = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """What was learned.

    Attributes:
        plan: The plan with it.
        blocks: By the name of a block's last tensor, its error before and after.
        seconds: How long it took.
    """

    plan: Plan
    blocks: dict[str, LearnedBlock]
    seconds: float


def reconstruct(
    model: ir.Model,
    plan: Plan,
    target: Target,
    feeds: Iterable[Feed],
    *,
    kind: Learning = "learned",
    schedules: Schedules | None = None,
    seconds: float | None = None,
    seed: int = 0,
    memory: int = 2 << 30,
    checkpoint: Path | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Reconstruction:
    """Learn what restores the float outputs of every block of a plan.

    Args:
        model: The cleaned float model; left unchanged.
        plan: The plan to start from.
        target: Where the model will run.
        feeds: Calibration samples; all of them are held, as far as `memory` allows in memory, beyond it on disk.
        kind: How roundings are learned. `adaround` learns layer by layer and leaves weight scales as they are.
        schedules: How long and how fast to learn; by default longer for fewer bits.
        seconds: Time for all blocks; schedules are shortened to keep it, and what is learned then depends on how fast
            this machine is. `None` is no limit.
        seed: Of batches and dropping.
        memory: Bytes of activations in memory.
        checkpoint: A folder in which blocks that are done are stored, and from which the same call continues. It stays
            when all is done.
        advance: Called after every block.

    Raises:
        ModelError: The graph has element types that PyTorch does not have.
        RecipeError: The checkpoint belongs to other learning, or is damaged.
        OutputError: The checkpoint cannot be written.
    """
    schedules = schedules or usual_schedules(plan, kind)
    started = time.monotonic()
    until = None if seconds is None else started + seconds
    batched = for_any_batch(model)
    sites = find_sites(batched, target)
    grouped = _groups(sites)
    blocks = _blocks(batched, grouped, kind)
    found: dict[str, LearnedBlock] = {}
    feeds = list(feeds)
    stored = None
    if checkpoint is not None:
        settings = (target.name, kind, schedules, seconds, seed, memory)
        stored = LearningCheckpoint(checkpoint, identity_of(model, plan, feeds, settings))
    # The blocks one after the other, then all of them together.
    together = schedules.whole if len(blocks) > 1 else None
    passes = [("block", blocks, schedules.blocks, 1.0 if together is None else _BLOCKS_SHARE)]
    if together is not None:
        passes.append(("whole", _whole(batched, blocks, grouped), together, 1.0))
    for name, parts, pace, share in passes:
        left = None if until is None else (until - time.monotonic()) * share
        learner = PlanLearner(batched, sites, plan, target, dataclasses.replace(pace, seed=seed), kind, stored)
        found |= _pass(name, learner, parts, feeds, memory, left, advance)
        plan = learner.planned()
    return Reconstruction(plan=plan, blocks=found, seconds=time.monotonic() - started)


def count_blocks(model: ir.Model, plan: Plan, target: Target, kind: Learning = "learned") -> int:
    """Return how many blocks `reconstruct` learns, all of them together counted as one more."""
    blocks = len(_blocks(model, _groups(find_sites(model, target)), kind))
    return blocks + (usual_schedules(plan, kind).whole is not None and blocks > 1)


def _blocks(model: ir.Model, groups: Sequence[Sequence[ir.Node]], kind: Learning) -> tuple[Block, ...]:
    """Return the blocks to learn; AdaRound's are single layers, where one tensor lies between them."""
    blocks = partition(model.graph, groups, fewest=1) if kind == "adaround" else partition(model.graph, groups)
    return tuple(_unsqueezed(model, block) for block in blocks)


def _unsqueezed(model: ir.Model, block: Block) -> Block:
    """Return a block that also gives what its squeezed outputs are squeezed from."""
    own = {value.name for node in block.nodes for value in node.outputs}
    read = [read for name, read in squeezed_outputs(model).items() if name in block.outputs and read in own]
    return dataclasses.replace(block, outputs=tuple(dict.fromkeys((*read, *block.outputs))))


def _whole(model: ir.Model, blocks: Sequence[Block], groups: Sequence[Sequence[ir.Node]]) -> tuple[Block, ...]:
    """Return the graph as one block, whose outputs are also what the blocks gave and what the last operators read.

    Few samples say little by their outputs alone, and much by what they are made of on the way.
    """
    whole = partition(model.graph, groups, fewest=len(groups) + 1)
    if len(whole) > 1:
        return whole
    final = whole[0].outputs
    watched = [name for block in blocks for name in block.outputs if name not in final]
    return (_unsqueezed(model, dataclasses.replace(whole[0], outputs=(*dict.fromkeys(watched), *final))),)


def _groups(sites: Sequence[Site]) -> list[list[ir.Node]]:
    """Return what is never cut apart: operators with weights, with their biases and activations."""
    return [
        [node for node in (site.node, site.bias_node, *site.fused) if node is not None]
        for site in sites
        if site.weight_index is not None and not site.subgraph
    ]


def _pass(
    name: str,
    learner: PlanLearner,
    blocks: Sequence[Block],
    feeds: Iterable[Feed],
    memory: int,
    seconds: float | None,
    advance: Callable[[], None],
) -> dict[str, LearnedBlock]:
    """Learn all blocks, one after the other."""
    started = time.monotonic()
    found: dict[str, LearnedBlock] = {}
    with TensorStore(memory // 2) as exact, TensorStore(memory // 2) as coded:
        stream = open_stream(exact, coded, feeds)
        for index, block in enumerate(blocks):
            left = None if seconds is None else (seconds - (time.monotonic() - started)) / (len(blocks) - index)
            result = learner.block(f"{name}-{index:04d}", block, stream, left)
            if result is not None:
                found[block.outputs[-1]] = result
            later = {one for after in blocks[index + 1 :] for one in after.inputs}
            exact.keep_only(later)
            coded.keep_only(later)
            advance()
    return found
