"""A learning rate found by trying: how fast a model can be trained before its loss leaves its lowest."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lowbit.exceptions import TrainingError
from lowbit.training.optimizers import optimizers_of, scale_rate
from lowbit.training.randomness import own_randomness, seed_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from lowbit.training.batches import Batch, Batches
    from lowbit.training.module import TrainableModel
    from lowbit.training.settings import Settings

__all__ = ["RangeTest", "find_rate", "rate_from"]

STEPS = 80
# In units of every tensor's own size for adamw: from nothing to see, to weights that are other ones after a step.
_RANGES = {"adamw": (1e-5, 1.0), "sgd": (1e-6, 10.0)}
_SMOOTHING = 0.9
_DIVERGED = 4.0
_BELOW = 10.0
_WARM = 10
# The lowest of a flat curve lies 2 to 3 deviations below it, and its end up to 1 above.
_CHANCE = 4.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RangeTest:
    """What was tried.

    Attributes:
        rates: `[T]` float64, rising.
        losses: `[T]` float64, of the batch before the step with that rate.
        rate: The rate to train with.
    """

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    rate: float


def find_rate(
    module: TrainableModel,
    batches: Batches,
    loss: Callable[[Batch], torch.Tensor],
    settings: Settings,
    *,
    steps: int = STEPS,
    advance: Callable[[], None] = lambda: None,
) -> RangeTest:
    """Train for a few steps with a rate that rises from step to step, and see where that ends well.

    The range test of Smith, Cyclical Learning Rates for Training Neural Networks, 2017. The module is given back as it
    was. The same module, data and seed give the same rate.

    Args:
        module: The module.
        batches: The training data, read as often as needed.
        loss: From a batch, the loss.
        settings: Of the training; its optimizer, weight decay, clipping and seed count.
        steps: How many, at most.
        advance: Called after each.

    Raises:
        TrainingError: The loss is no number before anything is learned.
    """
    before = {name: one.detach().clone() for name, one in module.state_dict().items()}
    strength, training = module.strength, module.training
    low, high = _RANGES[settings.optimizer]
    rates = low * (high / low) ** (np.arange(steps) / max(steps - 1, 1))
    # Rates are set before every step; those given here only say in which unit each tensor counts.
    optimizers = optimizers_of(module, dataclasses.replace(settings, lr=1.0))
    units = [[float(group["lr"]) for group in one.param_groups] for one in optimizers]
    losses: list[float] = []
    try:
        with own_randomness():
            seed_all(settings.seed)
            module.train()
            module.set_strength(1.0)
            for rate, batch in zip(rates.tolist(), _endless(batches), strict=False):
                for optimizer, own in zip(optimizers, units, strict=True):
                    for group, unit in zip(optimizer.param_groups, own, strict=True):
                        group["lr"] = scale_rate(rate) if group["name"] == "scales" else rate * unit
                    optimizer.zero_grad(set_to_none=True)
                value = loss(batch)
                losses.append(float(value.detach()))
                if not math.isfinite(losses[-1]) or _diverged(losses) or not value.requires_grad:
                    break
                value.backward()
                if settings.clip:
                    learned = [one for one in module.parameters() if one.grad is not None]
                    torch.nn.utils.clip_grad_norm_(learned, settings.clip)
                for optimizer in optimizers:
                    optimizer.step()
                advance()
    finally:
        module.load_state_dict(before)
        module.zero_grad(set_to_none=True)
        module.set_strength(strength)
        module.train(training)
    seen = np.array(losses)
    if not np.isfinite(seen[:1]).all():
        raise TrainingError(
            "the loss is no number before anything is learned",
            cause="the data hold values that the model was not made for",
            remedy="check the data",
        )
    seen = seen[np.isfinite(seen)]
    return RangeTest(rates=rates[: len(seen)], losses=seen, rate=rate_from(rates[: len(seen)], seen))


def rate_from(rates: NDArray[np.float64], losses: NDArray[np.float64]) -> float:
    """Return a tenth of the highest rate with which the smoothed loss is still at its lowest.

    Losses of batches differ by chance: what is above the lowest by less than that counts as lowest. A model that has
    nothing to learn any more, whose loss is flat until it rises, so has a rate as well as one whose loss falls.

    Args:
        rates: `[T]`, rising.
        losses: `[T]`, finite.
    """
    smooth = _smoothed(losses)
    warm = min(_WARM, len(losses) - 1)  # the first averages are of too few losses to be lowest other than by chance
    lowest = warm + int(np.argmin(smooth[warm:]))
    # The median sees what batches differ by, not the few that diverge; 0.954 is that of differences of normal numbers.
    spread = float(np.median(np.abs(np.diff(losses)))) / 0.954 if len(losses) > 1 else 0.0
    chance = _CHANCE * spread * math.sqrt((1.0 - _SMOOTHING) / (1.0 + _SMOOTHING))
    still = np.flatnonzero(smooth <= smooth[lowest] + chance)
    return float(rates[still[-1]] / _BELOW)


def _smoothed(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the exponential moving average, made up for its start."""
    found, mean = np.empty(len(losses)), 0.0
    for index, value in enumerate(losses):
        mean = _SMOOTHING * mean + (1.0 - _SMOOTHING) * float(value)
        found[index] = mean / (1.0 - _SMOOTHING ** (index + 1))
    return found


def _diverged(losses: list[float]) -> bool:
    smooth = _smoothed(np.array(losses))
    return bool(losses[-1] > _DIVERGED * float(np.max(losses[:5])) and smooth[-1] > 2.0 * float(np.min(smooth)))


def _endless(batches: Batches) -> Iterator[Batch]:
    while True:
        count = 0
        for batch in batches:
            count += 1
            yield batch
        if not count:
            return
