"""Which operators of a model learn, where not all do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowbit.exceptions import RecipeError
from lowbit.training.hurt import freeze_others, hurt_layers, layer_noise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowbit.methods.student import Student
    from lowbit.training.batches import Batches
    from lowbit.training.module import TrainableModel

__all__ = ["train_only"]

_SCORED_BATCHES = 4


def train_only(
    module: TrainableModel, layers: str | Sequence[str] | None, student: Student, batches: Batches
) -> tuple[str, ...]:
    """Let only some operators learn.

    Args:
        module: The module, whose other parameters no longer need gradients afterwards.
        layers: Paths of operators; `hurt` for those that make most of the noise at the output; `None` for all.
        student: Computes the scores that noise is looked for in.
        batches: The training data.

    Returns:
        The paths; none if all learn.

    Raises:
        RecipeError: There is no such operator.
    """
    if layers is None:
        return ()
    known = module.layers()
    if layers == "hurt":
        samples = []
        for inputs, _ in batches:
            samples.append(inputs)
            if len(samples) == _SCORED_BATCHES:
                break

        def compute() -> torch.Tensor:
            found = []
            for inputs in samples:
                output, inner = module(tapped=True, **inputs)
                found.append(student.scores(output, inner))
            return torch.cat(found)

        chosen = hurt_layers(layer_noise(module, compute))
    else:
        chosen = (layers,) if isinstance(layers, str) else tuple(layers)
        unknown = [path for path in chosen if path not in known]
        if unknown:
            raise RecipeError(
                f"there is no operator {unknown[0]!r} with a weight", remedy=f"use 'hurt' or some of {', '.join(known)}"
            )
    freeze_others(module, chosen)
    return chosen
