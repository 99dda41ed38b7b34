"""Noise power at what a model answers, relative to the power of the answer, and where it is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["ComparedTensor", "Power", "compared_tensors"]

# What a diverged output counts as: it drowns everything.
_DROWNED = 1e12
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
# What may stand between a Softmax and the output without changing a number.
_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "If")
_SQUASHES = ("Softmax", "LogSoftmax", "Sigmoid")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedTensor:
    """A tensor in which the float and the quantized model are compared.

    Attributes:
        name: Its name.
        shift_axis: Axis along which adding a constant changes no answer (a Softmax's); `None` if there is none.
    """

    name: str
    shift_axis: int | None = None

    def plain(self, array: NDArray[Any]) -> NDArray[np.float64]:
        """Return an array of this tensor in float64, without what changes no answer."""
        exact = np.asarray(array, dtype=np.float64)
        if self.shift_axis is None or exact.ndim == 0:
            return exact
        centred: NDArray[np.float64] = exact - exact.mean(axis=self.shift_axis, keepdims=True)
        return centred


@dataclass(frozen=True, slots=True)
class Power:
    """Sums of squares of the signal and of the noise, one of each by tensor."""

    signal: tuple[float, ...]
    noise: tuple[float, ...]

    @classmethod
    def none(cls, tensors: int) -> Power:
        """Return the power of nothing measured yet."""
        return cls((0.0,) * tensors, (0.0,) * tensors)

    @classmethod
    def between(cls, exact: Sequence[NDArray[np.float64]], actual: Sequence[NDArray[np.float64]]) -> Power:
        """Return the power of `exact` and of what `actual` differs from it."""
        errors = [one - other for one, other in zip(actual, exact, strict=True)]
        return cls(
            tuple(float(np.vdot(one, one)) for one in exact), tuple(float(np.vdot(error, error)) for error in errors)
        )

    def __add__(self, other: Power) -> Power:
        return Power(
            tuple(one + two for one, two in zip(self.signal, other.signal, strict=True)),
            tuple(one + two for one, two in zip(self.noise, other.noise, strict=True)),
        )

    def ratio(self) -> float:
        """Return noise over signal of the tensor where that is largest."""
        ratios = [0.0]
        for signal, noise in zip(self.signal, self.noise, strict=True):
            if signal or noise:
                ratios.append(noise / signal if signal and np.isfinite(noise) else _DROWNED)
        return min(max(ratios), _DROWNED)


def compared_tensors(model: ir.Model) -> tuple[ComparedTensor, ...]:
    """Return where to compare a model: its outputs of numbers, before a Softmax or Sigmoid at the very end.

    Behind a Softmax, noise is either squashed to nothing or turns an answer over; before it, the powers of many small
    errors add up, and adding a constant to all scores changes nothing.
    """
    found: dict[str, ComparedTensor] = {}
    for output in model.graph.outputs:
        value: ir.Value | None = output
        node = output.producer()
        while node is not None and node.op_type in _MOVES:
            value = _moved(node)
            node = value.producer() if value is not None else None
        tensor = ComparedTensor(name=output.name or "")
        if output.dtype is not None and output.dtype not in _FLOATS:
            continue
        if node is not None and node.op_type in _SQUASHES and node.domain in ("", "ai.onnx"):
            read = node.inputs[0]
            if read is not None and read.producer() is not None and read.producer().graph is model.graph:  # type: ignore[union-attr]
                axis = node.attributes.get("axis")
                shift = (axis.as_int() if axis is not None else -1) if node.op_type != "Sigmoid" else None
                tensor = ComparedTensor(name=read.name or "", shift_axis=shift)
        found.setdefault(tensor.name, tensor)
    return tuple(found.values())


def _moved(node: ir.Node) -> ir.Value | None:
    """Return the tensor that a node hands on; for a switch, the one that its `else` branch hands on."""
    if node.op_type != "If":
        return node.inputs[0]
    branch = node.attributes["else_branch"].as_graph()
    last = branch.outputs[0].producer()
    return last.inputs[0] if last is not None and last.op_type == "Identity" else None
