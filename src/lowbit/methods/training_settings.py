"""What the user says of a training, checked: the loop's settings, its teacher, and what a checkpoint belongs to."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

from lowbit.exceptions import RecipeError
from lowbit.formats import parse_format
from lowbit.graph import digest
from lowbit.methods.distillation import Distillation
from lowbit.training.settings import Settings

if TYPE_CHECKING:
    from lowbit.methods.trainable import Origin
    from lowbit.training.module import TrainableModel

__all__ = ["chosen_distillation", "loop_settings", "training_identity", "with_gradual"]

# From so few bits on, rounding errors grow in over the first part of the training.
_FEW_BITS = 4
_GRADUAL = 0.1


def loop_settings(
    epochs: int,
    lr: float | str | None,
    optimizer: str,
    weight_decay: float,
    warmup: float,
    gradual: float | None,
    ema: float,
    clip: float,
    patience: int,
    seed: int,
    every: int,
    bfloat16: bool,
) -> Settings:
    """Return the settings of the loop.

    Raises:
        RecipeError: A number is out of its range.
    """
    if optimizer not in {"adamw", "sgd"}:
        raise RecipeError(f"the optimizer is {optimizer!r}", remedy="use adamw or sgd, or a loop of your own")
    if isinstance(lr, str) and lr != "auto":
        raise RecipeError(f"lr is {lr!r}", remedy="give a number, or auto to let one be found")
    rate = lr if isinstance(lr, (int, float)) else (5e-3 if optimizer == "adamw" else 1e-2)
    for name, value, highest in (
        ("epochs", epochs, 1e9),
        ("lr", rate, 1e3),
        ("warmup", warmup, 1.0),
        ("ema", ema, 1.0),
        ("gradual", gradual or 0.0, 1.0),
    ):
        if not 0 <= value <= highest or (name in {"epochs", "lr"} and not value):
            raise RecipeError(f"{name} is {value}", remedy="give a number in its range; see lowbit.qat")
    return Settings(
        epochs=epochs,
        lr=rate,
        optimizer=optimizer,
        weight_decay=weight_decay,
        warmup=warmup,
        gradual=gradual or 0.0,
        ema=ema,
        clip=clip,
        patience=patience,
        seed=seed,
        every=every,
        bfloat16=bfloat16,
    )


def with_gradual(settings: Settings, given: float | None, module: TrainableModel) -> Settings:
    """Let rounding errors grow in where something has few bits, unless the user has said what they shall do."""
    if given is not None:
        return settings
    origin: Origin = module.origin
    texts = [entry.weights for entry in origin.plan.sites if entry.weights]
    texts += [tensor.format for tensor in origin.plan.activations]
    few = any(parse_format(text).element.bits <= _FEW_BITS for text in texts)
    return dataclasses.replace(settings, gradual=_GRADUAL if few else 0.0)


def chosen_distillation(given: Distillation | bool | None, *, labels: bool, loss: object) -> Distillation | None:
    """Return how a teacher is asked: as the user says, or by default where there is nothing else to learn from."""
    if isinstance(given, Distillation):
        return given
    if given is None:
        given = not labels and loss is None
    return Distillation() if given else None


def training_identity(
    module: TrainableModel,
    settings: Settings,
    loss: object,
    teach: Distillation | None,
    chosen: tuple[str, ...],
    masks: object,
) -> str:
    """Return a digest of what has to be the same for a checkpoint to continue: model, plan and settings."""
    origin: Origin = module.origin
    named = getattr(loss, "__qualname__", type(loss).__name__)
    teacher = None if teach is None else (teach.weight, teach.temperature, teach.features, teach.attention)
    pruned = repr(masks) if dataclasses.is_dataclass(masks) else getattr(masks, "__qualname__", type(masks).__name__)
    parts = (digest(origin.model), repr(origin.plan.to_dict()), repr(settings), named, repr(teacher), repr(chosen))
    return hashlib.sha256("\n".join((*parts, pruned)).encode()).hexdigest()
