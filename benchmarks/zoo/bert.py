"""The BERT encoder in plain PyTorch (Devlin et al. 2018, arXiv:1810.04805), with the names of published checkpoints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from benchmarks.zoo.case import Array

__all__ = ["build_encoder", "read_safetensors"]


def read_safetensors(content: bytes) -> dict[str, Array]:
    """Return the float32 tensors of a safetensors file: a header length, a JSON header, then the raw bytes."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    tensors: dict[str, Array] = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(content[begin:end], np.float32).reshape(entry["shape"]).copy()
    return tensors


def build_encoder(weights: dict[str, Array], *, layers: int, heads: int) -> Any:
    """Return the encoder with mean pooling as an evaluated `torch.nn.Module`.

    Args:
        weights: Tensors of the checkpoint; those of other parts are ignored.
        layers: Number of transformer layers.
        heads: Attention heads in each.

    The module maps `input_ids`, `attention_mask` and `token_type_ids`, each `[batch, length] int64`, to the mean of the
    unmasked token vectors, `[batch, width] float32`. Masked positions get -1e4 added to their attention scores, as in
    the exports that people have.
    """
    import torch
    from torch import Tensor, nn

    vocabulary, width = weights["embeddings.word_embeddings.weight"].shape
    positions = weights["embeddings.position_embeddings.weight"].shape[0]
    types = weights["embeddings.token_type_embeddings.weight"].shape[0]
    inner = weights["encoder.layer.0.intermediate.dense.weight"].shape[0]

    class Residual(nn.Module):  # type: ignore[misc]  # torch is untyped here
        """Dense layer, residual sum and layer norm: the end of both halves of a layer."""

        def __init__(self, source: int) -> None:
            super().__init__()
            self.dense = nn.Linear(source, width)
            self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

        def forward(self, hidden: Tensor, shortcut: Tensor) -> Tensor:
            normed: Tensor = self.LayerNorm(self.dense(hidden) + shortcut)
            return normed

    class Layer(nn.Module):  # type: ignore[misc]  # torch is untyped here
        """Multi-head self-attention, then a feed-forward network with GELU."""

        def __init__(self) -> None:
            super().__init__()
            projections = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
            self.attention = nn.ModuleDict({"self": nn.ModuleDict(projections), "output": Residual(width)})
            self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
            self.output = Residual(inner)

        def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
            batch, length = hidden.shape[0], hidden.shape[1]

            def split(projected: Tensor) -> Tensor:
                return projected.reshape(batch, length, heads, width // heads).transpose(1, 2)

            query, key, value = (split(self.attention["self"][name](hidden)) for name in ("query", "key", "value"))
            scores = query @ key.transpose(-1, -2) / (width // heads) ** 0.5 + bias
            context = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, width)
            hidden = self.attention["output"](context, hidden)
            expanded = nn.functional.gelu(self.intermediate["dense"](hidden))
            result: Tensor = self.output(expanded, hidden)
            return result

    class Encoder(nn.Module):  # type: ignore[misc]  # torch is untyped here
        """Embeddings, layers, mean pooling."""

        def __init__(self) -> None:
            super().__init__()
            self.embeddings = nn.ModuleDict(
                {
                    "word_embeddings": nn.Embedding(vocabulary, width),
                    "position_embeddings": nn.Embedding(positions, width),
                    "token_type_embeddings": nn.Embedding(types, width),
                    "LayerNorm": nn.LayerNorm(width, eps=1e-12),
                }
            )
            self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer() for _ in range(layers))})

        def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
            place = torch.arange(input_ids.shape[1])[None]
            hidden = self.embeddings["word_embeddings"](input_ids)
            hidden = hidden + self.embeddings["position_embeddings"](place)
            hidden = self.embeddings["LayerNorm"](hidden + self.embeddings["token_type_embeddings"](token_type_ids))
            bias = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * -10000.0
            for layer in self.encoder["layer"]:
                hidden = layer(hidden, bias)
            kept = attention_mask[:, :, None].to(torch.float32)
            return (hidden * kept).sum(1) / kept.sum(1).clamp(min=1e-9)

    module = Encoder()
    wanted = module.state_dict().keys()
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items() if name in wanted})
    return module.eval()
