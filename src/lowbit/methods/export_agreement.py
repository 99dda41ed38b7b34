"""How far an exported file's outputs are from those of the ONNX artifact, in quantization steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.graph.constants import constant_array
from lowbit.methods.exported import Agreement
from lowbit.runtime.engines import SIMULATION, open_in
from lowbit.runtime.staging import staged

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.runtime.session import Feed

__all__ = ["compared", "described", "output_steps", "simulated"]

# What an output without codes of its own counts as a step of: codes of eight bits over its range.
_INTERVALS = 255
_PASSES_CODES = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})


def simulated(graph: ir.Model, feeds: Sequence[Feed]) -> list[list[NDArray[Any]]]:
    """Return what the ONNX artifact computes as it is written: for every sample, the outputs in the graph's order."""
    with staged(graph) as source:
        reference = open_in(SIMULATION, source)
        return [reference.run(feed) for feed in feeds]


def output_steps(graph: ir.Model, wanted: Sequence[Sequence[NDArray[Any]]]) -> list[float]:
    """Return one quantization step for every output of a graph.

    Args:
        graph: The artifact.
        wanted: Its outputs, sample by sample.

    Returns:
        The scale of an output's own codes; 1 for integers; otherwise the 255th part of its range over the samples.
    """
    steps = []
    for position, value in enumerate(graph.graph.outputs):
        arrays = [outputs[position] for outputs in wanted]
        scale = _scale(value)
        if scale is not None:
            steps.append(scale)
        elif not arrays or not np.issubdtype(arrays[0].dtype, np.floating):
            steps.append(1.0)
        else:
            highest = max(float(array.max(initial=-np.inf)) for array in arrays)
            lowest = min(float(array.min(initial=np.inf)) for array in arrays)
            steps.append(max((highest - lowest) / _INTERVALS, float(np.finfo(np.float32).tiny)))
    return steps


def described(graph: ir.Model) -> tuple[str, ...]:
    """Return one line for every input and output: its name, type and shape."""
    return tuple(
        f"{kind} {value.name}: {value.dtype.name.lower() if value.dtype else '?'} {value.shape}"
        for kind, values in (("input", graph.graph.inputs), ("output", graph.graph.outputs))
        for value in values
    )


def compared(
    engine: str,
    wanted: Sequence[Sequence[NDArray[Any]]],
    outputs: Sequence[Sequence[NDArray[Any]]],
    steps: Sequence[float],
    zero_points: Sequence[float] | None = None,
) -> Agreement:
    """Return how outputs differ.

    Args:
        engine: What computed `outputs`.
        wanted: The artifact's outputs, sample by sample.
        outputs: Those of the exported file, in the same shapes.
        steps: One quantization step for every output.
        zero_points: What stands for zero in every output; zero itself by default.
    """
    differences, signals = [], []
    shifts = zero_points if zero_points is not None else [0.0] * len(steps)
    for mine_all, theirs_all in zip(wanted, outputs, strict=True):
        for mine, theirs, step, shift in zip(mine_all, theirs_all, steps, shifts, strict=True):
            exact = mine.astype(np.float64)
            differences.append(np.abs(exact - theirs.astype(np.float64)).reshape(-1) / step)
            signals.append((exact.reshape(-1) - shift) / step)
    every = np.concatenate(differences)
    noise, signal = float(np.sum(every**2)), float(np.sum(np.concatenate(signals) ** 2))
    top1 = None
    first = [(mine[0], theirs[0]) for mine, theirs in zip(wanted, outputs, strict=True)]
    if first and first[0][0].ndim == 2 and first[0][0].shape[1] > 1:
        top1 = float(np.mean([_same_top1(mine, theirs) for mine, theirs in first]))
    return Agreement(
        engine=engine,
        samples=len(wanted),
        largest=float(every.max(initial=0)),
        # Scales are float32: a difference of one step is one only up to their rounding.
        within_one=float(np.mean(every <= 1 + 1e-4)),
        same_top1=top1,
        sqnr_db=float("inf") if noise == 0 else float(10 * np.log10(max(signal, 1e-30) / noise)),
    )


def _same_top1(mine: NDArray[Any], theirs: NDArray[Any]) -> bool:
    """Whether the same class wins; where codes tie, any of the winners counts."""
    winners = mine[0] == mine[0].max()
    return bool(winners[int(theirs[0].argmax())])


def _scale(value: ir.Value) -> float | None:
    """Return the scale of the codes that an output is decoded from."""
    node = value.producer()
    while node is not None and node.op_type in _PASSES_CODES and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    scale = constant_array(node.inputs[1])
    return None if scale is None or scale.size != 1 else float(scale.reshape(()))
