"""com.microsoft: attention with what models put around it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from lowbit.exceptions import ModelError
from lowbit.interpreter.operators.attention import heads_first, heads_last, repeated_heads, rotated
from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []

_DOMAIN = "com.microsoft"


def _attended(
    call: Call, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, causal: bool, before: int
) -> tuple[Tensor, Tensor]:
    """Return the result `[batch, time, heads · size]` and the scores before the Softmax.

    Args:
        call: The node; `scale` is read.
        q: `[batch, heads, queries, size]`.
        k: `[batch, heads, keys, size]`; `v` likewise.
        v: The values.
        bias: What masks add to the scores.
        causal: Whether queries see no later keys.
        before: Number of keys in front of the first query.
    """
    scores = q @ k.transpose(2, 3) * (call.get("scale") or 1 / math.sqrt(q.shape[3]))
    scores = scores if bias is None else scores + bias
    if causal:
        at = before + torch.arange(q.shape[2], device=q.device)[:, None]
        later = torch.arange(k.shape[2], device=q.device) > at
        scores = scores.masked_fill(later, torch.finfo(scores.dtype).min)
    return heads_last(torch.softmax(scores, dim=-1) @ v), scores


def _padding(call: Call, mask: Tensor | None, batch: int, keys: int, like: Tensor) -> Tensor | None:
    """Return what a mask of keys adds to scores: `[batch, keys]` flags, `[batch, queries, keys]`, or lengths."""
    if mask is None:
        return None
    filling = call.get("mask_filter_value") or -10000.0
    at = torch.arange(keys, device=like.device)
    if mask.ndim == 1 and mask.numel() in {batch, 2 * batch}:
        seen = at < mask[:batch, None]
        if mask.numel() == 2 * batch and batch > 0:
            seen = seen & (at >= mask[batch:, None])
    elif mask.ndim in {2, 3}:
        seen = mask > 0
    else:
        raise ModelError(
            f"{call.op_type} has a mask of the shape {tuple(mask.shape)}", remedy="use flags or lengths of keys"
        )
    shut = torch.where(seen, 0.0, filling).to(like.dtype)
    return shut[:, None, None] if shut.ndim == 2 else shut[:, None]


def _sum(*biases: Tensor | None) -> Tensor | None:
    present = [bias for bias in biases if bias is not None]
    return sum(present[1:], present[0]) if present else None


@operator("Attention", domain=_DOMAIN)
def attention(
    call: Call,
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_length: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Attend with queries, keys and values that one matrix makes; past and present are `[2, batch, heads, ...]`."""
    if call.get("do_rotary", 0) or call.get("past_present_share_buffer", 0) or past_length is not None:
        raise ModelError("Attention turns positions or shares buffers", remedy="use GroupQueryAttention")
    heads = call.get("num_heads")
    joined = x @ weights
    joined = joined if bias is None else joined + bias
    sizes = call.get("qkv_hidden_sizes") or [joined.shape[2] // 3] * 3
    q, k, v = (heads_first(part, heads) for part in torch.split(joined, list(sizes), dim=2))
    before = 0
    if past is not None:
        before = past.shape[3]
        k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
    added = _sum(_padding(call, mask, x.shape[0], k.shape[2], q), attention_bias)
    y, _ = _attended(call, q, k, v, added, causal=bool(call.get("unidirectional", 0)), before=before)
    return (y, torch.stack([k, v])) if k.shape == v.shape else (y,)


@operator("MultiHeadAttention", domain=_DOMAIN)
def multi_head_attention(
    call: Call,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    padding: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *unsupported: Tensor | None,
) -> tuple[Tensor, ...]:
    """Attend; queries, keys and values come apart, or packed as `[batch, time, heads, 3 or 2, size]`."""
    if any(tensor is not None for tensor in unsupported):
        raise ModelError("MultiHeadAttention shares buffers", remedy="use past and present keys and values")
    heads = call.get("num_heads")
    if query.ndim == 5:
        query, key, value = (part.flatten(2) for part in query.unbind(3))
    elif key is not None and key.ndim == 5:
        key, value = (part.flatten(2) for part in key.unbind(3))
    if key is None or value is None:
        raise ModelError("MultiHeadAttention has no keys", remedy="give query, key and value")
    if bias is not None:
        width = query.shape[2]
        query = query + bias[:width]
        if key.ndim == 3:
            key, value = key + bias[width : width + key.shape[2]], value + bias[width + key.shape[2] :]
    q = heads_first(query, heads)
    k = heads_first(key, heads) if key.ndim == 3 else key
    v = heads_first(value, heads) if value.ndim == 3 else value
    before = 0
    if past_key is not None and past_value is not None:
        before = past_key.shape[2]
        k, v = torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)
    added = _sum(_padding(call, padding, q.shape[0], k.shape[2], q), attention_bias)
    y, scores = _attended(call, q, k, v, added, causal=bool(call.get("unidirectional", 0)), before=before)
    return y, k, v, scores


@operator("RotaryEmbedding", domain=_DOMAIN)
def rotary_embedding(call: Call, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs of elements by angles that depend on their positions; one position is that of the first element."""
    flat = x.ndim == 3
    size = 2 * cos.shape[1]
    heads = call.get("num_heads", 0) or (x.shape[2] // size if flat else x.shape[1])
    whole = heads_first(x, heads) if flat else x
    if positions.numel() == 1 and positions.ndim == 1:
        positions = positions + torch.arange(whole.shape[2], device=x.device)[None]
    y = rotated(whole, cos[positions][:, None], sin[positions][:, None], interleaved=bool(call.get("interleaved", 0)))
    y = y * call.get("scale") if call.get("scale") else y
    return heads_last(y) if flat else y


@operator("GroupQueryAttention", domain=_DOMAIN)
def group_query_attention(
    call: Call,
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    lengths: Tensor,
    total: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    positions: Tensor | None = None,
    attention_bias: Tensor | None = None,
    sink: Tensor | None = None,
    *unsupported: Tensor | None,
) -> tuple[Tensor, ...]:
    """Attend in groups of heads (Ainslie et al. 2023), causally, over keys seen before too; `lengths` are one less."""
    if any(tensor is not None for tensor in unsupported) or call.get("sliding_window_cache", 0):
        raise ModelError("GroupQueryAttention stores quantized or sliding keys", remedy="store keys as they are")
    heads, groups = call.get("num_heads"), call.get("kv_num_heads")
    if key is None or value is None:
        size = query.shape[2] // (heads + 2 * groups)
        query, key, value = torch.split(query, [heads * size, groups * size, groups * size], dim=2)
    q, k, v = heads_first(query, heads), heads_first(key, groups), heads_first(value, groups)
    count, stored = q.shape[2], 0 if past_key is None else past_key.shape[2]
    room = max(int(total), stored)
    before = [max(int(length) + 1 - count, 0) for length in lengths.reshape(-1).tolist()]
    if call.get("do_rotary", 0):
        if cos is None or sin is None:
            raise ModelError("GroupQueryAttention has no cosines", remedy="give cos_cache and sin_cache")
        starts = torch.tensor(before, device=q.device)[:, None]
        at = starts + torch.arange(count, device=q.device)[None] if positions is None else positions
        turned = [cache[at.clamp(0, cache.shape[0] - 1)][:, None] for cache in (cos, sin)]
        q = rotated(q, *turned, interleaved=bool(call.get("rotary_interleaved", 0)))
        k = rotated(k, *turned, interleaved=bool(call.get("rotary_interleaved", 0)))
    outputs, keys, values = [], [], []
    for index, start in enumerate(before):
        joined = []
        for past, new in ((past_key, k), (past_value, v)):
            old = new[index, :, :0] if past is None else past[index, :, :start]
            whole = torch.cat([old, new[index]], dim=1)[:, :room]
            joined.append(functional.pad(whole, (0, 0, 0, room - whole.shape[1])))
        keys.append(joined[0])
        values.append(joined[1])
        bias = None if attention_bias is None else attention_bias[index % attention_bias.shape[0]]
        outputs.append(_grouped(call, q[index], joined[0], joined[1], start, bias, sink))
    return heads_last(torch.stack(outputs)), torch.stack(keys), torch.stack(values)


def _grouped(
    call: Call, q: Tensor, k: Tensor, v: Tensor, before: int, bias: Tensor | None, sink: Tensor | None
) -> Tensor:
    """Return one sample's result, `[heads, queries, size]`."""
    k, v = (repeated_heads(part[None], q.shape[0])[0] for part in (k, v))
    scores = q @ k.transpose(1, 2) * (call.get("scale") or 1 / math.sqrt(q.shape[2]))
    cap = call.get("softcap", 0.0)
    scores = cap * torch.tanh(scores / cap) if cap else scores
    scores = scores if bias is None else scores + functional.pad(bias, (0, scores.shape[2] - bias.shape[-1]))
    at = before + torch.arange(q.shape[1], device=q.device)[:, None]
    place = torch.arange(k.shape[1], device=q.device)
    hidden = place > at
    window = call.get("local_window_size", -1)
    hidden = hidden | (place <= at - window) if window > 0 else hidden
    scores = scores.masked_fill(hidden, -math.inf)
    if sink is not None or call.get("smooth_softmax", 0) == 1:
        # One more key that holds nothing takes its share of the attention.
        extra = scores.new_zeros(q.shape[0]) if sink is None else sink.to(scores.dtype)
        scores = torch.cat([scores, extra[:, None, None].expand(-1, scores.shape[1], 1)], dim=2)
        return torch.softmax(scores, dim=-1)[:, :, :-1] @ v
    return torch.softmax(scores, dim=-1) @ v
