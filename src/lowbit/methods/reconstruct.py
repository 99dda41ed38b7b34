"""Restoring a quantized model block by block: roundings, weight scales, biases and activation scales are learned.

One block after the other is trained to give the float block's outputs from what the quantized blocks before it give (Li
et al., BRECQ, 2021; Wei et al., QDrop, 2022), then all of them together. What was learned goes into the plan, so that
applying it needs neither data nor PyTorch. A block that is no better on samples it has not learned from keeps what it
had.
"""

from __future__ import annotations

import dataclasses
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowbit.formats import Format, parse_format
from lowbit.methods.learned_graph import DROPPED, block_module, for_any_batch, learned_graph
from lowbit.methods.site_weights import final_bias
from lowbit.methods.weights import EncodedWeight, encode_weight, kernel_matrix, rerounded
from lowbit.plan.packed import pack_floats, pack_steps, unpack_floats
from lowbit.plan.sites import Site, find_sites
from lowbit.reconstruction.learned_rounding import LearnedRounding
from lowbit.reconstruction.learning import BlockLearner, LearnedBias, LearnedBlock, Schedule
from lowbit.reconstruction.partition import Block, partition
from lowbit.reconstruction.store import TensorStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.interpreter import Interpreter
    from lowbit.plan.plan import ActivationPlan, Plan, SitePlan
    from lowbit.rounding import RangeMethod
    from lowbit.runtime.session import Feed
    from lowbit.targets import Target

__all__ = ["Reconstruction", "Schedules", "count_blocks", "reconstruct", "usual_schedules"]

_LEARNED = frozenset({"static", "weight-only"})
# Share of the time that blocks get before all of them learn together.
_BLOCKS_SHARE = 0.6
_HELD_OUT = 0.2
_INT8_MAXIMUM = 127
# Numbers that a batch carries, from which on all threads take part.
_WORTH_SHARING = 1 << 18
_MOST_HELD_OUT = 32


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedules:
    """How long and how fast a model learns.

    Attributes:
        blocks: For every block.
        whole: For all of them together afterwards, for the outputs of the model; `None` leaves it out.
    """

    blocks: Schedule
    whole: Schedule | None = None


def usual_schedules(plan: Plan) -> Schedules:
    """Return schedules for the weights of a plan: at 8 bits little is left to be learned."""
    elements = [parse_format(entry.weights).element for entry in plan.sites if entry.weights is not None]
    if all(element.kind != "integer" or element.maximum >= _INT8_MAXIMUM for element in elements):
        return Schedules(blocks=Schedule(steps=40))
    return Schedules(blocks=Schedule(), whole=Schedule(dropped=0.0))


def reconstruct(
    model: ir.Model,
    plan: Plan,
    target: Target,
    feeds: Iterable[Feed],
    *,
    schedules: Schedules | None = None,
    seconds: float | None = None,
    seed: int = 0,
    memory: int = 2 << 30,
    advance: Callable[[], None] = lambda: None,
) -> Reconstruction:
    """Learn what restores the float outputs of every block of a plan.

    Args:
        model: The cleaned float model; left unchanged.
        plan: The plan to start from.
        target: Where the model will run.
        feeds: Calibration samples; all of them are held, as far as `memory` allows in memory, beyond it on disk.
        schedules: How long and how fast to learn; by default longer for fewer bits.
        seconds: Time for all blocks; schedules are shortened to keep it, and what is learned then depends on how fast
            this machine is. `None` is no limit.
        seed: Of batches and dropping.
        memory: Bytes of activations in memory.
        advance: Called after every block.

    Raises:
        ModelError: The graph has element types that PyTorch does not have.
    """
    schedules = schedules or usual_schedules(plan)
    started = time.monotonic()
    until = None if seconds is None else started + seconds
    batched = for_any_batch(model)
    sites = find_sites(batched, target)
    grouped = _groups(sites)
    blocks = partition(batched.graph, grouped)
    found: dict[str, LearnedBlock] = {}
    feeds = list(feeds)
    # The blocks one after the other, then all of them together.
    together = schedules.whole if len(blocks) > 1 else None
    passes = [(blocks, schedules.blocks, 1.0 if together is None else _BLOCKS_SHARE)]
    if WHOLE_ONLY:
        passes = [(_whole(batched, blocks, grouped), schedules.blocks, 1.0)]
    if together is not None:
        passes.append((_whole(batched, blocks, grouped), together, 1.0))
    for parts, pace, share in passes:
        left = None if until is None else (until - time.monotonic()) * share
        learner = _Learner(batched, sites, plan, target, dataclasses.replace(pace, seed=seed))
        found |= _pass(learner, parts, feeds, memory, left, advance)
        plan = learner.planned()
    return Reconstruction(plan=plan, blocks=found, seconds=time.monotonic() - started)


TAPS = True
WHOLE_ONLY = False
FINAL = 0.5


def _whole(model: ir.Model, blocks: Sequence[Block], groups: Sequence[Sequence[ir.Node]]) -> tuple[Block, ...]:
    """Return the graph as one block that is also watched where the blocks ended."""
    whole = partition(model.graph, groups, fewest=len(groups) + 1)
    final = whole[-1].outputs
    taps = [name for block in blocks for name in block.outputs if name not in final]
    for value in model.graph.outputs:
        producer = value.producer()
        if producer is not None and producer.op_type in {"Softmax", "Sigmoid"} and producer.inputs[0] is not None:
            taps.append(str(producer.inputs[0].name))
    if not TAPS or len(whole) > 1:
        return whole
    return (dataclasses.replace(whole[0], outputs=(*dict.fromkeys(taps), *final)),)


def count_blocks(model: ir.Model, plan: Plan, target: Target) -> int:
    """Return how many blocks `reconstruct` learns, all of them together counted as one more."""
    blocks = len(partition(model.graph, _groups(find_sites(model, target))))
    return blocks + (usual_schedules(plan).whole is not None and blocks > 1)


def _groups(sites: Sequence[Site]) -> list[list[ir.Node]]:
    """Return what is never cut apart: operators with weights, with their biases and activations."""
    return [
        [node for node in (site.node, site.bias_node, *site.fused) if node is not None]
        for site in sites
        if site.weight_index is not None and not site.subgraph
    ]


def _pass(
    learner: _Learner,
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
        samples = 0
        for feed in feeds:
            for name, array in feed.items():
                for store in (exact, coded):
                    store.put(name, samples, torch.from_numpy(np.array(array)))
            samples += 1
        held_out = min(max(round(samples * _HELD_OUT), 1), _MOST_HELD_OUT) if samples > 1 else 0
        stream = _Stream(exact, coded, samples, held_out)
        for index, block in enumerate(blocks):
            left = None if seconds is None else (seconds - (time.monotonic() - started)) / (len(blocks) - index)
            result = learner.block(block, stream, left)
            if result is not None:
                found[block.outputs[-1]] = result
            later = {name for after in blocks[index + 1 :] for name in after.inputs}
            exact.keep_only(later)
            coded.keep_only(later)
            advance()
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _LearnedSite:
    """What was learned for one site."""

    rounding: str | None
    scale: NDArray[np.float32] | None
    bias: NDArray[np.float32] | None


@dataclass(slots=True, eq=False)
class _Stream:
    """What the blocks so far give, in float and quantized."""

    exact: TensorStore
    coded: TensorStore
    samples: int
    held_out: int

    @property
    def training(self) -> range:
        return range(self.held_out, self.samples)

    @property
    def testing(self) -> range:
        return range(self.held_out) if self.held_out else range(self.samples)


class _Learner:
    """Learns one block after the other and keeps what helped."""

    def __init__(
        self,
        model: ir.Model,
        sites: Sequence[Site],
        plan: Plan,
        target: Target,
        schedule: Schedule,
    ) -> None:
        self.model, self.plan, self.target, self.schedule = model, plan, target, schedule
        self.entries = {entry.node: entry for entry in plan.sites}
        self.sites = {
            site.path: site
            for site in sites
            if self.entries[site.path].execution in _LEARNED and _learnable(site, self.entries[site.path])
        }
        self.learned = learned_graph(model, plan, target, self.sites)
        self.tensors = {tensor.tensor: tensor for tensor in plan.activations}
        self.scales = {name: math.log(tensor.scale) for name, tensor in self.tensors.items()}
        self.method: RangeMethod = plan.options.get("weight_range", "minmax")
        self.found: dict[str, _LearnedSite] = {}
        self.notes: dict[str, str] = {}
        self.moved: dict[str, float] = {}
        counts: dict[tuple[float, int], int] = {}
        for tensor in plan.activations:
            counts[tensor.scale, tensor.zero_point] = counts.get((tensor.scale, tensor.zero_point), 0) + 1
        # A scale that several tensors share is not learned: it would have to fit them all.
        self.alone = {
            tensor.tensor for tensor in plan.activations if counts[tensor.scale, tensor.zero_point] == 1
        } & _without_fixed_ranges(plan)

    def block(self, block: Block, stream: _Stream, seconds: float | None) -> LearnedBlock | None:
        """Learn one block and move both streams behind it."""
        plain = block_module(self.model, block.inputs, block.outputs)
        module = block_module(self.learned.model, block.inputs, block.outputs)
        for part in (plain, module):
            part.requires_grad_(requires_grad=False)
        known = set(module.input_names)
        paths = [path for path, name in self.learned.weights.items() if name in known]
        wanted: dict[int, tuple[torch.Tensor, ...]] = {}
        if paths:
            with torch.no_grad():
                wanted = {
                    sample: plain(**_given(plain, block, stream.exact, sample)) for sample in range(stream.samples)
                }
        result = None
        learner, encoded = self._prepared(module, block, paths)
        if paths and block.outputs:
            result = self._learn(learner, encoded, plain, block, stream, wanted, seconds)
        weights = learner.hard()
        with torch.no_grad():
            for sample in range(stream.samples):
                exact = wanted[sample] if sample in wanted else plain(**_given(plain, block, stream.exact, sample))
                coded = learner.run(_given(module, block, stream.coded, sample), weights, 0.0)
                for name, one, other in zip(block.outputs, exact, coded, strict=True):
                    stream.exact.put(name, sample, one)
                    stream.coded.put(name, sample, other)
        return result

    def _prepared(
        self, module: Interpreter, block: Block, paths: Sequence[str]
    ) -> tuple[BlockLearner, dict[str, EncodedWeight]]:
        weights: dict[str, LearnedRounding] = {}
        fixed: dict[str, torch.Tensor] = {}
        biases: dict[str, LearnedBias] = {}
        encoded: dict[str, EncodedWeight] = {}
        for path in paths:
            site, entry = self.sites[path], self.entries[path]
            encoded[path] = self._encoded(site, entry)
            name = self.learned.weights[path]
            if self._rounds(encoded[path]):
                weights[name] = _soft(site, encoded[path])
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
            weights_of_outputs=_shares(block, self.model),
        )
        return learner, encoded

    def _learn(
        self,
        learner: BlockLearner,
        encoded: dict[str, EncodedWeight],
        plain: Interpreter,
        block: Block,
        stream: _Stream,
        wanted: dict[int, tuple[torch.Tensor, ...]],
        seconds: float | None,
    ) -> LearnedBlock:
        testing = [_given(learner.module, block, stream.coded, sample) for sample in stream.testing]
        targets = [wanted[sample] for sample in stream.testing]
        start = {self.learned.weights[path]: torch.from_numpy(one.decode().copy()) for path, one in encoded.items()}
        before = learner.error(testing, targets, start)
        state = learner.state()
        schedule = self.schedule
        together = _batchable(plain, block, stream, wanted)
        batches = _Batches(learner.module, block, stream, wanted, schedule.batch, together=together)

        def judge() -> float:
            found: float = learner.error(testing, targets, learner.hard())
            return found

        if seconds is not None:
            steps = _affordable(learner, batches, judge, schedule, seconds)
            schedule = dataclasses.replace(schedule, steps=steps)
            learner.restore(state)
        with _threads(self._numbers(block, stream, wanted)):
            after = learner.learn(batches, judge, schedule)
        result = LearnedBlock(before=before, after=after, steps=schedule.steps)
        if not result.helped:
            learner.restore(state)
            for path in encoded:
                name = self.learned.weights[path]
                learner.weights.pop(name, None)
                learner.fixed[name] = start[name]
            return result
        self._keep(learner, encoded, result)
        return result

    def _numbers(self, block: Block, stream: _Stream, wanted: dict[int, tuple[torch.Tensor, ...]]) -> int:
        """Return how many numbers a batch carries into a block and out of it."""
        sample = stream.training[0] if len(stream.training) else 0
        tensors = [*(stream.exact.get(name, sample) for name in block.inputs), *wanted[sample]]
        return self.schedule.batch * sum(int(tensor.numel()) for tensor in tensors)

    def _keep(self, learner: BlockLearner, encoded: dict[str, EncodedWeight], result: LearnedBlock) -> None:
        for tensor, name in self.learned.scales.items():
            if name in learner.learn_scales:
                self.scales[tensor] = float(learner.scales[name].detach())
                self.moved[tensor] = float(np.float32(math.exp(self.scales[tensor])))
        for path in encoded:
            site = self.sites[path]
            name = self.learned.weights[path]
            bias = learner.biases.get(self.learned.biases.get(path, ""))
            rounding, scale = None, None
            if name in learner.weights:
                rounding, scale = self._stored(site, self.entries[path], learner.weights[name])
            self.found[path] = _LearnedSite(
                rounding=rounding, scale=scale, bias=None if bias is None else bias().detach().numpy()
            )
            self.notes[path] = (
                f"learned: squared error of its block {result.before:.2%} -> {result.after:.2%} of the signal"
            )

    def _stored(self, site: Site, entry: SitePlan, learned: LearnedRounding) -> tuple[str, NDArray[np.float32]]:
        """Return what a plan stores: by how many steps codes differ from nearest, packed, and the scales."""
        # As applying the plan does it, which may widen scales until the bias fits into its integers.
        nearest = self._nearest(site, entry, learned.scale().numpy().astype(np.float32))
        codes, base = (kernel_matrix(site, array.astype(np.int8)) for array in (learned.codes().numpy(), nearest.codes))
        return pack_steps((codes.astype(np.int16) - base).astype(np.int8), base), nearest.parameters.scale

    def _encoded(self, site: Site, entry: SitePlan) -> EncodedWeight:
        scale = unpack_floats(entry.scale) if entry.scale is not None else None
        return rerounded(site, self._nearest(site, entry, scale), entry.rounding)

    def _nearest(self, site: Site, entry: SitePlan, scale: NDArray[np.float32] | None) -> EncodedWeight:
        assert entry.weights is not None
        static = entry.execution == "static"
        read = site.node.inputs[0]
        tensor = self.tensors.get((read.name or "") if read is not None else "") if static else None
        return encode_weight(
            site,
            parse_format(entry.weights),
            saturates=static and self.target.saturates and tensor is not None and tensor.format.startswith("uint8"),
            input_scale=None if tensor is None else self.moved.get(tensor.tensor, tensor.scale),
            method=self.method,
            by_tap=self.target.pairs == "tap",
            scale=scale,
        )

    def _rounds(self, encoded: EncodedWeight) -> bool:
        # Where pairs of products may saturate, the codes are bound to each other; the scales are not learned either.
        signed = encoded.fmt.symmetric and encoded.fmt.element.signed and encoded.fmt.element.maximum <= _INT8_MAXIMUM
        return signed and encoded.saturation is None

    def planned(self) -> Plan:
        """Return the plan with what was learned."""
        entries = []
        for entry in self.plan.sites:
            learned = self.found.get(entry.node)
            if learned is None:
                entries.append(entry)
                continue
            changes: dict[str, Any] = {"notes": (*entry.notes, self.notes[entry.node])}
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


def _shares(block: Block, model: ir.Model) -> tuple[float, ...]:
    leaving = {value.name for value in model.graph.outputs}
    last = sum(name in leaving for name in block.outputs)
    taps = len(block.outputs) - last
    if not last or not taps:
        return ()
    return tuple(FINAL / last if name in leaving else (1 - FINAL) / taps for name in block.outputs)


class _Batches:
    """Draws batches of training samples."""

    def __init__(
        self,
        module: Interpreter,
        block: Block,
        stream: _Stream,
        wanted: dict[int, tuple[torch.Tensor, ...]],
        size: int,
        *,
        together: bool,
    ) -> None:
        self.module, self.block, self.stream, self.wanted = module, block, stream, wanted
        self.size, self.together = size, together

    def __call__(
        self, generator: torch.Generator
    ) -> tuple[list[dict[str, torch.Tensor]], list[tuple[torch.Tensor, ...]]]:
        samples = self.stream.training
        picked = [samples[index] for index in torch.randperm(len(samples), generator=generator)[: self.size].tolist()]
        inputs = [_given(self.module, self.block, self.stream.coded, sample) for sample in picked]
        targets = [self.wanted[sample] for sample in picked]
        if not self.together:
            return inputs, targets
        joined = {name: torch.cat([one[name] for one in inputs]) for name in inputs[0]}
        return [joined], [tuple(torch.cat(column) for column in zip(*targets, strict=True))]


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
    learner: BlockLearner, batches: _Batches, judge: Callable[[], float], schedule: Schedule, seconds: float
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


def _batchable(plain: Interpreter, block: Block, stream: _Stream, wanted: dict[int, tuple[torch.Tensor, ...]]) -> bool:
    """Whether samples can be joined along their first axis: all of one shape, and two at once give what each gives."""
    first = {name: stream.exact.get(name, 0) for name in block.inputs}
    if any(tensor.ndim == 0 for tensor in (*first.values(), *wanted[0])) or stream.samples < 2:
        return False
    for sample in range(1, stream.samples):
        if any(stream.exact.get(name, sample).shape != tensor.shape for name, tensor in first.items()):
            return False
    joined = {name: torch.cat([tensor, stream.exact.get(name, 1)]) for name, tensor in first.items()}
    try:
        with torch.no_grad():
            both = plain(**{name: joined[name] for name in plain.input_names if name in joined})
    except (RuntimeError, ValueError, IndexError):
        return False  # a shape inside is fixed to one sample
    for got, one, other in zip(both, wanted[0], wanted[1], strict=True):
        exact = torch.cat([one, other]) if one.shape == other.shape else None
        if exact is None or got.shape != exact.shape:
            return False
        if not torch.allclose(got.double(), exact.double(), rtol=1e-3, atol=1e-4 * float(exact.abs().max()) + 1e-6):
            return False
    return True


def _given(module: Interpreter, block: Block, store: TensorStore, sample: int) -> dict[str, torch.Tensor]:
    return {name: store.get(name, sample) for name in block.inputs if name in module.input_names}


def _learnable(site: Site, entry: SitePlan) -> bool:
    if site.op_type not in {"Conv", "MatMul", "Gemm"} or site.weight_index is None or site.subgraph:
        return False
    return entry.weights is not None and parse_format(entry.weights).element.kind == "integer"


def _without_fixed_ranges(plan: Plan) -> set[str]:
    return {tensor.tensor for tensor in plan.activations if not tensor.reason.startswith("range of")}


def _soft(site: Site, encoded: EncodedWeight) -> LearnedRounding:
    weight = torch.from_numpy(np.array(site.weight_array(), dtype=np.float32))
    fmt = encoded.fmt
    low, high = fmt.code_range()
    parameters = encoded.parameters
    zero = parameters.zero_point.astype(np.float32)
    shape = tuple(weight.shape)
    return LearnedRounding(
        weight,
        torch.from_numpy(encoded.codes.astype(np.float32)),
        torch.from_numpy(np.array(parameters.scale, dtype=np.float32)),
        spread=lambda tensor: _spread(tensor, fmt, shape),
        low=int(low),
        high=int(high),
        zero_point=torch.from_numpy(np.array(zero)) if zero.any() else None,
    )


def _spread(tensor: torch.Tensor, fmt: Format, shape: tuple[int, ...]) -> torch.Tensor:
    """Broadcast what is shaped like a scale to a weight."""
    from lowbit.formats import PerBlock, PerChannel

    match fmt.granularity:
        case PerChannel(axis=axis):
            return tensor.reshape([-1 if index == axis % len(shape) else 1 for index in range(len(shape))])
        case PerBlock(axis=axis, size=size):
            return tensor.repeat_interleave(size, dim=axis)
    return tensor


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
