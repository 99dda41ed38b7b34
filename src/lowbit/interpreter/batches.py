"""Runs of convolutions without gradients: fused with their activations, weights packed, large batches in pieces.

A batch is cut where its tensors would outgrow what the C library's heap hands out again: beyond that every tensor is
fresh pages from the system, and touching them costs more than some convolutions do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from lowbit.interpreter.windows import windows

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.program import Step
    from lowbit.interpreter.registry import Call

__all__ = ["Convolution", "Section", "applies", "run_section"]

_PIECE = 24 * 2**20
"""Bytes of the largest tensor of a piece: glibc maps what is larger than 32 MiB anew every time."""


@dataclass(slots=True, kw_only=True, eq=False)
class Convolution:
    """A two-dimensional convolution with the activation behind it.

    Attributes:
        call: The convolution.
        inputs: Names of its inputs.
        output: Name of the activation's output.
        activation: The activation, `None` if there is none.
        activation_inputs: Names of its inputs but the first; bounds of a Clip.
        packed: The weight as oneDNN wants it, and what it was made from.
    """

    call: Call
    inputs: tuple[str | None, ...]
    output: str
    activation: Call | None = None
    activation_inputs: tuple[str | None, ...] = ()
    packed: tuple[tuple[Any, ...], Tensor] | None = None

    def __call__(self, values: Mapping[str, Any]) -> Tensor:
        """Compute the activation's output."""
        x, w, b = (*(None if name is None else values[name] for name in self.inputs), None)[:3]
        place = windows(self.call, x.shape[2:], w.shape[2:])
        before, after = place.before, place.after
        padding = tuple(max(pair) for pair in zip(before, after, strict=True))
        # oneDNN's operator pads both ends alike. Where the model does not, the kernel gets taps of zero in front or
        # behind, which reach into the padding that should not be there.
        rows, columns = ((wide - one, wide - two) for wide, one, two in zip(padding, before, after, strict=True))
        if any((*rows, *columns)) and max(place.dilations) > 1:
            x = functional.pad(x, (before[1], after[1], before[0], after[0]))
            padding, rows, columns = (0, 0), (0, 0), (0, 0)
        groups = self.call.get("group", 1)
        kernel = self._packed(w, (*columns, *rows), padding, place.strides, place.dilations, groups, x.shape)
        name, scalars = self._activation(values)
        return torch.ops.mkldnn._convolution_pointwise(
            x, kernel, b, padding, place.strides, place.dilations, groups, name, scalars, ""
        )

    def _packed(
        self,
        w: Tensor,
        taps: tuple[int, ...],
        padding: Sequence[int],
        strides: Sequence[int],
        dilations: Sequence[int],
        groups: int,
        shape: Sequence[int],
    ) -> Tensor:
        # The counter does not see writes through `.data`; the sum sees all but those that leave it as it is.
        version = 0 if w.is_inference() else w._version
        source = (w.data_ptr(), version, w.sum().item(), taps, padding)
        if self.packed is None or self.packed[0] != source:
            kernel = functional.pad(w, taps).contiguous(memory_format=torch.channels_last)
            packed = torch.ops.mkldnn._reorder_convolution_weight(
                kernel, padding, strides, dilations, groups, list(shape)
            )
            self.packed = source, packed
        return self.packed[1]

    def _activation(self, values: Mapping[str, Any]) -> tuple[str, list[float]]:
        call = self.activation
        if call is None:
            return "none", []
        if call.op_type == "Clip":
            low, high = (*(None if name is None else values[name] for name in self.activation_inputs), None, None)[:2]
            lowest = float(low) if low is not None else call.get("min", -torch.inf)
            return "hardtanh", [lowest, float(high) if high is not None else call.get("max", torch.inf)]
        if call.op_type == "LeakyRelu":
            return "leaky_relu", [call.get("alpha", 0.01)]
        return {"Relu": "relu", "HardSwish": "hardswish", "Sigmoid": "sigmoid", "Tanh": "tanh"}[call.op_type], []


@dataclass(slots=True, kw_only=True, eq=False)
class Section:
    """Nodes that treat every sample of a batch alike.

    Attributes:
        original: The nodes one by one.
        steps: The same, convolutions fused.
        done_with: For every step, what nothing reads after it.
        batches: Names from before it that have the batch as their first axis.
        fixed: Other names from before it.
        broadcast: Those of `fixed` that meet a batch in an operator that broadcasts.
        outputs: Names that are read after it.
        largest: Bytes of the largest tensor for one sample, by the shapes of the samples.
    """

    original: tuple[Step, ...]
    steps: tuple[Step | Convolution, ...]
    done_with: tuple[tuple[str, ...], ...]
    batches: tuple[str, ...]
    fixed: tuple[str, ...]
    broadcast: tuple[str, ...]
    outputs: tuple[str, ...]
    largest: dict[tuple[Any, ...], int] = field(default_factory=dict)


def applies(section: Section, values: Mapping[str, Any]) -> bool:
    """Return whether a section can be run on these values: float32 on a processor, `[N, C, H, W]` all with the same N."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not torch.backends.mkldnn.is_available():
        return False
    samples = [values[name] for name in section.batches]
    tensors = samples + [values[name] for name in section.fixed]
    if not all(isinstance(value, torch.Tensor) and value.device.type == "cpu" for value in tensors):
        return False
    if any(value.ndim != 4 or value.dtype != torch.float32 or not value.numel() for value in samples):
        return False
    if any(value.ndim >= 4 and value.shape[0] != 1 for value in (values[name] for name in section.broadcast)):
        return False
    weights = (values[step.inputs[1] or ""] for step in section.steps if isinstance(step, Convolution))
    if any(weight.ndim != 4 or weight.dtype != torch.float32 for weight in weights):
        return False
    return len({value.shape[0] for value in samples}) == 1


def run_section(section: Section, values: Mapping[str, Any]) -> list[Tensor]:
    """Return a section's outputs."""
    fixed = {name: values[name] for name in section.fixed}
    count = values[section.batches[0]].shape[0]
    shapes = tuple(tuple(values[name].shape[1:]) for name in section.batches)
    size = section.largest.get(shapes)
    pieces = 1 if size is None else min(-(-count * size // _PIECE), count)
    cut = [values[name].tensor_split(pieces) for name in section.batches]
    found = []
    for samples in zip(*cut, strict=True):
        outputs, largest = _run(section, {**fixed, **dict(zip(section.batches, samples, strict=True))})
        found.append(outputs)
        section.largest[shapes] = -(-largest // samples[0].shape[0])
    return found[0] if pieces == 1 else [torch.cat(parts) for parts in zip(*found, strict=True)]


def _run(section: Section, values: dict[str, Any]) -> tuple[list[Tensor], int]:
    largest = 0
    for step, done in zip(section.steps, section.done_with, strict=True):
        if isinstance(step, Convolution):
            output, result = step.output, step(values)
        else:
            assert step.function is not None
            inputs = [None if name is None else values[name] for name in step.inputs]
            produced: Any = step.function(step.calls[0], *inputs)
            output, result = step.outputs[0], produced[0] if isinstance(produced, tuple) else produced
        values[output] = result
        largest = max(largest, result.nbytes)
        for name in done:
            values.pop(name, None)
    return [values[name] for name in section.outputs], largest
