"""Tensors from nothing: filled, counted, random; and Dropout, which draws its mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lowbit.interpreter.dtypes import to_dtype
from lowbit.interpreter.operators.shapes import integers
from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []

_FLOAT = 1


@operator("ConstantOfShape")
def filled(call: Call, shape: Tensor) -> Tensor:
    """Fill a shape with one value, 0 by default."""
    value = call.get("value")
    if value is None:
        return torch.zeros(integers(shape), device=shape.device)
    return value.to(shape.device).reshape(()).expand(integers(shape)).clone()


@operator("Range")
def counted(_call: Call, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    """Count from a start up or down to before a limit."""
    steps = torch.ceil((limit.to(torch.float64) - start.to(torch.float64)) / step.to(torch.float64))
    numbers = torch.arange(max(int(steps), 0), device=start.device)
    return (start + numbers.to(start.dtype) * step).to(start.dtype)


@operator("EyeLike")
def eye(call: Call, x: Tensor) -> Tensor:
    """Put ones on a diagonal of a matrix of zeros."""
    rows, columns = (torch.arange(size, device=x.device) for size in x.shape)
    code = call.get("dtype")
    on = columns[None] - rows[:, None] == call.get("k", 0)
    return on.to(x.dtype if code is None else to_dtype(code))


def _generator(call: Call, device: torch.device) -> torch.Generator | None:
    """Return a generator of the node's own seed; without one, `None`: PyTorch's global generator."""
    seed = call.get("seed")
    return None if seed is None else torch.Generator(device=device).manual_seed(int(seed))


def _drawn(call: Call, shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = _generator(call, device)
    if "Normal" in call.op_type:
        noise = torch.randn(shape, dtype=dtype, device=device, generator=generator)
        return noise * call.get("scale", 1.0) + call.get("mean", 0.0)
    low, high = call.get("low", 0.0), call.get("high", 1.0)
    return torch.rand(shape, dtype=dtype, device=device, generator=generator) * (high - low) + low


@operator("RandomNormal", "RandomUniform")
def random(call: Call) -> Tensor:
    """Draw from a normal or a uniform distribution."""
    # NOTE: without an input there is nothing that says on which device; PyTorch's default device is the caller's word.
    device = torch.get_default_device()
    return _drawn(call, integers(call.get("shape")), to_dtype(call.get("dtype", _FLOAT)), device)


@operator("RandomNormalLike", "RandomUniformLike")
def random_like(call: Call, x: Tensor) -> Tensor:
    """Draw as many numbers as another tensor has."""
    code = call.get("dtype")
    return _drawn(call, x.shape, x.dtype if code is None else to_dtype(code), x.device)


@operator("Bernoulli")
def bernoulli(call: Call, x: Tensor) -> Tensor:
    """Draw 1 with the probability that each element says, else 0."""
    code = call.get("dtype")
    drawn = torch.bernoulli(x, generator=_generator(call, x.device))
    return drawn.to(x.dtype if code is None else to_dtype(code))


@operator("Multinomial")
def multinomial(call: Call, x: Tensor) -> Tensor:
    """Draw classes by their unnormalized log probabilities: `[batch, classes]` to `[batch, sample_size]`."""
    count = call.get("sample_size", 1)
    chances = torch.softmax(x, dim=-1)
    drawn = torch.multinomial(chances, count, replacement=True, generator=_generator(call, x.device))
    return drawn.to(to_dtype(call.get("dtype", 6)))


@operator("Dropout")
def dropout(
    call: Call, x: Tensor, ratio: Tensor | None = None, training_mode: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Drop elements and scale the others up, in training; the mask says which are kept.

    A node's seed is not used: the mask of every step would be the same.
    """
    active = call.training or (training_mode is not None and bool(training_mode))
    chance = float(ratio) if ratio is not None else call.get("ratio", 0.5)
    mask_type = torch.bool if call.version >= 10 else x.dtype
    if not active or chance == 0:
        return x, torch.ones_like(x, dtype=mask_type)
    kept = torch.rand_like(x, dtype=torch.float32) >= chance
    return torch.where(kept, x / (1 - chance), torch.zeros_like(x)), kept.to(mask_type)
