"""A model in training seen from its loss: from a batch to a number, and from all validation data to a metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lowbit.exceptions import DataError, TrainingError
from lowbit.methods.distillation import teacher_loss
from lowbit.training.gradient_path import cutting_operator
from lowbit.training.losses import label_loss
from lowbit.training.precision import in_bfloat16, in_float32

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowbit.methods.distillation import Distillation
    from lowbit.training.batches import Batch, Batches
    from lowbit.training.module import TrainableModel

__all__ = ["Student", "check_gradients", "scores_classes"]


@dataclass(slots=True, kw_only=True, eq=False)
class Student:
    """From a batch to its loss.

    Attributes:
        module: The module that is trained.
        logits: The inner tensor whose Softmax the output is; `None` if it is none.
        loss: The user's function of output and target; `None` for the usual one.
        teach: How it learns from a teacher; `None` without one.
        classes: Whether scores are those of classes.
        positions: Tensors whose attention is compared.
        teacher: The teacher, ready to be asked; `None` without one.
        bfloat16: Whether the module computes products in bfloat16, if nothing in it is rounded.
    """

    module: TrainableModel
    logits: str | None
    loss: Callable[[Any, Any], torch.Tensor] | None
    teach: Distillation | None
    classes: bool
    positions: tuple[str, ...]
    teacher: Any = None
    bfloat16: bool = False

    def check(self, target: Any) -> None:
        """Refuse data without targets where nothing else teaches.

        Raises:
            DataError: It is so.
        """
        if target is None and self.teach is None:
            raise DataError(
                "the training data have no targets",
                cause="the loss compares outputs with them",
                remedy="yield (x, y); or learn from the float model, which needs no labels: distillation=True",
            )

    def loss_of(self, batch: Batch) -> torch.Tensor:
        """Return the loss of a batch: distance to the teacher, to the targets, or a mean of both."""
        inputs, target = batch
        with in_bfloat16(inputs, enabled=self.bfloat16 and not self.module.quantized):
            output, inner = in_float32(self.module(tapped=True, **inputs))
        scores = self.scores(output, inner)
        if self.teach is None:
            return self.labelled(output, scores, target)
        taught = teacher_loss(
            self.teach, scores, inner, self.teacher, inputs, classes=self.classes, positions=self.positions
        )
        if target is None or self.teach.weight == 1.0:
            return taught
        return self.teach.weight * taught + (1.0 - self.teach.weight) * self.labelled(output, scores, target)

    def labelled(self, output: Any, scores: torch.Tensor, target: Any) -> torch.Tensor:
        """Return the distance to the targets."""
        return self.loss(output, target) if self.loss is not None else label_loss(scores, target)

    def scores(self, output: Any, inner: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the first output, or what goes into the Softmax that it is."""
        if self.logits is not None:
            return inner[self.logits]
        found: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return found

    def score(self, tests: Batches, metric: Callable[[torch.Tensor, torch.Tensor], float] | None) -> float:
        """Return the metric of validation data, higher is better; the negative loss where there is none."""
        found, targets, losses = [], [], []
        for inputs, target in tests:
            output, inner = self.module(tapped=True, **inputs)
            scores = self.scores(output, inner)
            if target is None:
                losses.append(float(self.loss_of((inputs, target))))
                continue
            if self.loss is not None and metric is None and not self.classes:
                losses.append(float(self.loss(output, target)))
                continue
            found.append(scores)
            targets.append(target)
        if losses:
            return -sum(losses) / len(losses)
        whole, wanted = torch.cat(found), torch.cat(targets)
        if metric is not None:
            return float(metric(whole, wanted))
        if not wanted.is_floating_point() and wanted.shape == whole.shape[:-1]:
            return float((whole.argmax(-1) == wanted).double().mean())
        return -float(label_loss(whole, wanted))


def scores_classes(target: Any, logits: str | None) -> bool:
    """Whether what a model gives are scores of classes: its targets are whole numbers, or it ends in a Softmax."""
    whole = isinstance(target, torch.Tensor) and not target.is_floating_point() and target.ndim >= 1
    return logits is not None or whole


def check_gradients(module: TrainableModel, inputs: dict[str, torch.Tensor]) -> None:
    """Refuse a model none of whose weights has got a gradient.

    Raises:
        TrainingError: It is so; the error names the operator that cuts gradients off.
    """
    grown = [one.grad for one in module.parameters() if one.grad is not None]
    if any(bool((one != 0).any()) for one in grown):
        return
    found = cutting_operator(module.origin.model, inputs)
    if found is None and grown:
        return  # The first step of a model that still equals its teacher.
    if found is None:
        raise TrainingError(
            "the loss does not depend on any weight",
            cause="it was computed without a gradient from the model's outputs",
            remedy="compute it with PyTorch from the outputs that it is given",
        )
    name, kind = found
    raise TrainingError(
        f"no gradient reaches a weight: the operator {name!r} ({kind}) cuts it off",
        cause=f"{kind} has no derivative",
        remedy=f"train the part of the model before {name!r}: extract it with that tensor as its output",
    )
