"""Arithmetic, element by element, with broadcasting."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import torch

from lowbit.interpreter.carriers import from_ordered, from_wide, to_ordered, to_wide
from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []


def _unary(name: str, function: Callable[[Tensor], Tensor]) -> None:
    @operator(name)
    def compute(_call: Call, x: Tensor) -> Tensor:
        return from_wide(function(to_wide(x)), x.dtype)


for _name, _function in {
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Ceil": torch.ceil,
    "Floor": torch.floor,
    "Round": torch.round,
    "Sqrt": torch.sqrt,
    "Exp": torch.exp,
    "Log": torch.log,
    "Reciprocal": torch.reciprocal,
    "Sign": torch.sign,
    "Erf": torch.erf,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Tanh": torch.tanh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
}.items():
    _unary(_name, _function)


def _binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(name)
    def compute(call: Call, a: Tensor, b: Tensor) -> Tensor:
        return from_wide(function(to_wide(a), _aligned(call, to_wide(a), to_wide(b))), a.dtype)


def _aligned(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Return the second operand as it broadcasts: before operator set 7, from an axis on."""
    if call.version >= 7 or not call.get("broadcast", 0) or "axis" not in call.attributes:
        return b
    axis = call.get("axis") % a.ndim
    return b.reshape(*b.shape, *[1] * (a.ndim - axis - b.ndim))


def _divided(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


_binary("Add", torch.add)
_binary("Sub", torch.sub)
_binary("Mul", torch.mul)
_binary("Div", _divided)


@operator("Identity")
def identity(_call: Call, x: Tensor) -> Tensor:
    """Return the input."""
    return x


@operator("Mod")
def modulo(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Take the remainder, with the sign of the divisor or, with `fmod`, of the dividend."""
    function = torch.fmod if call.get("fmod", 0) else torch.remainder
    return from_wide(function(to_wide(a), to_wide(b)), a.dtype)


@operator("Pow")
def power(_call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Raise to a power; the result has the type of the base."""
    if a.is_floating_point():
        return torch.pow(a, b if b.is_floating_point() else b.to(a.dtype)).to(a.dtype)
    if b.is_floating_point():
        return torch.pow(a.to(torch.float64), b.to(torch.float64)).to(a.dtype)
    return torch.pow(a, b.to(torch.int64)).to(a.dtype)


@operator("Sum")
def total(_call: Call, *inputs: Tensor) -> Tensor:
    """Add any number of tensors."""
    return reduce(torch.add, inputs)


@operator("Mean")
def mean(_call: Call, *inputs: Tensor) -> Tensor:
    """Average any number of tensors."""
    return reduce(torch.add, inputs) / len(inputs)


@operator("Max")
def maximum(_call: Call, *inputs: Tensor) -> Tensor:
    """Take the largest of any number of tensors."""
    return from_ordered(reduce(torch.maximum, map(to_ordered, inputs)), inputs[0].dtype)


@operator("Min")
def minimum(_call: Call, *inputs: Tensor) -> Tensor:
    """Take the smallest of any number of tensors."""
    return from_ordered(reduce(torch.minimum, map(to_ordered, inputs)), inputs[0].dtype)


@operator("Clip")
def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Keep within bounds; where they cross, the higher one wins."""
    bounds = [
        own.to(x.dtype).reshape(()) if own is not None else _bound(call, name, x)
        for own, name in ((low, "min"), (high, "max"))
    ]
    if all(bound is None for bound in bounds):
        return x
    learned = any(bound is not None and bound.requires_grad for bound in bounds)
    if x.dtype == torch.float32 and x.device.type == "cpu" and not learned:
        # With numbers for bounds, the gradient is one pass over memory in place of six.
        return torch.clamp(x, *(None if bound is None else float(bound) for bound in bounds))
    ordered = [None if bound is None else to_ordered(bound) for bound in bounds]
    return from_ordered(torch.clamp(to_ordered(x), *ordered), x.dtype)


def _bound(call: Call, name: str, x: Tensor) -> Tensor | None:
    """Return a bound that is an attribute, as before operator set 11."""
    value = call.get(name)
    return None if value is None else torch.tensor(value, dtype=x.dtype, device=x.device)


@operator("Det")
def determinant(_call: Call, x: Tensor) -> Tensor:
    """Return the determinants of matrices."""
    return torch.linalg.det(x)


@operator("BitShift")
def shift(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Shift bits of unsigned integers."""
    bits = 8 * a.element_size()
    value, count = a.to(torch.int64), b.to(torch.int64)
    if call.get("direction") == "LEFT":
        return (value << count).to(a.dtype)
    moved = value >> count
    # int64 shifts its sign in from the left; uint64 has none.
    kept = torch.where(count > 0, (1 << (bits - count).clamp(max=62)) - 1, -1)
    return (moved & kept if bits == 64 else moved).to(a.dtype)
