"""Products in bfloat16 inside a training whose weights, losses and optimizer stay in float32."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["in_bfloat16", "in_float32"]


def in_bfloat16(inputs: Mapping[str, torch.Tensor], *, enabled: bool) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which convolutions and matrix products of the inputs' device compute in bfloat16."""
    if not enabled:
        return contextlib.nullcontext()
    device = next((one.device.type for one in inputs.values()), "cpu")
    context: contextlib.AbstractContextManager[Any] = torch.autocast(device, dtype=torch.bfloat16)
    return context


def in_float32(values: Any) -> Any:
    """Return tensors, alone or in tuples and dicts, with what is bfloat16 as float32."""
    if isinstance(values, torch.Tensor):
        return values.float() if values.dtype == torch.bfloat16 else values
    if isinstance(values, tuple):
        return tuple(in_float32(one) for one in values)
    if isinstance(values, dict):
        return {name: in_float32(one) for name, one in values.items()}
    return values
