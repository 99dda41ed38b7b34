"""A graph made ready to run: its nodes in order, each with the function that computes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from lowbit.interpreter.batches import Section, applies, run_section
from lowbit.interpreter.registry import Call, Function, Graph

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Block", "Step", "run"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One node, ready to run.

    Attributes:
        function: Computes the node; `None` where `body` does.
        body: The node's definition by other operators.
        calls: What `function` is told in evaluation and in training.
        name: The node's name.
        inputs: Names of the inputs, `None` where an optional one is left out.
        outputs: Names of the outputs, empty where one is not wanted.
        graphs: Subgraphs by the attributes that hold them.
        done_with: Names that nothing reads after this node.
    """

    function: Function | None
    body: Block | None
    calls: tuple[Call, Call]
    name: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    graphs: Mapping[str, Block]
    done_with: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """A graph, subgraph or function body.

    Attributes:
        inputs: Names of what it is given.
        outputs: Names of what it returns.
        results: Element type and shape of every output, see `Graph`.
        captured: Names that it takes from the graph around it.
        constants: Names of its constants and, of its own initializers, with the keys of the tensors that hold them.
        steps: Nodes in the order in which they run; runs of convolutions put together.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    results: tuple[tuple[torch.dtype, tuple[int, ...]], ...]
    captured: tuple[str, ...]
    constants: Mapping[str, str]
    steps: tuple[Step | Section, ...]

    def __deepcopy__(self, _memo: object) -> Block:
        return self  # It holds names and functions; the tensors are the module's.


def run(block: Block, values: dict[str, Any], tensors: Mapping[str, torch.Tensor], *, training: bool) -> list[Any]:
    """Run a graph.

    Args:
        block: The graph.
        values: Its inputs and what it captures, by name; used up.
        tensors: The module's tensors by key; constants are among them.
        training: Whether dropout drops and normalizations use the statistics of the batch.

    Returns:
        The outputs in order.
    """
    for name, key in block.constants.items():
        values[name] = tensors[key]
    for step in block.steps:
        if not isinstance(step, Section):
            _run_step(step, values, tensors, training=training)
        elif not training and applies(step, values):
            values.update(zip(step.outputs, run_section(step, values), strict=True))
            for name in {name for inner in step.original for name in inner.done_with}:
                values.pop(name, None)
        else:
            for inner in step.original:
                _run_step(inner, values, tensors, training=training)
    return [values[name] for name in block.outputs]


def _run_step(step: Step, values: dict[str, Any], tensors: Mapping[str, torch.Tensor], *, training: bool) -> None:
    inputs = [None if name is None else values[name] for name in step.inputs]
    try:
        produced = _computed(step, inputs, values, tensors, training=training)
    except Exception as error:
        call = step.calls[0]
        error.add_note(f"in the node {step.name!r} ({call.op_type}), inputs {', '.join(map(_described, inputs))}")
        raise
    values.update((name, value) for name, value in zip(step.outputs, produced, strict=False) if name)
    for name in step.done_with:
        values.pop(name, None)


def _computed(
    step: Step,
    inputs: list[Any],
    values: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    *,
    training: bool,
) -> Sequence[Any]:
    if step.function is None:
        assert step.body is not None
        given: dict[str, Any] = dict.fromkeys(step.body.inputs)
        given.update(zip(step.body.inputs, inputs, strict=False))
        return run(step.body, given, tensors, training=training)
    call = step.calls[training]
    if step.graphs:
        graphs = {name: _subgraph(block, values, tensors, training=training) for name, block in step.graphs.items()}
        call = replace(call, attributes={**call.attributes, **graphs})
    result = step.function(call, *inputs)
    return result if isinstance(result, tuple) else (result,)


def _subgraph(block: Block, outer: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *, training: bool) -> Graph:
    captured = {name: outer[name] for name in block.captured}

    def compute(inputs: Sequence[Any]) -> list[Any]:
        return run(block, {**captured, **dict(zip(block.inputs, inputs, strict=False))}, tensors, training=training)

    return Graph(run=compute, results=block.results)


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return type(value).__name__
