"""Attention and rotary embeddings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from lowbit.interpreter.dtypes import to_dtype
from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__ = ["attention_weights", "heads_first", "heads_last", "repeated_heads", "rotated"]


def heads_first(x: Tensor, heads: int) -> Tensor:
    """Return `[batch, time, heads · size]` as `[batch, heads, time, size]`."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def heads_last(x: Tensor) -> Tensor:
    """Return `[batch, heads, time, size]` as `[batch, time, heads · size]`."""
    return x.transpose(1, 2).flatten(2)


def repeated_heads(x: Tensor, heads: int) -> Tensor:
    """Return keys or values `[batch, groups, time, size]` once for every head of their group."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def attention_weights(scores: Tensor, bias: Tensor | None) -> Tensor:
    """Return the Softmax over the last axis; rows that a bias of minus infinity masks altogether are zero.

    Args:
        scores: `[batch, heads, queries, keys]`.
        bias: What has been added to them, broadcastable.
    """
    masked = None if bias is None else torch.isneginf(bias).all(dim=-1, keepdim=True)
    if masked is not None:
        # Replaced before the Softmax: its gradient would be no number.
        scores = torch.where(masked, torch.zeros_like(scores), scores)
    # In the scores' own precision, step by step, as the standard's definition by other operators does.
    parts = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
    weights = parts / parts.sum(dim=-1, keepdim=True)
    return weights if masked is None else torch.where(masked, torch.zeros_like(weights), weights)


@operator("Attention")
def attention(
    call: Call,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Attend (Vaswani et al. 2017), in groups of heads (Ainslie et al. 2023), over keys seen before too.

    Returns:
        The result, all keys and values, and what `qk_matmul_output_mode` says.
    """
    flat = q.ndim == 3
    if flat:
        q = heads_first(q, call.get("q_num_heads"))
        k, v = heads_first(k, call.get("kv_num_heads")), heads_first(v, call.get("kv_num_heads"))
    before: int | Tensor = 0
    if past_key is not None and past_value is not None:
        before = past_key.shape[2]
        k, v = torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)
    elif valid is not None:
        before = valid.reshape(-1, 1, 1, 1) - q.shape[2]
    key, value = repeated_heads(k, q.shape[1]), repeated_heads(v, q.shape[1])
    scale = call.get("scale")
    root = q.new_tensor(math.sqrt(1 / math.sqrt(q.shape[3]) if scale is None else scale))
    scores = (q * root) @ (key * root).transpose(2, 3)
    mode, shown = call.get("qk_matmul_output_mode", 0), scores
    cap = call.get("softcap", 0.0)
    if cap:
        scores = cap * torch.tanh(scores / cap)
        shown = scores if mode == 1 else shown
    bias = _bias(call, q, key, mask, before, valid)
    if bias is not None:
        scores = scores + bias
    shown = scores if mode == 2 else shown
    precision = call.get("softmax_precision")
    wide = scores if precision is None else scores.to(to_dtype(precision))
    weights = attention_weights(wide, bias).to(q.dtype)
    shown = weights if mode == 3 else shown
    y = weights @ value
    return (heads_last(y) if flat else y), k, v, shown


def _bias(
    call: Call, q: Tensor, key: Tensor, mask: Tensor | None, before: int | Tensor, valid: Tensor | None
) -> Tensor | None:
    """Return what masks add to scores, `None` if nothing."""
    keys = torch.arange(key.shape[2], device=q.device)
    at = before + torch.arange(q.shape[2], device=q.device)[:, None]
    allowed: list[Tensor] = []
    if call.get("is_causal", 0):
        allowed.append(keys <= at)
    left, right = call.get("left_window_size", -1), call.get("right_window_size", -1)
    if left >= 0:
        allowed.append(keys >= at - left)
    if right >= 0:
        allowed.append(keys <= at + right)
    if valid is not None:
        allowed.append(keys < valid.reshape(-1, 1, 1, 1))
    bias: Tensor | None = None
    if mask is not None:
        missing = key.shape[2] - mask.shape[-1]
        if mask.dtype == torch.bool:
            allowed.append(functional.pad(mask, (0, missing), value=False))
        else:
            bias = functional.pad(mask, (0, missing), value=-math.inf)
    for permitted in allowed:
        shut = torch.zeros(permitted.shape, dtype=q.dtype, device=q.device).masked_fill(~permitted, -math.inf)
        bias = shut if bias is None else bias + shut
    return bias


def rotated(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Return pairs of elements turned by angles (Su et al. 2021).

    Args:
        x: `[..., size]`; what lies beyond twice the angles is left as it is.
        cos: Cosines, broadcastable to `[..., angles]`.
        sin: Sines.
        interleaved: Whether pairs are neighbours rather than of the two halves.
    """
    turned, rest = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1] :]
    if interleaved:
        one, other = turned[..., 0::2], turned[..., 1::2]
    else:
        one, other = turned.chunk(2, dim=-1)
    real, imaginary = cos * one - sin * other, sin * one + cos * other
    pairs = torch.stack([real, imaginary], dim=-1 if interleaved else -2)
    joined = pairs.flatten(-2)
    return torch.cat([joined, rest], dim=-1) if rest.shape[-1] else joined


@operator("RotaryEmbedding")
def rotary_embedding(call: Call, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
    """Turn pairs of elements by angles that depend on their positions."""
    flat = x.ndim == 3
    whole = heads_first(x, call.get("num_heads")) if flat else x
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    half = (call.get("rotary_embedding_dim", 0) or whole.shape[3]) // 2
    cos, sin = cos[:, None, :, :half], sin[:, None, :, :half]
    y = rotated(whole, cos, sin, interleaved=bool(call.get("interleaved", 0)))
    return heads_last(y) if flat else y
