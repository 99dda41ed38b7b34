"""How a model is trained, and what is noted of every epoch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Epoch", "Settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a model is trained.

    Attributes:
        epochs: Passes over the data.
        lr: Learning rate of weights at its highest; for `adamw` in units of every tensor's own size.
        optimizer: `adamw` or `sgd`, which has Nesterov's momentum 0.9; scales always have Adam.
        weight_decay: Of weights; codebooks, biases and scales have none.
        warmup: Fraction of all steps in which the learning rate rises.
        gradual: Fraction of all steps over which rounding errors grow from nothing to all.
        ema: Share of the moving average of all parameters that a step keeps; 0 leaves the average out.
        clip: Largest norm of the gradient; 0 sets none.
        patience: Epochs without a better metric after which training stops; 0 never stops it.
        seed: Of everything random.
        every: Steps between checkpoints; 0 writes them at the ends of epochs only.
        bfloat16: Whether a float model and its teacher compute products in bfloat16.
    """

    epochs: int = 10
    lr: float = 5e-3
    optimizer: str = "adamw"
    weight_decay: float = 1e-4
    warmup: float = 0.05
    gradual: float = 0.0
    ema: float = 0.998
    clip: float = 5.0
    patience: int = 0
    seed: int = 0
    every: int = 0
    bfloat16: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One pass over the data.

    Attributes:
        epoch: Its number, from 1.
        steps: Steps of the whole training so far.
        loss: Mean loss of its steps.
        metric: What validation gave; `None` without one.
        lr: Learning rate of its last step.
    """

    epoch: int
    steps: int
    loss: float
    metric: float | None
    lr: float
