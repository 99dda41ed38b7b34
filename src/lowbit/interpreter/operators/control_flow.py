"""Control flow: subgraphs run on a condition, over and over, or along an axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lowbit.interpreter.registry import Call, Graph

__all__: list[str] = []


@operator("If")
def branch(call: Call, condition: Tensor) -> tuple[Any, ...]:
    """Run one of two graphs."""
    return tuple(call.graph("then_branch" if bool(condition) else "else_branch")())


@operator("Loop")
def loop(call: Call, trips: Tensor | None, condition: Tensor | None, *initial: Any) -> tuple[Any, ...]:
    """Run a graph a number of times or as long as its condition holds.

    It takes the iteration, the condition and what is carried; it returns the condition, what is carried and elements of
    the scans, which are stacked.
    """
    body = call.graph("body")
    limit = None if trips is None else int(trips)
    device = next((value.device for value in initial if isinstance(value, torch.Tensor)), None)
    if device is None:
        device = next((value.device for value in (trips, condition) if value is not None), torch.device("cpu"))
    goes_on = condition is None or bool(condition)
    carried = list(initial)
    scans: list[list[Tensor]] = [[] for _ in range(body.outputs - 1 - len(initial))]
    turn = 0
    while goes_on and (limit is None or turn < limit):
        number = torch.tensor(turn, dtype=torch.int64, device=device)
        held, *results = body(number, torch.tensor(True, device=device), *carried)
        goes_on = bool(held)
        carried = results[: len(initial)]
        for scan, element in zip(scans, results[len(initial) :], strict=True):
            scan.append(element)
        turn += 1
    stacked = [
        torch.stack(scan) if scan else body.nothing(1 + len(initial) + index, device)
        for index, scan in enumerate(scans)
    ]
    return (*carried, *stacked)


@operator("Scan")
def scan(call: Call, *inputs: Any) -> tuple[Any, ...]:
    """Run a graph along an axis of its last inputs, and stack its last outputs; the others are state.

    Before operator set 9 all inputs had a batch in front, and there was an input of lengths.
    """
    body = call.graph("body")
    count = call.get("num_scan_inputs")
    if call.version >= 9:
        states = len(inputs) - count
        return _scanned(
            body,
            list(inputs[:states]),
            list(inputs[states:]),
            call.get("scan_input_axes") or [0] * count,
            call.get("scan_input_directions") or [0] * count,
            call.get("scan_output_axes"),
            call.get("scan_output_directions"),
        )
    lengths, rest = inputs[0], inputs[1:]
    states = len(rest) - count
    batches = []
    for batch in range(rest[-1].shape[0]):
        sequences = [value[batch] for value in rest[states:]]
        if lengths is not None:
            sequences = [value[: int(lengths[batch])] for value in sequences]
        given = [value[batch] for value in rest[:states]]
        directions = call.get("directions") or [0] * count
        batches.append(_scanned(body, given, sequences, [0] * count, directions, None, None))
    return tuple(_batched(values) for values in zip(*batches, strict=True))


def _scanned(
    body: Graph,
    state: list[Any],
    sequences: list[Tensor],
    axes: Sequence[int],
    directions: Sequence[int],
    out_axes: Sequence[int] | None,
    out_directions: Sequence[int] | None,
) -> tuple[Any, ...]:
    steps = [
        list(reversed(value.unbind(axis))) if backwards else list(value.unbind(axis))
        for value, axis, backwards in zip(sequences, axes, directions, strict=True)
    ]
    found: list[list[Tensor]] = [[] for _ in range(body.outputs - len(state))]
    states = len(state)
    for elements in zip(*steps, strict=True):
        results = body(*state, *elements)
        state = results[:states]
        for outputs, element in zip(found, results[states:], strict=True):
            outputs.append(element)
    stacked = []
    for index, outputs in enumerate(found):
        if not outputs:
            stacked.append(body.nothing(states + index, sequences[0].device))
            continue
        ordered = outputs[::-1] if out_directions and out_directions[index] else outputs
        stacked.append(torch.stack(ordered, dim=out_axes[index] if out_axes else 0))
    return (*state, *stacked)


def _batched(values: Sequence[Tensor]) -> Tensor:
    """Stack the results of all batches; shorter ones are filled up with zeros."""
    longest = [max(sizes) for sizes in zip(*(value.shape for value in values), strict=True)]
    result = values[0].new_zeros((len(values), *longest))
    for row, value in zip(result, values, strict=True):
        row[tuple(slice(size) for size in value.shape)] = value
    return result
