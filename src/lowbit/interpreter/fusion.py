"""Finds what runs faster together: runs of nodes around convolutions that treat every sample of a batch alike."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from lowbit.interpreter.batches import Section
from lowbit.interpreter.packing import Convolution

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowbit.interpreter.program import Step

__all__ = ["with_sections"]

_FUSED = frozenset({"Relu", "Clip", "LeakyRelu", "HardSwish", "Sigmoid", "Tanh"})
# What these take besides their first input does not depend on the batch.
_SAMPLEWISE = _FUSED | {
    "Conv",
    "BatchNormalization",
    "HardSigmoid",
    "Gelu",
    "Elu",
    "Mish",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
}
_BROADCAST = frozenset({"Add", "Sub", "Mul", "Div"})


def with_sections(steps: Sequence[Step], fixed: frozenset[str], outputs: Sequence[str]) -> tuple[Step | Section, ...]:
    """Return nodes with their sections put together; each keeps the nodes it was made from.

    Args:
        steps: A graph's nodes in order.
        fixed: Names that are the same for every batch: initializers and constants.
        outputs: Names that the graph returns.
    """
    result: list[Step | Section] = []
    found: list[Step] = []
    varying: set[str] = set()
    for step in steps:
        if _belongs(step, fixed, varying):
            found.append(step)
            varying.add(step.outputs[0])
            continue
        result += _closed(found, steps, fixed, outputs)
        found, varying = [], set()
        result.append(step)
    result += _closed(found, steps, fixed, outputs)
    return tuple(result)


def _belongs(step: Step, fixed: frozenset[str], varying: set[str]) -> bool:
    call = step.calls[0]
    if step.function is None or call.domain or step.graphs or not step.inputs or any(step.outputs[1:]):
        return False
    if call.op_type in _BROADCAST:
        return call.version >= 7 and any(name not in fixed for name in step.inputs)
    if call.op_type not in _SAMPLEWISE or step.inputs[0] in fixed:
        return False
    return not call.get("training_mode", 0) and not varying.intersection(filter(None, step.inputs[1:]))


def _closed(
    found: list[Step], steps: Sequence[Step], fixed: frozenset[str], outputs: Sequence[str]
) -> list[Step | Section]:
    """Return a run of nodes as a section, or as it is if there is nothing to win."""
    if not any(step.calls[0].op_type == "Conv" for step in found):
        return [*found]
    inside = set(map(id, found))
    made = {step.outputs[0] for step in found}
    wanted = {name for step in steps if id(step) not in inside for name in _read(step)} | set(outputs)
    readers = Counter(name for step in found for name in step.inputs if name)
    fused: list[Step | Convolution] = []
    position = {step.outputs[0]: index for index, step in enumerate(found)}
    skipped: set[int] = set()
    for index, step in enumerate(found):
        if index in skipped:
            continue
        if step.calls[0].op_type != "Conv":
            fused.append(step)
            continue
        whole = Convolution(call=step.calls[0], inputs=step.inputs, output=step.outputs[0])
        follower = next((other for other in found if step.outputs[0] == other.inputs[0]), None)
        alone = readers[step.outputs[0]] == 1 and step.outputs[0] not in wanted
        if alone and follower is not None and follower.calls[0].op_type in _FUSED:
            whole.activation, whole.activation_inputs = follower.calls[0], follower.inputs[1:]
            whole.output = follower.outputs[0]
            skipped.add(position[follower.outputs[0]])
        fused.append(whole)
    batches, others, broadcast = _sources(found, made, fixed)
    return [
        Section(
            original=tuple(found),
            steps=tuple(fused),
            done_with=_lifetimes(fused, made | set(batches), wanted),
            batches=batches,
            fixed=others,
            broadcast=broadcast,
            outputs=tuple(name for name in dict.fromkeys(step.outputs[0] for step in found) if name in wanted),
        )
    ]


def _read(step: Step) -> list[str]:
    captured = [name for block in step.graphs.values() for name in block.captured]
    return [name for name in step.inputs if name] + captured


def _sources(
    found: list[Step], made: set[str], fixed: frozenset[str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the names from outside that hold batches, those that do not, and of these the ones that meet a batch."""
    batches: dict[str, None] = {}
    others: dict[str, None] = {}
    broadcast: dict[str, None] = {}
    for step in found:
        meets = len(step.inputs) if step.calls[0].op_type in _BROADCAST else 1
        for index, name in enumerate(step.inputs):
            if not name or name in made:
                continue
            if index >= meets:
                others[name] = None
            elif name in fixed:
                others[name] = broadcast[name] = None
            else:
                batches[name] = None
    return tuple(batches), tuple(name for name in others if name not in batches), tuple(broadcast)


def _lifetimes(steps: Sequence[Step | Convolution], names: set[str], wanted: set[str]) -> tuple[tuple[str, ...], ...]:
    last: dict[str, int] = {}
    for index, step in enumerate(steps):
        extra = step.activation_inputs if isinstance(step, Convolution) else ()
        last.update((name, index) for name in (*step.inputs, *extra) if name in names and name not in wanted)
    return tuple(tuple(name for name, position in last.items() if position == index) for index in range(len(steps)))
