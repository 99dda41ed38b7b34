"""com.microsoft: layers with what stands before or behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from lowbit.exceptions import ModelError
from lowbit.interpreter.dtypes import to_dtype
from lowbit.interpreter.operators.convolution import conv
from lowbit.interpreter.operators.matrices import gemm
from lowbit.interpreter.operators.normalization import layer_normalized, rms_normalized
from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []

_DOMAIN = "com.microsoft"


@operator("BiasGelu", domain=_DOMAIN)
def bias_gelu(_call: Call, x: Tensor, bias: Tensor) -> Tensor:
    """Add a bias, then take the Gelu."""
    return functional.gelu(x + bias)


@operator("FastGelu", domain=_DOMAIN)
def fast_gelu(_call: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Take the Gelu by its tanh approximation."""
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


@operator("QuickGelu", domain=_DOMAIN)
def quick_gelu(call: Call, x: Tensor) -> Tensor:
    """`x · sigmoid(alpha x)`."""
    return x * torch.sigmoid(call.get("alpha", 1.702) * x)


@operator("BiasSplitGelu", domain=_DOMAIN)
def bias_split_gelu(_call: Call, x: Tensor, bias: Tensor) -> Tensor:
    """Add a bias; multiply one half by the Gelu of the other."""
    one, other = (x + bias).chunk(2, dim=-1)
    return one * functional.gelu(other)


@operator("BiasAdd", domain=_DOMAIN)
def bias_add(_call: Call, x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    """Add a bias and a skipped connection."""
    return x + bias + skip


def _activated(call: Call, x: Tensor, parameters: list[float]) -> Tensor:
    """Return a fused activation function of a tensor."""
    name = call.get("activation", "")
    match name:
        case "" | None:
            return x
        case "Relu":
            return torch.relu(x)
        case "Tanh":
            return torch.tanh(x)
        case "Sigmoid":
            return torch.sigmoid(x)
        case "LeakyRelu":
            return functional.leaky_relu(x, parameters[0] if parameters else 0.01)
        case "Clip":
            return x.clamp(parameters[0], parameters[1])
        case "HardSigmoid":
            return (parameters[0] * x + parameters[1]).clamp(0, 1)
    raise ModelError(f"no fused activation function is called {name!r}", remedy="write it as an operator of its own")


@operator("FusedConv", domain=_DOMAIN)
def fused_conv(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None, z: Tensor | None = None) -> Tensor:
    """Convolve, add a skipped connection, apply an activation function."""
    y = conv(call, x, w, b)
    return _activated(call, y if z is None else y + z, list(call.get("activation_params") or []))


@operator("FusedGemm", domain=_DOMAIN)
def fused_gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Multiply matrices, apply an activation function."""
    parameters = [call.get(f"activation_{name}") for name in ("alpha", "beta", "gamma")]
    return _activated(call, gemm(call, a, b, c), [value for value in parameters if value is not None])


@operator("FusedMatMul", "TransposeMatMul", domain=_DOMAIN)
def fused_matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Multiply stacks of matrices, transposed if wanted, by a factor."""

    def turned(x: Tensor, name: str) -> Tensor:
        if call.get(f"transBatch{name}", 0):
            x = x.movedim(0, -2)
        return x.transpose(-1, -2) if call.get(f"trans{name}", 0) and x.ndim > 1 else x

    return call.get("alpha", 1.0) * torch.matmul(turned(a, "A"), turned(b, "B"))


def _wide(call: Call, x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype == torch.float64 else to_dtype(call.get("stash_type", 1))


@operator("SkipLayerNormalization", domain=_DOMAIN)
def skip_layer_normalization(
    call: Call, x: Tensor, skip: Tensor, gamma: Tensor, beta: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Add a skipped connection, then normalize; the sum is the fourth output."""
    total = x + skip if bias is None else x + skip + bias
    y, mean, inverse = layer_normalized(total, gamma, beta, [-1], call.get("epsilon", 1e-12), _wide(call, x))
    return y, mean, inverse, total


@operator("SkipSimplifiedLayerNormalization", domain=_DOMAIN)
def skip_rms_normalization(
    call: Call, x: Tensor, skip: Tensor, gamma: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Add a skipped connection, then divide by the root mean square; the sum is the fourth output."""
    total = x + skip if bias is None else x + skip + bias
    y, inverse = rms_normalized(total, gamma, [-1], call.get("epsilon", 1e-12), _wide(call, x))
    return y, torch.zeros_like(inverse), inverse, total


@operator("SimplifiedLayerNormalization")
@operator("SimplifiedLayerNormalization", domain=_DOMAIN)
def rms_normalization(call: Call, x: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    """Divide every sample by the root mean square over its last axes."""
    dims = list(range(call.get("axis", -1) % x.ndim, x.ndim))
    return rms_normalized(x, scale, dims, call.get("epsilon", 1e-5), _wide(call, x))


@operator("EmbedLayerNormalization", domain=_DOMAIN)
def embed_layer_normalization(
    call: Call,
    tokens: Tensor,
    segments: Tensor | None,
    words: Tensor,
    places: Tensor,
    kinds: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Add up the embeddings of tokens, positions and segments, then normalize; the mask's lengths are returned too."""
    at = torch.arange(tokens.shape[1], device=tokens.device)[None] if positions is None else positions.to(torch.int64)
    total = words[tokens.to(torch.int64)] + places[at]
    if segments is not None and kinds is not None:
        total = total + kinds[segments.to(torch.int64)]
    y = layer_normalized(total, gamma, beta, [-1], call.get("epsilon", 1e-12), _wide(call, total))[0]
    lengths = torch.zeros(tokens.shape[0], dtype=torch.int32, device=tokens.device)
    if mask is not None:
        lengths = mask.sum(dim=1).to(torch.int32)
    return y, lengths, total
