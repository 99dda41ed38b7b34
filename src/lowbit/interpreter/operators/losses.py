"""Losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []


def _negative_log_likelihood(call: Call, scores: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Return the loss of log probabilities `[N, C, *space]` at the classes `[N, *space]`."""
    # -100 is what PyTorch ignores by itself; the standard ignores nothing by default.
    ignored = call.get("ignore_index", torch.iinfo(torch.int64).min)
    return functional.nll_loss(
        scores, target.to(torch.int64), weight, ignore_index=ignored, reduction=call.get("reduction", "mean")
    )


@operator("NegativeLogLikelihoodLoss")
def negative_log_likelihood(call: Call, scores: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Loss of log probabilities at the classes wanted."""
    return _negative_log_likelihood(call, scores, target, weight)


@operator("SoftmaxCrossEntropyLoss")
def cross_entropy(call: Call, scores: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Loss of scores at the classes wanted, and the log probabilities."""
    logarithms = torch.log_softmax(scores, dim=1)
    return _negative_log_likelihood(call, logarithms, target, weight), logarithms
