"""Arithmetic, element by element, with broadcasting; casts."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import torch

from lowbit.interpreter.dtypes import to_dtype
from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz)
_WIDE = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}


def widened(function):  # type: ignore[no-untyped-def]
    """Compute in a signed type where PyTorch has no arithmetic for an unsigned one, and go back."""

    def compute(call: Call, *inputs: Tensor) -> Tensor:
        first = next(value for value in inputs if value is not None)
        if first.dtype not in _WIDE:
            return function(call, *inputs)
        wide = _WIDE[first.dtype]
        return function(call, *(value.to(wide) if value is not None else None for value in inputs)).to(first.dtype)

    return compute


def _unary(name: str, function) -> None:  # type: ignore[no-untyped-def]
    @operator(name)
    @widened
    def compute(_call: Call, x: Tensor) -> Tensor:
        return function(x)


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
    "Det": torch.linalg.det,
}.items():
    _unary(_name, _function)


@operator("Identity")
def identity(_call: Call, x: Tensor) -> Tensor:
    """Return the input."""
    return x


@operator("Add")
@widened
def add(_call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Add."""
    return a + b


@operator("Sub")
@widened
def subtract(_call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Subtract."""
    return a - b


@operator("Mul")
@widened
def multiply(_call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Multiply."""
    return a * b


@operator("Div")
@widened
def divide(_call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Divide; integers towards zero."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Mod")
@widened
def modulo(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Take the remainder, with the sign of the divisor or, with `fmod`, of the dividend."""
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


@operator("Pow")
def power(_call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Raise to a power; the result has the type of the base."""
    if a.is_floating_point():
        return torch.pow(a, b.to(a.dtype) if not b.is_floating_point() else b).to(a.dtype)
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
    wide = _WIDE.get(inputs[0].dtype)
    if wide is not None:
        return reduce(torch.maximum, [value.to(wide) for value in inputs]).to(inputs[0].dtype)
    return reduce(torch.maximum, inputs)


@operator("Min")
def minimum(_call: Call, *inputs: Tensor) -> Tensor:
    """Take the smallest of any number of tensors."""
    wide = _WIDE.get(inputs[0].dtype)
    if wide is not None:
        return reduce(torch.minimum, [value.to(wide) for value in inputs]).to(inputs[0].dtype)
    return reduce(torch.minimum, inputs)


@operator("Clip")
def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Keep within bounds."""
    lowest = low if low is not None else call.get("min")
    highest = high if high is not None else call.get("max")
    for bound, function in ((lowest, torch.maximum), (highest, torch.minimum)):
        if bound is None:
            continue
        limit = bound if isinstance(bound, torch.Tensor) else torch.tensor(bound, dtype=x.dtype, device=x.device)
        limit = limit.to(x.dtype)
        if x.dtype in _WIDE:
            wide = _WIDE[x.dtype]
            x = function(x.to(wide), limit.to(wide)).to(x.dtype)
        else:
            x = function(x, limit.reshape(()))
    return x


@operator("Cast")
def cast(call: Call, x: Tensor) -> Tensor:
    """Change the element type."""
    return converted(x, int(call.get("to")), saturate=bool(call.get("saturate", 1)))


@operator("CastLike")
def cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    """Change the element type to that of another tensor."""
    return _to(x, like.dtype, saturate=bool(call.get("saturate", 1)))


@operator("BitShift")
def shift(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Shift bits."""
    wide = torch.int64
    moved = a.to(wide) << b.to(wide) if call.get("direction") == "LEFT" else a.to(wide) >> b.to(wide)
    bits = 8 * a.element_size()
    return (moved & ((1 << bits) - 1)).to(a.dtype) if bits < 64 else moved.to(a.dtype)


def converted(x: Tensor, code: int, *, saturate: bool = True) -> Tensor:
    """Return a tensor in an ONNX element type; values that a float8 cannot hold saturate, if wanted."""
    if code in _FEW_BITS:
        low, high, dtype = _FEW_BITS[code]
        rounded = torch.round(x.to(torch.float32)) if x.is_floating_point() else x.to(torch.int64)
        if x.is_floating_point():
            return rounded.clamp(low, high).to(dtype)
        span = high - low + 1
        return ((rounded - low) % span + low).to(dtype)
    return _to(x, to_dtype(code), saturate=saturate)


# INT4, UINT4, INT2, UINT2: lowest and highest code, and the type that holds one.
_FEW_BITS = {
    22: (-8, 7, torch.int8),
    21: (0, 15, torch.uint8),
    26: (-2, 1, torch.int8),
    25: (0, 3, torch.uint8),
}


def _to(x: Tensor, dtype: torch.dtype, *, saturate: bool) -> Tensor:
    if dtype in _FLOAT8:
        wide = x.to(torch.float32)
        limit = torch.finfo(dtype).max
        if saturate:
            wide = torch.where(torch.isnan(wide), wide, wide.clamp(-limit, limit))
        else:
            # Conversions of the library saturate or not as they like: overflow is infinite, or no number at all.
            overflow = float("inf") if dtype == torch.float8_e5m2 else float("nan")
            result = wide.clamp(-limit, limit).to(dtype).to(torch.float32)
            beyond = wide.abs() >= limit * (1 + 2.0 ** -(4 if "e4m3" in str(dtype) else 3))
            wide = torch.where(beyond, torch.sign(wide) * overflow, result)
        return wide.to(dtype)
    if x.dtype in _FLOAT8:
        return x.to(torch.float32).to(dtype)
    if x.is_floating_point() and dtype in (torch.uint8, torch.uint16, torch.uint32):
        return x.to(torch.int64).to(dtype)
    return x.to(dtype)
