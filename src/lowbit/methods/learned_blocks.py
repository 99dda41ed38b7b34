"""Learning the blocks of a plan one after the other, and keeping what helped."""

from __future__ import annotations

import dataclasses
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowbit.formats import parse_format
from lowbit.methods.block_samples import Batches, given, samples_join
from lowbit.methods.learned_graph import DROPPED, block_module, learned_graph, squeezed_outputs
from lowbit.methods.learned_weights import WeightEncoder, learnable, rounds, soft_weight
from lowbit.methods.site_weights import final_bias
from lowbit.plan.packed import pack_floats
from lowbit.reconstruction.learning import BlockLearner, LearnedBias, LearnedBlock, Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.interpreter import Interpreter
    from lowbit.methods.block_samples import Stream, Wanted
    from lowbit.methods.learning_checkpoint import LearningCheckpoint
    from lowbit.methods.schedules import Learning
    from lowbit.methods.weights import EncodedWeight
    from lowbit.plan.plan import ActivationPlan, Plan
    from lowbit.plan.sites import Site
    from lowbit.reconstruction.partition import Block
    from lowbit.reconstruction.soft_weight import SoftWeight
    from lowbit.targets import Target

__all__ = ["PlanLearner"]

_LEARNED = frozenset({"static", "weight-only"})
# Numbers that a batch carries, from which on all threads take part.
_WORTH_SHARING = 1 << 18
# What the model's own outputs have in the error, beside tensors on the way to them.
_FINAL_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class _LearnedSite:
    """What was learned for one site."""

    rounding: str | None
    scale: NDArray[np.float32] | None
    bias: NDArray[np.float32] | None
    note: str


class PlanLearner:
    """Learns one block after the other and keeps what helped.

    Args:
        model: The cleaned float model, for any batch.
        sites: Its sites.
        plan: The plan to start from.
        target: Where the model will run.
        schedule: How long and how fast each block learns.
        kind: How roundings are learned.
        checkpoint: Where blocks that are done are stored.
    """

    def __init__(
        self,
        model: ir.Model,
        sites: Sequence[Site],
        plan: Plan,
        target: Target,
        schedule: Schedule,
        kind: Learning = "learned",
        checkpoint: LearningCheckpoint | None = None,
    ) -> None:
        self.model, self.plan, self.schedule, self.kind, self.checkpoint = model, plan, schedule, kind, checkpoint
        self.entries = {entry.node: entry for entry in plan.sites}
        self.sites = {
            site.path: site
            for site in sites
            if self.entries[site.path].execution in _LEARNED and learnable(site, self.entries[site.path])
        }
        self.learned = learned_graph(model, plan, target, self.sites)
        tensors = {tensor.tensor: tensor for tensor in plan.activations}
        self.scales = {name: math.log(tensor.scale) for name, tensor in tensors.items()}
        self.found: dict[str, _LearnedSite] = {}
        self.moved: dict[str, float] = {}
        self.encoder = WeightEncoder(
            target=target, method=plan.options.get("weight_range", "minmax"), tensors=tensors, moved=self.moved
        )
        counts: dict[tuple[float, int], int] = {}
        for tensor in plan.activations:
            counts[tensor.scale, tensor.zero_point] = counts.get((tensor.scale, tensor.zero_point), 0) + 1
        # A scale that several tensors share is not learned: it would have to fit them all.
        self.alone = {
            tensor.tensor
            for tensor in plan.activations
            if counts[tensor.scale, tensor.zero_point] == 1 and not tensor.reason.startswith("range of")
        }

    def block(self, name: str, block: Block, stream: Stream, seconds: float | None) -> LearnedBlock | None:
        """Learn one block and move both streams behind it.

        Args:
            name: What the block is stored as in the checkpoint.
            block: The block.
            stream: What is read in front of it; holds afterwards what it gives.
            seconds: How long it may take.

        Returns:
            What was learned, `None` if there is nothing to learn.
        """
        plain = block_module(self.model, block.inputs, block.outputs)
        module = block_module(self.learned.model, block.inputs, block.outputs)
        for part in (plain, module):
            part.requires_grad_(requires_grad=False)
        known = set(module.input_names)
        paths = [path for path, read in self.learned.weights.items() if read in known]
        wanted: Wanted = {}
        if paths:
            with torch.no_grad():
                wanted = {
                    sample: plain(**given(plain, block, stream.exact, sample)) for sample in range(stream.samples)
                }
        learner, encoded = self._prepared(module, block, paths)
        result = None
        if paths and block.outputs:
            result = self._settled(
                name,
                learner,
                encoded,
                lambda: self._learn(learner, encoded, plain, block, stream, wanted, seconds),
            )
        weights = learner.hard()
        with torch.no_grad():
            for sample in range(stream.samples):
                exact = wanted[sample] if sample in wanted else plain(**given(plain, block, stream.exact, sample))
                coded = learner.run(given(module, block, stream.coded, sample), weights, 0.0)
                for output, one, other in zip(block.outputs, exact, coded, strict=True):
                    stream.exact.put(output, sample, one)
                    stream.coded.put(output, sample, other)
        return result

    def _settled(
        self,
        name: str,
        learner: BlockLearner,
        encoded: dict[str, EncodedWeight],
        learn: Callable[[], LearnedBlock],
    ) -> LearnedBlock:
        """Return what is stored of a block, or learn it now; keep it if it helped."""
        state = learner.state()
        stored = self.checkpoint.load(name, state) if self.checkpoint is not None else None
        if stored is not None:
            result, learned = stored
            learner.restore(learned)
        else:
            result = learn()
            if self.checkpoint is not None:
                self.checkpoint.save(name, result, learner.state())
        if result.helped:
            self._keep(learner, encoded, result)
            return result
        learner.restore(state)
        for path, weight in encoded.items():
            read = self.learned.weights[path]
            learner.weights.pop(read, None)
            learner.fixed[read] = torch.from_numpy(weight.decode().copy())
        return result

    def _prepared(
        self, module: Interpreter, block: Block, paths: Sequence[str]
    ) -> tuple[BlockLearner, dict[str, EncodedWeight]]:
        weights: dict[str, SoftWeight] = {}
        fixed: dict[str, torch.Tensor] = {}
        biases: dict[str, LearnedBias] = {}
        encoded: dict[str, EncodedWeight] = {}
        for path in paths:
            site, entry = self.sites[path], self.entries[path]
            encoded[path] = self.encoder.planned(site, entry)
            name = self.learned.weights[path]
            if rounds(encoded[path]):
                weights[name] = soft_weight(site, encoded[path], self.kind)
            else:
                fixed[name] = torch.from_numpy(encoded[path].decode().copy())
            if path in self.learned.biases:
                bias = final_bias(site, encoded[path], entry)
                assert bias is not None
                biases[self.learned.biases[path]] = LearnedBias(torch.from_numpy(bias))
        known = set(module.input_names)
        scales = {
            name: torch.nn.Parameter(torch.tensor(self.scales[tensor]))
            for tensor, name in self.learned.scales.items()
            if name in known
        }
        inside = {value.name for node in block.nodes for value in node.outputs} - set(block.outputs)
        free = frozenset(
            name
            for tensor, name in self.learned.scales.items()
            if name in scales and tensor in self.alone and (tensor in inside or tensor in block.inputs)
        )
        learner = BlockLearner(
            module=module,
            inputs=block.inputs,
            weights=weights,
            fixed=fixed,
            biases=biases,
            scales=scales,
            dropped=DROPPED,
            learn_scales=free,
            output_shares=self._shares(block),
        )
        return learner, encoded

    def _shares(self, block: Block) -> tuple[float, ...]:
        """Return what part each output has in the error: the model's own ones a half, if there are others.

        Where an output is squeezed and what it is squeezed from is given too, that takes its place: near the ends of a
        Softmax small errors vanish, and in between they leap.
        """
        squeezed = {name: read for name, read in squeezed_outputs(self.model).items() if read in block.outputs}
        leaving = {squeezed.get(str(value.name), str(value.name)) for value in self.model.graph.outputs}
        final = [name for name in block.outputs if name in leaving]
        others = [name for name in block.outputs if name not in leaving and name not in squeezed]
        if not final or not (others or squeezed):
            return ()
        among = _FINAL_SHARE if others else 1.0
        shares = dict.fromkeys(final, among / len(final)) | dict.fromkeys(others, (1 - among) / max(len(others), 1))
        return tuple(shares.get(name, 0.0) for name in block.outputs)

    def _learn(
        self,
        learner: BlockLearner,
        encoded: dict[str, EncodedWeight],
        plain: Interpreter,
        block: Block,
        stream: Stream,
        wanted: Wanted,
        seconds: float | None,
    ) -> LearnedBlock:
        testing = [given(learner.module, block, stream.coded, sample) for sample in stream.testing]
        targets = [wanted[sample] for sample in stream.testing]
        start = {self.learned.weights[path]: torch.from_numpy(one.decode().copy()) for path, one in encoded.items()}
        before = learner.error(testing, targets, start)
        schedule = self.schedule
        together = samples_join(plain, block, stream, wanted)
        mixing = plain if schedule.mixed else None
        batches = Batches(learner.module, block, stream, wanted, schedule.batch, together=together, mixing=mixing)

        def judge() -> float:
            found: float = learner.error(testing, targets, learner.hard())
            return found

        if seconds is not None:
            state = learner.state()
            steps = _affordable(learner, batches, judge, schedule, seconds)
            schedule = dataclasses.replace(schedule, steps=steps)
            learner.restore(state)
        with _threads(self._numbers(block, stream, wanted)):
            after = learner.learn(batches, judge, schedule)
        return LearnedBlock(before=before, after=after, steps=schedule.steps)

    def _numbers(self, block: Block, stream: Stream, wanted: Wanted) -> int:
        """Return how many numbers a batch carries into a block and out of it."""
        sample = stream.training[0] if len(stream.training) else 0
        tensors = [*(stream.exact.get(name, sample) for name in block.inputs), *wanted[sample]]
        return self.schedule.batch * sum(int(tensor.numel()) for tensor in tensors)

    def _keep(self, learner: BlockLearner, encoded: dict[str, EncodedWeight], result: LearnedBlock) -> None:
        for tensor, name in self.learned.scales.items():
            if name in learner.learn_scales:
                self.scales[tensor] = float(learner.scales[name].detach())
                self.moved[tensor] = float(np.float32(math.exp(self.scales[tensor])))
        verb = "learned by AdaRound" if self.kind == "adaround" else "learned"
        note = f"{verb}: squared error of its block {result.before:.2%} -> {result.after:.2%} of the signal"
        for path in encoded:
            name = self.learned.weights[path]
            bias = learner.biases.get(self.learned.biases.get(path, ""))
            rounding, scale = None, None
            if name in learner.weights:
                rounding, scale = self.encoder.stored(self.sites[path], self.entries[path], learner.weights[name])
            self.found[path] = _LearnedSite(
                rounding=rounding, scale=scale, bias=None if bias is None else bias().detach().numpy(), note=note
            )

    def planned(self) -> Plan:
        """Return the plan with what was learned."""
        entries = []
        for entry in self.plan.sites:
            learned = self.found.get(entry.node)
            if learned is None:
                entries.append(entry)
                continue
            changes: dict[str, Any] = {"notes": (*entry.notes, learned.note)}
            if learned.rounding is not None and learned.scale is not None:
                changes.update(rounding=learned.rounding, scale=pack_floats(learned.scale.reshape(-1)))
            if learned.bias is not None:
                changes.update(bias=pack_floats(learned.bias), input_mean=None)
            entries.append(dataclasses.replace(entry, **changes))
        activations = tuple(
            _rescaled(tensor, self.moved[tensor.tensor]) if tensor.tensor in self.moved else tensor
            for tensor in self.plan.activations
        )
        return dataclasses.replace(self.plan, sites=tuple(entries), activations=activations)


@contextmanager
def _threads(numbers: int) -> Iterator[None]:
    """Compute in one thread where there is little to share: meeting again would take longer than the work.

    Not measured, because the number of threads shows in the last bits of sums, and the same seed gives the same bytes.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if numbers < _WORTH_SHARING else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _affordable(
    learner: BlockLearner, batches: Batches, judge: Callable[[], float], schedule: Schedule, seconds: float
) -> int:
    """Return how many steps fit into a time, of which a few are tried."""
    trial = 3
    begin = time.monotonic()
    learner.learn(batches, lambda: 0.0, dataclasses.replace(schedule, steps=trial))
    middle = time.monotonic()
    judge()
    judging = (time.monotonic() - middle) * (schedule.judged + 1)
    each = (middle - begin) / trial
    return max(min(schedule.steps, int((seconds - judging) / max(each, 1e-9))), 1)


def _rescaled(tensor: ActivationPlan, scale: float) -> ActivationPlan:
    scale = float(np.float32(scale))
    low, high = parse_format(tensor.format).code_range()
    return dataclasses.replace(
        tensor,
        scale=scale,
        low=(low - tensor.zero_point) * scale,
        high=(high - tensor.zero_point) * scale,
        reason=f"{tensor.reason}, then learned",
    )
