"""Activation functions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []


@operator("Relu")
def relu(_call: Call, x: Tensor) -> Tensor:
    """`max(0, x)`."""
    return torch.relu(x)


@operator("LeakyRelu")
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    """`x` or `alpha x`."""
    return torch.where(x >= 0, x, x * call.get("alpha", 0.01))


@operator("PRelu")
def prelu(_call: Call, x: Tensor, slope: Tensor) -> Tensor:
    """`x` or `slope x`."""
    return torch.where(x >= 0, x, x * slope)


@operator("Elu")
def elu(call: Call, x: Tensor) -> Tensor:
    """`x` or `alpha (e^x - 1)`."""
    return torch.where(x >= 0, x, call.get("alpha", 1.0) * torch.expm1(torch.clamp(x, max=0)))


@operator("Celu")
def celu(call: Call, x: Tensor) -> Tensor:
    """Continuously differentiable Elu."""
    return functional.celu(x, call.get("alpha", 1.0))


@operator("Selu")
def selu(call: Call, x: Tensor) -> Tensor:
    """Scaled Elu."""
    alpha, gamma = call.get("alpha", 1.67326319217681884765625), call.get("gamma", 1.05070102214813232421875)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0)))


@operator("Sigmoid")
def sigmoid(_call: Call, x: Tensor) -> Tensor:
    """`1 / (1 + e^-x)`."""
    return torch.sigmoid(x)


@operator("HardSigmoid")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    """`alpha x + beta` within 0 and 1."""
    return torch.clamp(x * call.get("alpha", 0.2) + call.get("beta", 0.5), 0, 1)


@operator("HardSwish")
def hard_swish(_call: Call, x: Tensor) -> Tensor:
    """`x · hard_sigmoid(x)` with a slope of 1/6."""
    return x * torch.clamp(x / 6 + 0.5, 0, 1)


@operator("Swish")
def swish(call: Call, x: Tensor) -> Tensor:
    """`x · sigmoid(alpha x)`."""
    return x * torch.sigmoid(call.get("alpha", 1.0) * x)


@operator("Softplus")
def softplus(_call: Call, x: Tensor) -> Tensor:
    """`log(1 + e^x)`."""
    return torch.logaddexp(x, torch.zeros_like(x))


@operator("Softsign")
def softsign(_call: Call, x: Tensor) -> Tensor:
    """`x / (1 + |x|)`."""
    return x / (1 + torch.abs(x))


@operator("Mish")
def mish(_call: Call, x: Tensor) -> Tensor:
    """`x tanh(softplus(x))`."""
    return x * torch.tanh(torch.logaddexp(x, torch.zeros_like(x)))


@operator("Gelu")
@operator("Gelu", domain="com.microsoft")
def gelu(call: Call, x: Tensor) -> Tensor:
    """Gaussian error linear unit, exact or by tanh."""
    return functional.gelu(x, approximate="tanh" if call.get("approximate", "none") == "tanh" else "none")


@operator("ThresholdedRelu")
def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    """`x` above a threshold, else 0."""
    return torch.where(x > call.get("alpha", 1.0), x, torch.zeros_like(x))


@operator("Shrink")
def shrink(call: Call, x: Tensor) -> Tensor:
    """Move towards zero."""
    bias, edge = call.get("bias", 0.0), call.get("lambd", 0.5)
    zero = torch.zeros_like(x)
    return torch.where(x < -edge, x + bias, torch.where(x > edge, x - bias, zero)).to(x.dtype)


def _flat(call: Call, x: Tensor, function: object) -> Tensor:
    """Apply along an axis; before operator set 13, over all axes from there on."""
    if call.version >= 13:
        return function(x, dim=call.get("axis", -1))  # type: ignore[operator]
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    rows = math.prod(x.shape[:axis])
    return function(x.reshape(rows, -1), dim=-1).reshape(x.shape)  # type: ignore[operator]


@operator("Softmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    """`e^x / sum(e^x)`."""
    return _flat(call, x, torch.softmax)


@operator("LogSoftmax")
def log_softmax(call: Call, x: Tensor) -> Tensor:
    """Logarithm of the Softmax."""
    return _flat(call, x, torch.log_softmax)


@operator("Hardmax")
def hardmax(call: Call, x: Tensor) -> Tensor:
    """1 at the first largest element, else 0."""

    def hottest(values: Tensor, dim: int) -> Tensor:
        return torch.zeros_like(values).scatter(dim, values.argmax(dim, keepdim=True), 1)

    return _flat(call, x, hottest)
