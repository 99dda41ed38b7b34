"""Sequences, which are lists of tensors, and optionals, which are `None` when empty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lowbit.interpreter.operators.shapes import integers
from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []

Sequence = list[Any]


@operator("SequenceEmpty")
def empty(_call: Call) -> Sequence:
    """Make a sequence of nothing."""
    return []


@operator("SequenceConstruct")
def construct(_call: Call, *elements: Any) -> Sequence:
    """Make a sequence of the inputs."""
    return list(elements)


@operator("SequenceAt")
def element(_call: Call, sequence: Sequence, position: Tensor) -> Any:
    """Return one element."""
    return sequence[int(position)]


@operator("SequenceLength")
def length(_call: Call, sequence: Sequence) -> Tensor:
    """Return the number of elements."""
    device = sequence[0].device if sequence and isinstance(sequence[0], torch.Tensor) else None
    return torch.tensor(len(sequence), dtype=torch.int64, device=device)


@operator("SequenceInsert")
def insert(_call: Call, sequence: Sequence, value: Any, position: Tensor | None = None) -> Sequence:
    """Return the sequence with one more element, at the end by default."""
    place = len(sequence) if position is None else int(position)
    place = place + len(sequence) if place < 0 else place
    return [*sequence[:place], value, *sequence[place:]]


@operator("SequenceErase")
def erase(_call: Call, sequence: Sequence, position: Tensor | None = None) -> Sequence:
    """Return the sequence without one element, the last by default."""
    place = len(sequence) - 1 if position is None else int(position) % len(sequence)
    return [*sequence[:place], *sequence[place + 1 :]]


@operator("SequenceMap")
def map_sequence(call: Call, first: Sequence, *others: Any) -> tuple[Sequence, ...]:
    """Run a graph on the elements of sequences; inputs that are tensors are the same every time."""
    body = call.graph("body")
    found: tuple[Sequence, ...] = tuple([] for _ in range(body.outputs))
    for index, value in enumerate(first):
        given = [other[index] if isinstance(other, list) else other for other in others]
        for results, result in zip(found, body(value, *given), strict=True):
            results.append(result)
    return found


@operator("SplitToSequence")
def split(call: Call, x: Tensor, sizes: Tensor | None = None) -> Sequence:
    """Cut along an axis: into single slices, without their axis if wanted, or into pieces of the sizes given."""
    axis = call.get("axis", 0)
    if sizes is None:
        pieces = x.split(1, dim=axis)
        return list(pieces if call.get("keepdims", 1) else (piece.squeeze(axis) for piece in pieces))
    wanted = integers(sizes)
    return list(x.split(wanted[0] if sizes.ndim == 0 else wanted, dim=axis))


@operator("ConcatFromSequence")
def join(call: Call, sequence: Sequence) -> Tensor:
    """Join the elements along an axis, a new one if wanted."""
    return (torch.stack if call.get("new_axis", 0) else torch.cat)(sequence, dim=call.get("axis"))


@operator("ReverseSequence")
def reverse(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    """Reverse the first so many steps of every sequence of a batch."""
    batch, time = call.get("batch_axis", 1), call.get("time_axis", 0)
    moved = x.movedim((batch, time), (0, 1))
    steps = torch.arange(moved.shape[1], device=x.device)[None]
    limit = lengths.reshape(-1, 1)
    order = torch.where(steps < limit, limit - 1 - steps, steps)
    picked = torch.stack([row.index_select(0, index) for row, index in zip(moved, order, strict=True)])
    return picked.movedim((0, 1), (batch, time))


@operator("Optional")
def optional(_call: Call, value: Any = None) -> Any:
    """Return the input; without one, an empty optional."""
    return value


@operator("OptionalHasElement")
def has_element(_call: Call, value: Any = None) -> Tensor:
    """Return whether an optional holds anything."""
    return torch.tensor(value is not None, device=value.device if isinstance(value, torch.Tensor) else None)


@operator("OptionalGetElement")
def get_element(_call: Call, value: Any) -> Any:
    """Return what an optional holds."""
    return value
