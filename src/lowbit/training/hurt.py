"""Which layers quantization hurts: what each adds to the noise at the output, alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowbit.training.module import TrainableModel

__all__ = ["freeze_others", "hurt_layers", "layer_noise"]


@torch.no_grad()
def layer_noise(module: TrainableModel, compute: Callable[[], torch.Tensor]) -> dict[str, float]:
    """Return the noise at the output over the signal there, for every operator that alone is quantized.

    Args:
        module: The module; left as it was.
        compute: Returns its output for some samples.

    Returns:
        By path of the operator: its weight and the codes that it reads are rounded, nothing else.
    """
    training = module.training
    module.eval()
    parts = [*module.weights.values(), *module.activations.values()]
    before = [part.strength for part in parts]
    for part in parts:
        part.strength = 0.0
    exact = compute()
    power = float(exact.square().sum().clamp_min(1e-30))
    found = {}
    for path, own in module.layers().items():
        for part in own:
            part.strength = 1.0
        found[path] = float((compute() - exact).square().sum()) / power
        for part in own:
            part.strength = 0.0
    for part, strength in zip(parts, before, strict=True):
        part.strength = strength
    module.train(training)
    return found


def hurt_layers(noise: dict[str, float], *, share: float = 0.9) -> tuple[str, ...]:
    """Return the fewest operators that together make so much of all noise, the worst first."""
    ordered = sorted(noise, key=lambda path: (-noise[path], path))
    total, sum_ = sum(noise.values()), 0.0
    chosen: list[str] = []
    for path in ordered:
        if chosen and sum_ >= share * total:
            break
        chosen.append(path)
        sum_ += noise[path]
    return tuple(chosen)


def freeze_others(module: TrainableModel, chosen: tuple[str, ...]) -> None:
    """Let only some operators learn: their weights, biases and scales, and the codes that they read."""
    learned = {id(one) for path in chosen for part in module.layers()[path] for one in part.parameters()}
    learned |= {id(bias.bias) for path in chosen if (bias := module.bias_of(path)) is not None}
    learned |= {id(one) for path in chosen for one in module.plain_biases(path)}
    for one in module.parameters():
        if id(one) not in learned:
            one.requires_grad_(requires_grad=False)
