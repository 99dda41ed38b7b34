"""Learning one block: its roundings, weight scales, biases and activation scales, so that its outputs are float's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lowbit.interpreter import Interpreter
    from lowbit.reconstruction.soft_weight import SoftWeight

__all__ = ["BlockLearner", "LearnedBias", "LearnedBlock", "Schedule"]

# Share of the steps in which rates rise.
_WARM_UP = 0.1
# By what share an error has to fall.
_MEANINGFUL = 1e-3

Batches = tuple[list[dict[str, torch.Tensor]], list[tuple[torch.Tensor, ...]]]
"""What a block reads, by name, and what it should give."""


class LearnedBias(torch.nn.Module):
    """A bias that moves in units of its own size, so that one learning rate fits all.

    Args:
        bias: `[N]` float32.
    """

    bias: torch.Tensor
    unit: torch.Tensor

    def __init__(self, bias: torch.Tensor) -> None:
        super().__init__()
        size = bias.square().mean().sqrt()
        self.register_buffer("bias", bias)
        self.register_buffer("unit", torch.where(size > 0, size, torch.ones_like(size)))
        self.change = torch.nn.Parameter(torch.zeros_like(bias))

    def forward(self) -> torch.Tensor:
        """Return the bias as it is now."""
        return self.bias + self.unit * self.change


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how fast a block learns.

    Attributes:
        steps: Number of steps.
        batch: Samples a step.
        reach: How far a rounding can move in all, in steps of the format; with AdaRound, in logits.
        scale_rate: Learning rate of the logarithms of scales.
        bias_rate: Learning rate of biases, as a share of their mean square's root.
        dropped: Share of activations that QDrop leaves in float.
        judged: How often on the way the error is measured on other samples.
        decided: Weight of AdaRound's regularizer beside the error, both over what they start with.
        mixed: Whether half of the samples are mixtures of two; only where the block reads what is the same in float.
        seed: Of batches and dropping.
    """

    steps: int = 200
    batch: int = 8
    reach: float = 0.4
    scale_rate: float = 5e-4
    bias_rate: float = 1e-3
    dropped: float = 0.5
    judged: int = 10
    decided: float = 100.0
    mixed: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedBlock:
    """What a block was before and after.

    Attributes:
        before: Squared error at the outputs over their squares, on samples that were not learned from, with the codes
            that the block came with.
        after: The same with what was learned.
        steps: Steps that were taken.
    """

    before: float
    after: float
    steps: int

    @property
    def helped(self) -> bool:
        """Whether what was learned is better, by more than the last digits of a scale."""
        return self.after < (1 - _MEANINGFUL) * self.before


@dataclass(slots=True, kw_only=True, eq=False)
class BlockLearner:
    """One block with everything in it that can be learned.

    Attributes:
        module: The block with learned quantizations; takes the block's inputs, then what is named here, by name.
        inputs: Names of the block's inputs.
        weights: Roundings, by the module's input that takes the decoded weight.
        fixed: Weights that are not learned, likewise.
        biases: By the module's input.
        scales: Logarithms of activation scales, by the module's input.
        learn_scales: Which of them are learned.
        dropped: Name of the module's input for the share of dropped quantizations.
        output_shares: What part each of the block's outputs has in the error, 1 in all; none means all the same.
    """

    module: Interpreter
    inputs: tuple[str, ...]
    weights: dict[str, SoftWeight]
    fixed: dict[str, torch.Tensor]
    biases: dict[str, LearnedBias]
    scales: dict[str, torch.nn.Parameter]
    dropped: str
    learn_scales: frozenset[str] = field(default_factory=frozenset)
    output_shares: tuple[float, ...] = ()

    def run(
        self, sample: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], dropped: float
    ) -> tuple[torch.Tensor, ...]:
        """Compute the block's outputs of one batch."""
        known = set(self.module.input_names)
        biases = {name: bias() for name, bias in self.biases.items()}
        named = {**sample, **self.fixed, **weights, **biases, **self.scales, self.dropped: torch.tensor(dropped)}
        outputs: tuple[torch.Tensor, ...] = self.module(
            **{name: value for name, value in named.items() if name in known}
        )
        return outputs

    def hard(self) -> dict[str, torch.Tensor]:
        """Return the decoded weights of the codes that are chosen now."""
        return {name: weight.decoded() for name, weight in self.weights.items()}

    @torch.no_grad()
    def error(
        self,
        inputs: Sequence[Mapping[str, torch.Tensor]],
        targets: Sequence[Sequence[torch.Tensor]],
        weights: Mapping[str, torch.Tensor],
    ) -> float:
        """Return the weighted mean of the outputs' squared errors, each over the output's squares."""
        noise: dict[int, float] = {}
        signal: dict[int, float] = {}
        count = len(targets[0]) if targets else 0
        for sample, wanted in zip(inputs, targets, strict=True):
            for place, (got, exact) in enumerate(zip(self.run(sample, weights, 0.0), wanted, strict=True)):
                if exact.is_floating_point():
                    noise[place] = noise.get(place, 0.0) + float((got - exact).square().sum())
                    signal[place] = signal.get(place, 0.0) + float(exact.square().sum())
        return sum(
            weight * noise[place] / signal[place]
            for place, weight in enumerate(self._shares(count))
            if signal.get(place, 0.0) > 0
        )

    def _shares(self, count: int) -> list[float]:
        """Return what part each output has in the error; all together are 1."""
        if self.output_shares:
            return list(self.output_shares)
        return [1 / max(count, 1)] * count

    def learn(
        self,
        batches: Callable[[torch.Generator], Batches],
        judge: Callable[[], float],
        schedule: Schedule,
        advance: Callable[[], None] = lambda: None,
    ) -> float:
        """Learn for a whole schedule, and keep the best of what was judged on the way.

        Args:
            batches: Draws what the block reads and should write: a list of batches that together make one step.
            judge: Returns the error on samples that are not learned from.
            schedule: How long and how fast.
            advance: Called after every step.

        Returns:
            The least error; what led to it is restored.
        """
        # What is dropped comes from PyTorch's own generator, whose state is the caller's.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(schedule.seed)
            return self._learn(batches, judge, schedule, advance)

    def _learn(
        self,
        batches: Callable[[torch.Generator], Batches],
        judge: Callable[[], float],
        schedule: Schedule,
        advance: Callable[[], None],
    ) -> float:
        generator = torch.Generator().manual_seed(schedule.seed)
        roundings = list(self.weights.values())
        scales = [scale for name, scale in self.scales.items() if name in self.learn_scales]
        # With a rate that falls to 0, a position moves by about half of rate times steps.
        pace = 2 * schedule.reach / schedule.steps
        optimizer = torch.optim.Adam(
            [
                {
                    "params": [scale for weight in roundings for scale in weight.scales()] + scales,
                    "lr": schedule.scale_rate,
                },
                {"params": [bias.change for bias in self.biases.values()], "lr": schedule.bias_rate},
                {"params": [weight.position for weight in roundings], "lr": pace},
            ]
        )
        rates = [group["lr"] for group in optimizer.param_groups]
        best, kept = math.inf, self.state()
        first = 1.0
        elements = sum(weight.position.numel() for weight in roundings)
        for step in range(schedule.steps):
            if step % max(schedule.steps // schedule.judged, 1) == 0:
                error = judge()
                first = max(error, 1e-30) if step == 0 else first
                best, kept = self._better(error, best, kept)
            # Adam's first steps are as long as its rate wherever they lead: they begin short.
            left = 0.5 * (1 + math.cos(math.pi * step / schedule.steps))
            left *= min((step + 1) / (_WARM_UP * schedule.steps), 1.0)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * left
            optimizer.zero_grad(set_to_none=True)
            inputs, targets = batches(generator)
            for sample, wanted in zip(inputs, targets, strict=True):
                got = self.run(sample, {name: weight() for name, weight in self.weights.items()}, schedule.dropped)
                loss = self._loss(got, wanted)
                undecided = [weight.undecided(step / schedule.steps) for weight in roundings]
                open_ones = [one for one in undecided if one is not None]
                if open_ones:
                    # NOTE: AdaRound adds 0.01 times the sum to a squared error whose size depends on the layer. Here
                    # the error is over that of nearest and the regularizer a mean, so that one factor fits every block.
                    loss = loss / first + schedule.decided * torch.stack(open_ones).sum() / elements
                torch.autograd.backward(loss / len(inputs))
            optimizer.step()
            for weight in roundings:
                weight.confine()
            advance()
        best, kept = self._better(judge(), best, kept)
        self.restore(kept)
        return best

    def _loss(self, got: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the weighted mean of the outputs' squared errors, each over its squares."""
        parts = []
        for weight, one, exact in zip(self._shares(len(wanted)), got, wanted, strict=True):
            signal = float(exact.square().sum()) if weight > 0 and exact.is_floating_point() else 0.0
            if signal > 0:
                parts.append((one - exact).square().sum() * (weight / signal))
        return torch.stack(parts).sum() if parts else got[0].sum() * 0.0

    def state(self) -> list[torch.Tensor]:
        """Return a copy of everything that can be learned."""
        return [parameter.detach().clone() for parameter in self._parameters()]

    def restore(self, state: Sequence[torch.Tensor]) -> None:
        """Go back to what `state` returned."""
        with torch.no_grad():
            for parameter, value in zip(self._parameters(), state, strict=True):
                parameter.copy_(value)

    def _better(self, error: float, best: float, kept: list[torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
        return (error, self.state()) if error < best else (best, kept)

    def _parameters(self) -> list[torch.nn.Parameter]:
        learned: list[SoftWeight | LearnedBias] = [*self.weights.values(), *self.biases.values()]
        return [*(parameter for one in learned for parameter in one.parameters()), *self.scales.values()]
