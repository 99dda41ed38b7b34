"""What the blocks of a model read, sample by sample, in float and quantized, and batches of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lowbit.interpreter import Interpreter
    from lowbit.reconstruction.partition import Block
    from lowbit.reconstruction.store import TensorStore
    from lowbit.runtime.session import Feed

__all__ = ["Batches", "Stream", "Wanted", "given", "held_out", "open_stream", "samples_join"]

_HELD_OUT = 0.2
_MOST_HELD_OUT = 32

Wanted = dict[int, tuple[torch.Tensor, ...]]
"""By sample, what a block gives in float."""


@dataclass(slots=True, eq=False)
class Stream:
    """What the blocks so far give, in float and quantized.

    Attributes:
        exact: Tensors of the float model.
        coded: Tensors of the quantized one.
        samples: How many there are.
        held_out: How many of them, the first ones, only judge.
    """

    exact: TensorStore
    coded: TensorStore
    samples: int
    held_out: int

    @property
    def training(self) -> range:
        """Samples that are learned from."""
        return range(self.held_out, self.samples)

    @property
    def testing(self) -> range:
        """Samples that judge; all, if there is but one."""
        return range(self.held_out) if self.held_out else range(self.samples)


def open_stream(exact: TensorStore, coded: TensorStore, feeds: Iterable[Feed]) -> Stream:
    """Put the model's inputs into both stores."""
    samples = 0
    for feed in feeds:
        for name, array in feed.items():
            for store in (exact, coded):
                store.put(name, samples, torch.from_numpy(np.array(array)))
        samples += 1
    return Stream(exact, coded, samples, held_out(samples) if samples > 1 else 0)


def held_out(samples: int) -> int:
    """Return how many of the samples, the first ones, only judge."""
    return min(max(round(samples * _HELD_OUT), 1), _MOST_HELD_OUT)


def given(module: Interpreter, block: Block, store: TensorStore, sample: int) -> dict[str, torch.Tensor]:
    """Return what a module of a block reads of one sample."""
    return {name: store.get(name, sample) for name in block.inputs if name in module.input_names}


class Batches:
    """Draws batches of training samples.

    Args:
        module: The block.
        block: What it reads.
        stream: Where that is.
        wanted: What it should give.
        size: Samples a batch.
        together: Whether samples are joined along their first axis; see `samples_join`.
        mixing: The float block, where half of a batch is to be mixtures of two samples each (Zhang et al., mixup,
            2018); they show what few samples do not. Only samples of numbers that are joined can be mixed.
    """

    def __init__(
        self,
        module: Interpreter,
        block: Block,
        stream: Stream,
        wanted: Wanted,
        size: int,
        *,
        together: bool,
        mixing: Interpreter | None = None,
    ) -> None:
        self.module, self.block, self.stream, self.wanted = module, block, stream, wanted
        self.size, self.together = size, together
        self.mixing = mixing if together else None

    def __call__(
        self, generator: torch.Generator
    ) -> tuple[list[dict[str, torch.Tensor]], list[tuple[torch.Tensor, ...]]]:
        """Draw what one step reads and should give."""
        samples = self.stream.training
        picked = [samples[index] for index in torch.randperm(len(samples), generator=generator)[: self.size].tolist()]
        inputs = [given(self.module, self.block, self.stream.coded, sample) for sample in picked]
        targets = [self.wanted[sample] for sample in picked]
        if not self.together:
            return inputs, targets
        joined = {name: torch.cat([one[name] for one in inputs]) for name in inputs[0]}
        if self.mixing is not None and all(one.is_floating_point() for one in joined.values()):
            return self._mixed(joined, len(picked), self.mixing, generator)
        return [joined], [tuple(torch.cat(column) for column in zip(*targets, strict=True))]

    def _mixed(
        self, joined: dict[str, torch.Tensor], count: int, plain: Interpreter, generator: torch.Generator
    ) -> tuple[list[dict[str, torch.Tensor]], list[tuple[torch.Tensor, ...]]]:
        """Mix every second sample with another one of the batch, and compute what float gives."""
        share = torch.rand(count, generator=generator)
        share[::2] = 1.0
        other = torch.randperm(count, generator=generator)
        mixed = {}
        for name, tensor in joined.items():
            rows = tensor.shape[0] // count
            by_sample = tensor.reshape(count, rows, *tensor.shape[1:])
            weight = share.reshape(-1, *(1 for _ in by_sample.shape[1:]))
            mixed[name] = (weight * by_sample + (1 - weight) * by_sample[other]).reshape(tensor.shape)
        with torch.no_grad():
            return [mixed], [plain(**{name: mixed[name] for name in plain.input_names if name in mixed})]


def samples_join(
    plain: Interpreter, block: Block, stream: Stream, wanted: Mapping[int, tuple[torch.Tensor, ...]]
) -> bool:
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
