"""Comparisons and logic; everything here returns booleans or picks by them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowbit.interpreter.carriers import from_bits, to_bits, to_ordered, to_wide
from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []


def _comparison(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(name)
    def compute(_call: Call, a: Tensor, b: Tensor) -> Tensor:
        return function(to_ordered(a), to_ordered(b))


for _name, _function in {
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}.items():
    _comparison(_name, _function)


def _bitwise(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(name)
    def compute(_call: Call, a: Tensor, b: Tensor) -> Tensor:
        return from_bits(function(to_bits(a), to_bits(b)), a.dtype)


for _name, _function in {
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}.items():
    _bitwise(_name, _function)


@operator("Not")
def invert(_call: Call, x: Tensor) -> Tensor:
    """Negate."""
    return torch.logical_not(x)


@operator("BitwiseNot")
def bitwise_not(_call: Call, x: Tensor) -> Tensor:
    """Flip every bit."""
    return from_bits(torch.bitwise_not(to_bits(x)), x.dtype)


@operator("IsNaN")
def is_nan(_call: Call, x: Tensor) -> Tensor:
    """Whether each element is no number."""
    return torch.isnan(to_wide(x))


@operator("IsInf")
def is_inf(call: Call, x: Tensor) -> Tensor:
    """Whether each element is infinite, in the directions asked for."""
    wide = to_wide(x)
    found = torch.zeros_like(wide, dtype=torch.bool)
    if call.get("detect_positive", 1):
        found = found | torch.isposinf(wide)
    if call.get("detect_negative", 1):
        found = found | torch.isneginf(wide)
    return found


@operator("Where")
def where(_call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Pick from one tensor or the other."""
    return from_bits(torch.where(condition, to_bits(a), to_bits(b)), a.dtype)
