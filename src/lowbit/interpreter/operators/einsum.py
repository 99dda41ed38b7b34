"""Sums of products, by their subscripts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []


@operator("Einsum")
def einsum(call: Call, *inputs: Tensor) -> Tensor:
    """Sum products of elements over the subscripts that the result does not have."""
    return torch.einsum(call.get("equation").replace(" ", ""), *inputs)
