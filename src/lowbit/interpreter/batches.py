"""Runs of convolutions without gradients: fused with their activations, weights packed, large batches in pieces.

A batch is cut where its tensors would outgrow what the C library's heap hands out again: beyond that every tensor is
fresh pages from the system, and touching them costs more than some convolutions do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lowbit.interpreter.packing import Convolution, Ready

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lowbit.interpreter.program import Step

__all__ = ["Section", "applies", "run_section"]

_PIECE = 24 * 2**20
"""Bytes of the largest tensor of a piece: glibc maps what is larger than 32 MiB anew every time."""


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
    """Return whether a section can be run on these values: float32 on the CPU, `[N, C, H, W]`, all of one N."""
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
    ready = {step.output: step.ready(values) for step in section.steps if isinstance(step, Convolution)}
    fixed = {name: values[name] for name in section.fixed}
    count = values[section.batches[0]].shape[0]
    shapes = tuple(tuple(values[name].shape[1:]) for name in section.batches)
    size = section.largest.get(shapes)
    pieces = 1 if size is None else min(-(-count * size // _PIECE), count)
    cut = [values[name].tensor_split(pieces) for name in section.batches]
    found = []
    for samples in zip(*cut, strict=True):
        outputs, largest = _run(section, {**fixed, **dict(zip(section.batches, samples, strict=True))}, ready)
        found.append(outputs)
        section.largest[shapes] = -(-largest // samples[0].shape[0])
    return found[0] if pieces == 1 else [torch.cat(parts) for parts in zip(*found, strict=True)]


def _run(section: Section, values: dict[str, Any], ready: Mapping[str, Ready]) -> tuple[list[Tensor], int]:
    largest = 0
    for step, done in zip(section.steps, section.done_with, strict=True):
        if isinstance(step, Convolution):
            output, result = step.output, step.compute(values[str(step.inputs[0])], ready[step.output])
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
