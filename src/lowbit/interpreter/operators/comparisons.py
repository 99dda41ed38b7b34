"""Comparisons and logic; everything here returns booleans or picks by them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []

_WIDE = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}


def _binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(name)
    def compute(_call: Call, a: Tensor, b: Tensor) -> Tensor:
        if a.dtype in _WIDE:
            a, b = a.to(_WIDE[a.dtype]), b.to(_WIDE[b.dtype])
        return function(a, b)


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
    _binary(_name, _function)


def _bitwise(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(name)
    def compute(_call: Call, a: Tensor, b: Tensor) -> Tensor:
        if a.dtype in _WIDE:
            return function(a.to(torch.int64), b.to(torch.int64)).to(a.dtype)
        return function(a, b)


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
    if x.dtype in _WIDE:
        bits = 8 * x.element_size()
        flipped = torch.bitwise_not(x.to(torch.int64))
        return (flipped & ((1 << bits) - 1)).to(x.dtype) if bits < 64 else flipped.to(x.dtype)
    return torch.bitwise_not(x)


@operator("IsNaN")
def is_nan(_call: Call, x: Tensor) -> Tensor:
    """Whether each element is no number."""
    return torch.isnan(x.to(torch.float32) if x.element_size() == 1 else x)


@operator("IsInf")
def is_inf(call: Call, x: Tensor) -> Tensor:
    """Whether each element is infinite, in the directions asked for."""
    wide = x.to(torch.float32) if x.element_size() == 1 else x
    found = torch.zeros_like(wide, dtype=torch.bool)
    if call.get("detect_positive", 1):
        found = found | torch.isposinf(wide)
    if call.get("detect_negative", 1):
        found = found | torch.isneginf(wide)
    return found


@operator("Where")
def where(_call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Pick from one tensor or the other."""
    return torch.where(condition, a, b)
